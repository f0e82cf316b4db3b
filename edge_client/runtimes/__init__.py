"""What trains on a device: one file per runtime, its name is the name in the configuration.

The contract is `Runtime`; `reference` (NumPy, slow, obvious) defines the truth, and `tests/test_runtimes.py`
holds every file of this folder to it. A runtime module has NAME, NEEDS (packages beyond the base install), GRAPHS (the
bundle's members it opens, in a folder named for their target in `export`), maybe NOTE (what its install has to know),
maybe `absent()` (what is not here either, given the packages) and `open_runtime(bundle, threads)`; it imports those
packages only there. One that can take a batch in parts has a FOOTPRINT (`edge_client.memory`) as well, and takes a Fit
as a third argument; maybe also VARIANTS, members of the bundle to choose from, by name, the usual one first.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import pkgutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from seedmask.bundle import Bundle
from seedmask.errors import MissingPackageError, UserError
from seedmask.training import OPTIMIZERS

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Targets = npt.NDArray[Any]
"""Class numbers, int64 [n], or where the spec's loss is "mse" numbers to come close to, float32 [n, classes]."""


BETA1: Final = 0.9
BETA2: Final = 0.999
EPSILON: Final = 1e-8
NOTHING: Final[F32] = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Rule:
    """What one step does with the gradient; `edge_client.training.rule_of` makes it from a job's work.

    `rate` > 0 of `optimizer`: "adam" (Kingma and Ba, arXiv 1412.6980; beta 0.9 and 0.999, eps 1e-8) or "sgd", then with
    `momentum` 0 .. 1 (m = momentum m + g, scores -= rate m). `times_theta`: the estimator of FedPM's published code
    (Isik et al., arXiv 2209.15328), which multiplies the gradient by theta once more than the identity. The local loss
    gains `kl` * KL(theta || sigmoid(anchor)) / d, `sparsity` * sum(theta) / d (Mestoukirdi et al., arXiv 2309.10834)
    and `entropy` * H(theta) / d, all in nats. `mean`: forward and backward run w * theta, no mask is drawn.
    `exact_rate` > 0: that of exact values, by the same optimiser.
    """

    rate: float
    optimizer: str = "adam"
    momentum: float = 0.0
    times_theta: bool = False
    kl: float = 0.0
    sparsity: float = 0.0
    entropy: float = 0.0
    mean: bool = False
    exact_rate: float = 1e-3

    @property
    def needs(self) -> frozenset[str]:
        """The vectors of a State that this rule uses; any other may be empty."""
        first = {"m"} if self.optimizer == "adam" or self.momentum else set()
        second = {"v"} if self.optimizer == "adam" else set()
        return frozenset({"scores"} | first | second | ({"anchor"} if self.kl else set()))

    @property
    def plain(self) -> bool:
        """Whether the gradient is that of the loss alone, by the identity estimator."""
        return not (self.times_theta or self.kl or self.sparsity or self.entropy)


@dataclass(frozen=True, eq=False)
class Exact:
    """A model's exact `values` and their optimiser's moments, float32 [e] each; few enough to hold whatever the rule.

    Their optimiser is here, once for all runtimes: a step of these few hundred numbers is no work for a graph.
    """

    values: F32
    m: F32
    v: F32

    @classmethod
    def start(cls, values: F32) -> Exact:
        """A new optimiser."""
        return cls(values, np.zeros_like(values), np.zeros_like(values))

    def stepped(self, gradient: npt.NDArray[Any], rule: Rule, t: int) -> Exact:
        """After step `t`, from 1, along `gradient` float [e], by the rule's optimiser at `exact_rate`."""
        if not self.values.size:
            return self
        g, m, v = gradient.astype(np.float64), self.m.astype(np.float64), self.v.astype(np.float64)
        if rule.optimizer == "adam":
            rate, epsilon = corrected(rule.exact_rate, t)
            m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
            move = rate * m / (np.sqrt(v) + epsilon)
        else:
            m = rule.momentum * m + g
            move = rule.exact_rate * m
        values, m32, v32 = (array.astype(np.float32) for array in (self.values - move, m, v))
        return Exact(values, m32, v32)


NO_EXACT: Final = Exact(NOTHING, NOTHING, NOTHING)


@dataclass(frozen=True, eq=False)
class State:
    """What training carries from step to step, float32 [d], or [0] where the rule has no use for it.

    `scores`; the optimiser's first moment `m` and second moment `v`; `t`, the steps behind it; `anchor`, the scores of
    the global probabilities, which the KL term pulls towards. `exact`: the same for the model's exact values.
    """

    scores: F32
    m: F32
    v: F32
    t: int
    anchor: F32
    exact: Exact = NO_EXACT

    @classmethod
    def start(cls, scores: F32, rule: Rule | None = None, exact: F32 = NOTHING) -> State:
        """A new optimiser at `scores`, anchored there, and at the `exact` values.

        With only the vectors that `rule` needs (None: with all).
        """
        needs = frozenset({"m", "v", "anchor"}) if rule is None else rule.needs
        m, v = (np.zeros_like(scores) if name in needs else NOTHING for name in ("m", "v"))
        return cls(scores, m, v, 0, scores if "anchor" in needs else NOTHING, Exact.start(exact))

    def again(self, scores: F32, rule: Rule, exact: F32 = NOTHING) -> State:
        """A new round at `scores` with the optimiser of the last one; a new one if that has not what `rule` needs."""
        lacks = any(self.shape_of(name) != scores.shape for name in rule.needs - {"anchor"})
        if lacks or self.exact.m.shape != exact.shape:
            return State.start(scores, rule, exact)
        anchor = scores if rule.kl else NOTHING
        return State(scores, self.m, self.v, self.t, anchor, Exact(exact, self.exact.m, self.exact.v))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of one vector, by name."""
        shape: tuple[int, ...] = getattr(self, name).shape
        return shape


@dataclass(frozen=True, eq=False)
class StepResult:
    """`state` after the step; mean `loss` (nats, or squares; without regularisers), `correct` predictions before it.

    There are no correct predictions, 0, where the loss is "mse".
    """

    state: State
    loss: float
    correct: int


@dataclass(frozen=True)
class Fit:
    """How a runtime is fitted to a device: `micro` examples at a time and a variant of its graphs, "" for the usual.

    A step is that of the whole batch either way: one mask, one gradient, which is summed.
    """

    micro: int
    variant: str = ""

    def parts(self, n: int) -> list[slice]:
        """Where n examples are cut: as few parts as there can be, of the same size or one less."""
        count = -(-n // self.micro)
        ends = [n * i // count for i in range(count + 1)]
        return [slice(*cut) for cut in pairwise(ends)]


class DivergedError(Exception):
    """Training left the numbers: scores or loss are NaN or infinite. The round is lost; its start is not."""


class Runtime(Protocol):
    """One model made ready to train and to predict."""

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: Rule) -> StepResult:
        """One step on the scores s, with theta = sigmoid(s).

        x [n, *input] normalised, 1 <= n <= batch; y as `Targets` says; noise [d] uniform in 0 .. 1: the mask of this
        step is noise < theta, or theta itself if `rule.mean`. One array of noise for all steps of a round: what a
        runtime keeps between steps may live as long as it. The gradient by the scores is

            theta (1 - theta) (dL/dmask (theta if times_theta else 1) + (kl (s - anchor) + sparsity - entropy s) / d)

        and goes to the optimiser; that by the exact values goes to theirs, `Exact.stepped`. The state that came in is
        left as it was. Raises DivergedError, and ValueError for arguments of another shape.
        """

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """What the last layer gives, [n, classes], for x [n, *input], any n, under weights w * mask.

        mask float32 [d], 0/1 or probabilities; exact float32 [e], the exact tensors' values.
        """


def corrected(rate: float, t: int) -> tuple[float, float]:
    """Adam's rate and epsilon at step t, from 1, with both bias corrections inside: s -= rate m / (sqrt(v) + epsilon).

    On the host, in double: 1 - 0.999**t loses half of float32's digits.
    """
    root = math.sqrt(1 - BETA2**t)
    return rate * root / (1 - BETA1**t), EPSILON * root


def pulls(rule: Rule, d: int) -> tuple[float, float, float]:
    """(a, b, c): the regularisers' gradient by the scores is theta (1 - theta) (a s + b anchor + c)."""
    return (rule.kl - rule.entropy) / d, -rule.kl / d, rule.sparsity / d


def regularised(g: F32, state: State, rule: Rule, d: int) -> F32:
    """What `rule` makes of `g` float32 [d], the loss's gradient by the scores of `state`; `g` is used up.

    For runtimes that get it from elsewhere.
    """
    if rule.plain:
        return g
    scores = np.asarray(state.scores, np.float32)
    with np.errstate(over="ignore"):  # exp of a large score: theta is 0
        theta = 1 / (1 + np.exp(-scores))
    if rule.times_theta:
        g *= theta
    by_score, by_anchor, constant = (np.float32(pull) for pull in pulls(rule, d))
    pull = by_score * scores + constant
    if by_anchor:
        pull += by_anchor * np.asarray(state.anchor, np.float32)
    g += pull * (theta * (1 - theta))
    return g


def descended(g: F32, state: State, rule: Rule) -> State:
    """After a step of SGD, with `rule`'s momentum if it has any, along `g` float32 [d], the regularised gradient."""
    m = np.float32(rule.momentum) * np.asarray(state.m, np.float32) + g if rule.momentum else state.m
    scores = np.asarray(state.scores, np.float32) - np.float32(rule.rate) * (m if rule.momentum else g)
    return State(scores, m, state.v, state.t + 1, state.anchor, state.exact)


def check_step(bundle: Bundle, x: F32, y: Targets, state: State, noise: F32, rule: Rule) -> None:
    """Raise ValueError unless `Runtime.step` takes these arguments; every runtime calls it first."""
    spec = bundle.spec
    n = len(y)
    if not 1 <= n <= bundle.batch:
        raise ValueError(f"a step takes 1 .. {bundle.batch} examples, found {n}")
    if x.shape != (n, *spec.input):
        raise ValueError(f"x is [{n}, {', '.join(map(str, spec.input))}], found {list(x.shape)}")
    if spec.loss == "mse":
        if y.dtype != np.float32 or y.shape != (n, spec.classes):
            raise ValueError(f"y is float32 [{n}, {spec.classes}], found {y.dtype} {list(y.shape)}")
    elif y.ndim != 1 or int(y.min()) < 0 or int(y.max()) >= spec.classes:
        raise ValueError(f"y is {n} classes in 0 .. {spec.classes - 1}, found {int(y.min())} .. {int(y.max())}")
    if rule.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is one of {', '.join(OPTIMIZERS)}, found {rule.optimizer!r}")
    for name in ("scores", "m", "v", "anchor"):
        if name in rule.needs:
            check_vector(name, state.shape_of(name), spec.d)
    check_vector("noise", noise.shape, spec.d)
    for name in ("values", "m", "v"):
        check_vector(f"exact {name}", getattr(state.exact, name).shape, spec.e)
    for name in ("rate", "exact_rate"):
        if not getattr(rule, name) > 0:
            raise ValueError(f"{name} is above 0, found {getattr(rule, name)}")
    if not 0 <= rule.momentum < 1:
        raise ValueError(f"momentum is 0 .. 1, found {rule.momentum}")


def check_vector(name: str, shape: tuple[int, ...], d: int) -> None:
    """Raise ValueError unless `shape` is [d]."""
    if shape != (d,):
        raise ValueError(f"{name} is [{d}], found {list(shape)}")


def check_logits(bundle: Bundle, x: F32, mask: F32, exact: F32) -> None:
    """Raise ValueError unless `Runtime.logits` takes these arguments."""
    if x.shape[1:] != bundle.spec.input:
        raise ValueError(f"x is [n, {', '.join(map(str, bundle.spec.input))}], found {list(x.shape)}")
    check_vector("mask", mask.shape, bundle.spec.d)
    check_vector("exact", exact.shape, bundle.spec.e)


def finite(result: StepResult, total: float | None = None) -> StepResult:
    """`result`, or DivergedError; every runtime's last act. `total`: the sum of the new scores, if it is known."""
    # A sum is finite only if every score is, and one pass without a temporary is all it costs.
    total = float(result.state.scores.sum()) if total is None else total
    if not all(map(math.isfinite, (result.loss, total, float(result.state.exact.values.sum())))):
        raise DivergedError(
            f"step {result.state.t}: loss {result.loss}, scores or loss not finite; "
            "are the inputs numbers, and is the rate sane?"
        )
    return result


def names() -> list[str]:
    """Every runtime there is a file for, installed or not."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def missing(name: str) -> list[str]:
    """What runtime `name` needs and this environment lacks: packages, or else what it looks for in them."""
    module = _module(name)
    packages = [package for package in module.NEEDS if not _present(package)]
    if packages or not hasattr(module, "absent"):
        return packages
    found: list[str] = module.absent()
    return found


def _present(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package that it would be a part of
        return False


def versions(name: str) -> dict[str, str]:
    """What runtime `name` runs on here: distribution to version. Those that are missing are not in it."""
    packages = [package.partition(".")[0] for package in _module(name).NEEDS] or ["numpy"]
    # By its files, because onnxruntime has several distributions; not by packages_distributions(), which in Python 3.10
    # knows only those with a top_level.txt; and not by an __init__.py, which executorch has not.
    return {
        each.metadata["Name"]: each.version
        for each in importlib.metadata.distributions()
        if any(file.parts[0] in packages for file in each.files or ())
    }


def how_to_get(name: str) -> str:
    """What to type for the packages of runtime `name`, and what to know before."""
    module = _module(name)
    extra = f"[{name.replace('_', '-')}]" if module.NEEDS else ""
    note = f"; {module.NOTE}" if hasattr(module, "NOTE") else ""
    return f"pip install 'seedmask{extra}' (in a clone: '.{extra}'){note}"


def graphs(name: str) -> tuple[str, ...]:
    """The members of a bundle that runtime `name` opens."""
    found: tuple[str, ...] = _module(name).GRAPHS
    return found


def lacking(name: str, bundle: Bundle) -> list[str]:
    """Those that `bundle` has not."""
    return [graph for graph in graphs(name) if graph not in bundle.files]


def targets(of: Iterable[str]) -> list[str]:
    """What `seedmask export --runtimes` is to be given, so that all these runtimes find their graphs."""
    return sorted({graph.partition("/")[0] for name in of for graph in graphs(name)})


def require(name: str) -> None:
    """Raise UserError unless there is a runtime `name`, MissingPackageError unless it can run here."""
    if name not in names():
        raise UserError(f"no runtime called {name!r}; there are {', '.join(names())}{_meant(name)}")
    if absent := missing(name):
        raise MissingPackageError(f"runtime {name} needs {', '.join(absent)}: {how_to_get(name)}")


def _meant(name: str) -> str:
    """What to say to who gave a package's or a graph's name for a runtime's."""
    if (same := name.replace("-", "_")) in names():
        return f"; this one is written {same}"

    def opened(by: str) -> set[str]:
        members = *graphs(by), *getattr(_module(by), "VARIANTS", {}).values()
        return {member.partition("/")[0] for member in members}

    opens = [each for each in names() if name.replace("_", "-") in opened(each)]
    return f"; graphs for {name} are opened by {' and '.join(opens)}" if opens else ""


def require_graphs(of: Collection[str], bundle: Bundle) -> None:
    """Raise UserError unless `bundle` has the graphs of all these runtimes."""
    for name in of:
        if absent := lacking(name, bundle):
            raise UserError(
                f"the bundle has no {', '.join(absent)}, which runtime {name} opens: "
                f"seedmask export --runtimes {','.join(targets(of))}"
            )


def variants(name: str, bundle: Bundle) -> dict[str, str]:
    """Variants of runtime `name` that `bundle` has graphs for: name to member; the usual one, or "", first."""
    found: dict[str, str] = getattr(_module(name), "VARIANTS", {})
    return {variant: graph for variant, graph in found.items() if graph in bundle.files} or {"": ""}


def footprint(name: str) -> Any:
    """The `edge_client.memory.Footprint` of runtime `name`; None if it does not take a batch in parts."""
    return getattr(_module(name), "FOOTPRINT", None)


def usual(name: str, bundle: Bundle) -> Fit:
    """How runtime `name` takes the batch of `bundle` where nobody says."""
    module = _module(name)
    found: Fit = module.usual(bundle) if hasattr(module, "usual") else Fit(bundle.batch)
    return found


def open_runtime(name: str, bundle: Bundle, threads: int = 0, fit: Fit | None = None) -> Runtime:
    """Make `bundle` ready on runtime `name`; `threads` 0 and no `fit` leave the choice to it. Raises UserError."""
    require(name)
    module = _module(name)
    runtime: Runtime = module.open_runtime(bundle, threads, *([] if fit is None else [_fitting(fit, name, bundle)]))
    return runtime


def _fitting(fit: Fit, name: str, bundle: Bundle) -> Fit:
    """`fit` with its variant named. Raises ValueError where runtime `name` cannot take it."""
    known = variants(name, bundle)
    if not 1 <= fit.micro <= bundle.batch:
        raise ValueError(f"a micro-batch is 1 .. {bundle.batch} examples, found {fit.micro}")
    if footprint(name) is None:
        raise ValueError(f"runtime {name} takes a batch as its graphs do, found a micro-batch of {fit.micro}")
    if fit.variant and fit.variant not in known:
        raise ValueError(f"variant is one of {', '.join(known)}, found {fit.variant!r}")
    return replace(fit, variant=fit.variant or next(iter(known)))


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
