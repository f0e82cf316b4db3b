"""Preparation of a simulation: from its Parameters to a Setup, with all checks made before anything is written.

`seedmask simulate` and `sim.simulate` fill in the same Parameters. Errors name a parameter between backquotes, as it is
called in Python; the command replaces it by the name of its option.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np

from aggregator import rules
from aggregator.presets import settings_of
from aggregator.rules import Rule, registry
from aggregator.settings import AggregationConfig, RoundsConfig
from edge_client.data import Dataset, TrainTest, check, doubtful_range
from edge_client.runtimes import Runtime, open_runtime, require_graphs, targets
from seedmask import bundle as bundles
from seedmask.bundle import Bundle
from seedmask.errors import MissingPackageError, UserError
from seedmask.training import TrainingConfig
from sim import datasets, partition
from sim.bundles import BATCH, RUNTIMES, shipped
from sim.datasets import own
from sim.evaluate import METRICS
from sim.runtimes import Assignment, assign

MODELS: Final = (
    "mlpn",
    "mlp",
    "conv4",
    "conv4s",
    "conv4n",
    "lenet5",
    "resnet20g",
    "mixer",
    "mlpa",
    "conv4a",
)  # networks of the zoo for images of 1x28x28
MODEL_SEED: Final = 1
"""Default seed of a network's random weights; it is fixed, so that two runs do not differ by their weights."""
PER_DEVICE: Final = 2000
"""Default number of examples per device for named data sets; of your own data a device gets its whole share."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """Parameters of a simulation; `sim.simulate` documents each of them.

    `model`: a torch module, a Bundle, the path of one, or the name of a network in the zoo. `data`: arrays (x, y), a
    Dataset, the path of an .npz file, or the name of a data set. `knobs`: settings that override the preset, by their
    names in tables [training] and [aggregation] of run.toml.
    `rule`: server rule as an object, in place of the one that `knobs` name.
    """

    model: Any = MODELS[0]
    data: Any = datasets.AUTO
    test: Any = None
    test_share: float | None = None
    data_dir: Path | None = None
    devices: int = 8
    rounds: int = 20
    split: str = "iid"
    examples: int | None = None
    eval_examples: int = 2000
    per_round: int = 0
    quorum: int = 0
    minimum: int = 1
    deadline: float = 600.0
    virtual: bool = True
    broker: str | None = None
    runtime: str = "onnxruntime"
    pythons: Sequence[str] = ()
    threads: int = 1
    crash: float = 0.0
    cut: float = 0.0
    preset: str = "default"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    rule: Any = None
    seed: int | None = None
    model_seed: int | None = None
    exact: Sequence[str] = ()
    frozen: Sequence[str] = ()


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs.

    parts: training examples of each device.
    evaluator: runtime that tests the model, on `eval_set` after every round and on all of `data.test` at the end.
    seed: of all random numbers of the run.
    notes: sentences that the user should read.
    """

    asked: Parameters
    rounds: RoundsConfig
    training: TrainingConfig
    aggregation: AggregationConfig
    rule: Rule
    broker: tuple[str, int] | None
    bundle: Bundle
    data: TrainTest
    parts: list[Dataset]
    runtimes: Assignment
    evaluator: Runtime
    eval_set: Dataset
    seed: int
    notes: tuple[str, ...]

    @property
    def metric(self) -> str:
        """Return what the tests measure: "accuracy" or "error"."""
        return METRICS[self.bundle.spec.loss]


def prepare(asked: Parameters, where: str) -> Setup:
    """Check all parameters, load data and model, and divide the examples among the devices. Writes nothing.

    `where`: where settings were given, for errors about unknown ones. Raises UserError, which says what was found and
    what is possible.
    """
    asked = _plain(asked)
    rounds = _checked(asked)
    training, aggregation = settings_of(asked.preset, _completed(asked.knobs), where)
    rule, aggregation = _rule(asked, aggregation)
    runtimes = assign(asked.runtime, asked.pythons, asked.virtual)
    broker = _address(asked.broker)
    seed = asked.seed if asked.seed is not None else secrets.randbits(32)
    data = _data(asked, seed)
    notes: list[str] = []
    bundle = _bundle(asked, runtimes, data, notes)
    require_graphs(runtimes.all, bundle)
    data = _fitting(data, bundle)
    if (doubt := doubtful_range(data.train, bundle.spec)) is not None:
        notes.append(doubt)
    n, total = _per_device(asked, data), len(data.train.y)
    if asked.examples and asked.examples > total // asked.devices:
        notes.append(
            f"`examples` {asked.examples:,} is more than {total:,} training examples allow; "
            f"{total // asked.devices:,} per device are used"
        )
    rng = np.random.default_rng([seed, 0])
    picks = partition.split(asked.split, data.train.y, asked.devices, n, rng)
    parts = [datasets.subset(data.train, pick) for pick in picks]
    evaluator = open_runtime(runtimes.here, bundle, asked.threads if asked.virtual else 0)
    few = rng.permutation(len(data.test.y))[: asked.eval_examples or None]
    eval_set = datasets.subset(data.test, few)
    return Setup(
        asked=asked,
        rounds=rounds,
        training=training,
        aggregation=aggregation,
        rule=rule,
        broker=broker,
        bundle=bundle,
        data=data,
        parts=parts,
        runtimes=runtimes,
        evaluator=evaluator,
        eval_set=eval_set,
        seed=seed,
        notes=tuple(notes),
    )


_KINDS: Final = {
    **dict.fromkeys(("devices", "rounds", "threads", "per_round", "quorum", "minimum"), "an integer"),
    **dict.fromkeys(("examples", "eval_examples", "seed", "model_seed"), "an integer"),
    **dict.fromkeys(("deadline", "crash", "cut", "test_share"), "a number"),
    **dict.fromkeys(("split", "runtime", "preset", "broker"), "a text"),
}
"""What a parameter is, for people; None besides where that is its default."""
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {"an integer": (int,), "a number": (int, float), "a text": (str,)}


def _plain(asked: Parameters) -> Parameters:
    """Return what was asked for, with NumPy's numbers as Python's. Raises UserError for a value of another type."""
    found: dict[str, Any] = {}
    for name, kind in _KINDS.items():
        value = _scalar(getattr(asked, name))
        unset = value is None and getattr(Parameters, name) is None
        if not unset and (isinstance(value, bool) or not isinstance(value, _TYPES[kind])):
            raise UserError(f"`{name}` is {kind}, found {value!r}")
        found[name] = value
    return replace(asked, **found, knobs={key: _scalar(value) for key, value in asked.knobs.items()})


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _checked(asked: Parameters) -> RoundsConfig:
    """Check the range of every number, and return the settings of rounds. Raises UserError."""
    for name in ("devices", "rounds", "threads"):
        if getattr(asked, name) < 1:
            raise UserError(f"`{name}` is at least 1, found {getattr(asked, name)}")
    for name in ("examples", "eval_examples"):
        if (getattr(asked, name) or 0) < 0:
            raise UserError(f"`{name}` is at least 0, found {getattr(asked, name)}")
    for name in ("per_round", "quorum", "minimum"):
        if getattr(asked, name) > asked.devices:
            raise UserError(f"`{name}` {getattr(asked, name)}: there are only {asked.devices} devices")
    for name in ("crash", "cut"):
        if not 0 <= getattr(asked, name) <= 1:
            raise UserError(f"`{name}` is a chance, 0 .. 1, found {getattr(asked, name)}")
    if asked.crash + asked.cut > 1:
        raise UserError(f"`crash` and `cut` together are at most 1, found {asked.crash + asked.cut:g}")
    if not asked.virtual and (asked.crash or asked.cut):
        raise UserError("`crash` and `cut` need virtual time; kill a real process instead (pids.json tells who is who)")
    if asked.virtual and asked.broker:
        raise UserError("`broker` and virtual time exclude each other: virtual time has a broker in memory")
    for name, most in (("seed", 32), ("model_seed", 64)):
        value = getattr(asked, name)
        if value is not None and not 0 <= value < 1 << most:
            raise UserError(f"`{name}` is 0 .. 2**{most} - 1, found {value}")
    try:
        return RoundsConfig(
            total=asked.rounds,
            devices=asked.devices,
            per_round=asked.per_round,
            quorum=asked.quorum,
            minimum=asked.minimum,
            deadline_s=asked.deadline,
        )
    except ValueError as error:
        key, space, rest = str(error).partition(" ")
        raise UserError(f"`{_OF_ROUNDS.get(key, key)}`{space}{rest}") from None


_OF_ROUNDS: Final = {"total": "rounds", "deadline_s": "deadline"}
"""Parameters by the keys of [rounds], where the two are called differently."""


def _completed(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `knobs` with a kappa_max that is not below kappa, if only kappa was given."""
    completed = dict(knobs)
    if "kappa" in knobs and "kappa_max" not in knobs and isinstance(knobs["kappa"], int | float):
        completed["kappa_max"] = max(float(knobs["kappa"]), TrainingConfig().kappa_max)
    return completed


def _rule(asked: Parameters, aggregation: AggregationConfig) -> tuple[Rule, AggregationConfig]:
    """Return the server rule, and the settings with its name: that of its class, if it was given as an object."""
    rule = asked.rule
    if rule is None:
        return rules.load(aggregation.rule), aggregation
    if "rule" in asked.knobs:
        raise UserError("`aggregation` is a rule, and `rule` names another one; give one of them")
    kind = rule.__name__ if isinstance(rule, type) else type(rule).__name__
    if isinstance(rule, type):
        raise UserError(f"`aggregation` is a rule, an object; found {kind}, a class: call it")
    if absent := registry.lacking(rule):
        raise UserError(
            f"`aggregation` is a mapping of its table's keys, or a rule with methods start and conclude; "
            f"found {kind}, which lacks {' and '.join(absent)}"
        )
    if not asked.virtual:
        raise UserError(
            f"`aggregation` {kind} is an object of this process, with the real clock the aggregator is another one: "
            f"install the rule as an entry point of {registry.GROUP}, and give its name: aggregation={{'rule': NAME}}"
        )
    return rule, replace(aggregation, rule=kind)


def _data(asked: Parameters, seed: int) -> TrainTest:
    """Return training and test set, from arrays, a file or a named data set. Raises UserError."""
    test = None if asked.test is None else _test(asked)
    rng = np.random.default_rng([seed, 4])
    given, name, origin = asked.data, "arrays", "given"
    if _is_name(given):
        if asked.test_share is not None:
            raise UserError(f"`test_share` is for your own data; {given} has a test set")
        found = datasets.load(given, asked.data_dir)
        return found if test is None else replace(found, test=test)
    if asked.data_dir is not None and not _is_name(asked.test):
        raise UserError("`data_dir` is for named data sets; `data` already has your own examples")
    if isinstance(given, str | Path):
        name, origin = Path(given).stem, str(given)
        given, inside = own.from_npz(Path(given), "data")
        test = test or inside
    return own.joined(name, origin, own.dataset(given, "data"), test, asked.test_share, rng)


def _test(asked: Parameters) -> Dataset:
    given = asked.test
    if _is_name(given):
        return datasets.load(given, asked.data_dir).test
    if isinstance(given, str | Path):
        return own.from_npz(Path(given), "test")[0]
    return own.dataset(given, "test")


def _is_name(given: Any) -> TypeGuard[str]:
    """True for the name of a data set."""
    return isinstance(given, str) and not _is_file(given, ".npz")


def _is_file(text: str, suffix: str) -> bool:
    """True if `text` is a path, and not the name of a network or data set."""
    return text.endswith(suffix) or "/" in text


def _bundle(asked: Parameters, runtimes: Assignment, data: TrainTest, notes: list[str]) -> Bundle:
    """Return the bundle of the model, which is exported in memory if it has none yet. Raises UserError."""
    model = asked.model
    if isinstance(model, Bundle):
        bundle = model
    elif isinstance(model, Path) or (isinstance(model, str) and _is_file(model, ".bundle")):
        bundle = bundles.load(Path(model))
    elif isinstance(model, str):
        return _of_zoo(asked, model, runtimes)
    else:
        return _of_module(asked, model, runtimes, data, notes)
    for name in ("exact", "frozen", "model_seed"):
        if getattr(asked, name) not in (None, (), []):
            raise UserError(f"`{name}` is for an export; {bundle.spec.name} has been exported already")
    return bundle


def _of_zoo(asked: Parameters, model: str, runtimes: Assignment) -> Bundle:
    """Return a network of the zoo: the bundle that ships with the package if it will do, otherwise a new export."""
    seed = MODEL_SEED if asked.model_seed is None else asked.model_seed
    wanted = targets(["onnxruntime", *runtimes.all])
    found = None if asked.exact or asked.frozen or set(wanted) - set(RUNTIMES) else shipped(model, seed)
    if found is not None:
        return found
    try:
        from export.make import make_bundle
        from export.trace import trace
        from export.zoo import ZOO
    except ImportError as error:
        raise UserError(
            f"`model` {model} has to be exported first, which needs {error.name}: pip install 'seedmask[export]'; "
            f"without it there are {', '.join(name for name in MODELS if shipped(name))}, and bundles"
        ) from None
    if model not in ZOO:
        raise UserError(
            f"no network called {model!r}; there are {', '.join(ZOO)}; for your own, export it and pass its bundle"
        )
    entry = ZOO[model]
    spec = trace(
        *(entry.factory(), model, seed, entry.input, (0, 255), entry.classes, "kaiming"),
        exact=asked.exact,
        frozen=asked.frozen,
    )
    return make_bundle(spec, BATCH, wanted)


def _of_module(asked: Parameters, model: Any, runtimes: Assignment, data: TrainTest, notes: list[str]) -> Bundle:
    """Return the bundle of a torch module, exported for the shapes, range and targets of `data`. Raises UserError.

    A sentence is appended to `notes` for everything that the bundle does differently from the module.
    """
    if isinstance(model, type) or not callable(getattr(model, "forward", None)):
        raise UserError(
            "`model` is a torch module, a bundle, the path of one or a network's name, found "
            f"{model.__name__ + ', a class: call it' if isinstance(model, type) else type(model).__name__}"
        )
    from export import export_bundle

    x = data.train.x
    low, high = float(x.min()), float(x.max())
    if x.dtype == np.uint8 and high >= 128:  # an image; smaller bytes, such as digits of 0 .. 16, have their own range
        low, high = 0.0, 255.0
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError("`data` has inputs that are NaN or infinite; they are finite numbers")
    loss, outputs, found = _targets(data)
    try:
        return export_bundle(
            model,
            input=x.shape[1:],
            classes=outputs,
            range=(math.floor(low), max(math.ceil(high), math.floor(low) + 1)),
            loss=loss,
            batch=_batch(asked, data),
            seed=MODEL_SEED if asked.model_seed is None else asked.model_seed,
            runtimes=targets(["onnxruntime", *runtimes.all]),
            exact=asked.exact,
            frozen=asked.frozen,
            on_note=notes.append,
        )
    except MissingPackageError:
        raise
    except UserError as error:
        from export.trace import OutputsError  # it imports torch, which export_bundle has asked for

        if not isinstance(error, OutputsError):
            raise
        raise UserError(f"{error} (`data` has {found})") from None


def _targets(data: TrainTest) -> tuple[str, int, str]:
    """Return the loss and the number of outputs for the targets of `data`, and what these are. Raises UserError."""
    y, test = data.train.y, data.test.y
    if y.dtype.kind == "f":
        outputs = 1 if y.ndim == 1 else y.shape[1]
        return "mse", outputs, f"y {y.dtype}, so that this is a regression of {outputs}; classes are integers [n]"
    if y.ndim != 1 or test.ndim != 1 or test.dtype.kind == "f":
        raise UserError(
            f"classes are integers [n], found y {y.dtype} {list(y.shape)} in `data` and {test.dtype} "
            f"{list(test.shape)} in what measures the model; one-hot rows y become classes by y.argmax(1)"
        )
    low, high = min(int(y.min()), int(test.min())), max(int(y.max()), int(test.max()))
    if low < 0:
        raise UserError(f"classes are 0 .. n - 1, found {low} .. {high}")
    more = "an export of your own, export_bundle(..., classes=N), may have outputs to spare"
    return "cross-entropy", high + 1, f"classes 0 .. {high}; {more}"


def _per_device(asked: Parameters, data: TrainTest) -> int:
    """Return the number of examples per device; 0: an equal share of all."""
    if asked.examples is not None:
        return asked.examples
    return PER_DEVICE if _is_name(asked.data) else 0


def _batch(asked: Parameters, data: TrainTest) -> int:
    """Return the examples per training step: BATCH, or fewer, so that an epoch has at least eight steps."""
    share = len(data.train.y) // asked.devices
    n = min(_per_device(asked, data) or share, share)
    return min(BATCH, max(8, n // 8))


def _fitting(data: TrainTest, bundle: Bundle) -> TrainTest:
    """Return `data` in the model's shape. Raises UserError, which says which inputs or targets do not fit."""
    spec, shape = bundle.spec, data.train.x.shape[1:]
    if math.prod(spec.input) != math.prod(shape):
        raise UserError(
            f"{spec.name} takes inputs of {_by(spec.input)}, those of {data.name} are {_by(shape)}: "
            f"use a network of {', '.join(MODELS)} for 1x28x28, or export one for {_by(shape)}"
        )
    train = check(data.train, spec)
    try:
        return replace(data, train=train, test=check(data.test, spec))
    except UserError as error:
        raise UserError(f"of what measures the model, {str(error).removeprefix('data: ')}") from None


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(f"`broker` is HOST:PORT, found {text!r}")
    return host, int(port)
