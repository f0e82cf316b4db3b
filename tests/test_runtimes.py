"""The contract of edge_client/runtimes: every runtime of an installed package, new ones too, held to the reference.

Specs are written by hand, so the reference is tested where neither torch nor onnx is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from capabilities import RUNTIMES, requires

from edge_client import runtimes
from edge_client.runtimes import (
    DivergedError,
    Exact,
    MicroBatchPlan,
    Runtime,
    State,
    StepConfig,
    StepResult,
    onnxruntime_cuda,
    registry,
)
from edge_client.runtimes.on_device import OnDevice
from seedmask import layers
from seedmask.bundle import Bundle
from seedmask.cli import main
from seedmask.errors import BundleError, MissingPackageError, UserError
from seedmask.spec import Conv2d, Flatten, GroupNorm, Layer, Linear, MaxPool2d, ModelSpec, ReLU, Tensor, scale_bits

BATCH = 16


def spec_of(
    name: str,
    shape: tuple[int, ...],
    layers: list[Layer],
    tensors: dict[str, tuple[int, ...]],
    kinds: dict[str, tuple[str, int]] | None = None,
) -> ModelSpec:
    """`kinds`: those of tensors that are not masked, with where exact ones begin."""

    def made(n: str, s: tuple[int, ...]) -> Tensor:
        kind, start = (kinds or {}).get(n, ("masked", 0))
        scale = 0 if kind == "exact" else scale_bits((2 / np.prod(s[1:] or (9,))) ** 0.5)
        return Tensor(n, s, scale, kind, start)

    scaled = tuple(made(n, s) for n, s in tensors.items())
    return ModelSpec(name, 0x5EED, shape, (0, 16), 10, tuple(layers), scaled)


DENSE = spec_of(
    "dense",
    (1, 8, 8),
    [Flatten(), Linear("a.weight", None), ReLU(), Linear("b.weight", "b.bias")],
    {"a.weight": (128, 64), "b.weight": (10, 128), "b.bias": (10,)},
)
CONVOLUTIONAL = spec_of(
    "convolutional",
    (2, 11, 9),
    [
        Conv2d("a.weight", "a.bias", (1, 1), (1, 1)),
        ReLU(),
        MaxPool2d((2, 2)),  # drops a row and a column
        Conv2d("b.weight", None, (2, 1), (0, 2)),
        ReLU(),
        Flatten(),
        Linear("c.weight", "c.bias"),
    ],
    {
        "a.weight": (6, 2, 3, 3),
        "a.bias": (6,),
        "b.weight": (5, 6, 2, 3),
        "c.weight": (10, 60),
        "c.bias": (10,),
    },
)
NORMALISED = spec_of(
    "normalised",
    (4, 5, 6),
    [
        GroupNorm(2),
        Conv2d("a.weight", None, (1, 1), (0, 0)),
        GroupNorm(3),
        ReLU(),
        MaxPool2d((3, 2)),
        Flatten(),
        Linear("b.weight", None),
        GroupNorm(1),
        ReLU(),
        Linear("c.weight", None),
    ],
    {"a.weight": (6, 4, 3, 3), "b.weight": (16, 12), "c.weight": (10, 16)},
)
GRAPH = spec_of(
    "graph",
    (4, 6, 7),
    [
        Conv2d("a.weight", "a.bias", (1, 1), (1, 1), 2),
        ReLU(),
        Conv2d("b.weight", None, (1, 1), (2, 2), 8, (2, 2)),
        layers.SiLU(),
        layers.Add((4, 2, 4)),  # a shortcut, and a value twice
        MaxPool2d((2, 2), source=2),
        ReLU(),
        layers.AvgPool2d((2, 2), source=5),
        layers.Concat((7, 8), 0),
        layers.ReLU6(),
        Conv2d("c.weight", None, (2, 1), (1, 1), 4),
        layers.Mean((1, 2)),
        layers.Mean((1,), source=0),  # no weights before it
        Flatten(),
        layers.Concat((12, 14), 0),
        Linear("d.weight", None),
    ],
    {
        "a.weight": (8, 2, 3, 3),
        "a.bias": (8,),
        "b.weight": (8, 1, 3, 3),
        "c.weight": (12, 4, 3, 3),
        "d.weight": (10, 40),
    },
)
ROWS = spec_of(
    "rows",
    (3, 4, 5),
    [
        layers.Permute((1, 2, 0)),
        layers.LayerNorm(1),
        Linear("a.weight", "a.bias"),
        layers.GELU(),
        layers.RMSNorm(2),
        layers.Reshape((20, 6)),
        layers.Permute((1, 0)),
        Linear("b.weight", None),
        layers.Tanh(),
        layers.LayerNorm(2),
        layers.Sigmoid(),
        Linear("c.weight", "c.bias", source=9),
        layers.GELU("tanh"),
        layers.Concat((11, 13), 1),
        layers.Mean((0,)),
        Linear("d.weight", "d.bias"),
    ],
    {
        "a.weight": (6, 3),
        "a.bias": (6,),
        "b.weight": (8, 20),
        "c.weight": (7, 8),
        "c.bias": (7,),
        "d.weight": (10, 15),
        "d.bias": (10,),
    },
)
KINDS = spec_of(
    "kinds",
    (4, 5, 6),
    [
        GroupNorm(2, "n.scale", "n.shift"),  # nothing to learn before it
        Conv2d("a.weight", "a.bias", (1, 1), (0, 0)),
        GroupNorm(3, None, "m.shift"),
        ReLU(),
        Conv2d("b.weight", "b.bias", (1, 1), (1, 1), 2),  # frozen, between masked ones
        layers.LayerNorm(2, "l.scale", "l.shift"),
        layers.LayerNorm(3, "k.scale"),
        layers.RMSNorm(3, "r.scale"),
        Flatten(),
        Linear("c.weight", "c.bias"),
        GroupNorm(1, "o.scale"),
        ReLU(),
        Linear("d.weight", "d.bias"),
    ],
    {
        "n.scale": (4,),
        "n.shift": (4,),
        "a.weight": (6, 4, 3, 3),
        "a.bias": (6,),
        "m.shift": (6,),
        "b.weight": (8, 3, 3, 3),
        "b.bias": (8,),
        "l.scale": (3, 4),
        "l.shift": (3, 4),
        "k.scale": (8, 3, 4),
        "r.scale": (8, 3, 4),
        "c.weight": (16, 96),
        "c.bias": (16,),
        "o.scale": (16,),
        "d.weight": (10, 16),
        "d.bias": (10,),
    },
    {
        **dict.fromkeys(("n.scale", "l.scale", "k.scale", "r.scale", "o.scale"), ("exact", 1)),
        **dict.fromkeys(("n.shift", "m.shift", "l.shift", "a.bias", "d.weight", "d.bias"), ("exact", 0)),
        **dict.fromkeys(("b.weight", "b.bias"), ("frozen", 0)),
    },
)
SPECS = [pytest.param(spec, id=spec.name) for spec in (DENSE, CONVOLUTIONAL, NORMALISED, GRAPH, ROWS, KINDS)]
REGRESSION = replace(DENSE, name="regression", loss="mse")
ADAM = StepConfig(0.1)
RULES = {
    "adam": ADAM,
    "sgd": StepConfig(30.0, "sgd"),
    "momentum": StepConfig(30.0, "sgd", 0.9),
    "times theta": StepConfig(0.1, times_theta=True),
    "kl": StepConfig(0.1, kl=20.0),
    "sparsity": StepConfig(0.1, sparsity=20.0),
    "mean": StepConfig(0.1, mean=True),
    "everything": StepConfig(30.0, "sgd", 0.5, True, 20.0, 10.0, True),
}


def named(names: Iterable[str]) -> Iterator[object]:
    for name in names:
        # The reference needs no graph; the others train what `export` has made.
        marks = [] if name == "reference" else [pytest.mark.export]
        if name == "executorch":  # whichever test comes first for a network makes its program
            marks.append(pytest.mark.timeout(1200))
        yield pytest.param(name, marks=marks)


def opened(name: str, spec: ModelSpec, fit: MicroBatchPlan | None = None) -> Runtime:
    lacking = runtimes.missing(name)
    if lacking == [onnxruntime_cuda.PROVIDER] and fit is None:
        # Without a GPU the same graphs and the same bindings, on the provider that is everywhere.
        return onnxruntime_cuda.open_runtime(bundle_for(name, spec), 1, device="cpu")
    if lacking:
        requires(*RUNTIMES[name])
    return runtimes.open_runtime(name, bundle_for(name, spec), 1, fit)


def variants_of(name: str, spec: ModelSpec) -> list[str]:
    """Variants of a runtime's graphs for micro-batches; the test ends here where the runtime is not installed."""
    if runtimes.missing(name):
        requires(*RUNTIMES[name])
    return list(registry.variants(name, bundle_for(name, spec)))


@cache
def bundle_for(name: str, spec: ModelSpec) -> Bundle:
    """With every variant of its graphs; made once, since some targets take half a minute."""
    module = registry._module(name)
    members = [*module.GRAPHS, *getattr(module, "VARIANTS", {}).values()]
    if not members:
        return Bundle(spec, BATCH, {})
    requires("onnx", *(["torch"] if name == "executorch" else []))
    from export.make import make_bundle

    return make_bundle(spec, BATCH, sorted({member.partition("/")[0] for member in members}))


def example(spec: ModelSpec, n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, State, np.ndarray]:
    """A batch, a state amid training, and noise that no rounding of sigmoid can carry across a score."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *spec.input)).astype(np.float32)
    y = rng.integers(0, spec.classes, n)
    if spec.loss == "mse":
        y = rng.normal(size=(n, spec.classes)).astype(np.float32)
    scores = rng.normal(size=spec.d).astype(np.float32)
    noise = rng.random(spec.d, np.float32)
    near = np.abs(noise - 1 / (1 + np.exp(-scores.astype(np.float64)))) < 1e-5
    m = rng.normal(size=spec.d).astype(np.float32) * np.float32(1e-2)
    v = rng.random(spec.d, np.float32) * np.float32(1e-4) + np.float32(1e-6)
    anchor = rng.normal(size=spec.d).astype(np.float32)
    values, more = rng.normal(size=(2, spec.e)).astype(np.float32)
    squares = rng.random(spec.e, np.float32) * np.float32(1e-4) + np.float32(1e-6)
    exact = Exact(spec.even().values() + values * np.float32(0.2), more * np.float32(1e-2), squares)
    return x, y, State(scores, m, v, 3, anchor, exact), np.where(near, noise / 2, noise).astype(np.float32)


@pytest.fixture(params=named(runtimes.names()))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=named(name for name in runtimes.names() if registry.footprint(name) is not None))
def dividing(request: pytest.FixtureRequest) -> str:
    """A runtime that can take a batch in parts."""
    return str(request.param)


TOLERANCE = {"scores": 2e-6, "values": 2e-6, "m": 2e-6, "v": 4e-6}  # v is of squares, whose errors are twice as large


def assert_same(found: StepResult, truth: StepResult) -> None:
    assert found.loss == pytest.approx(truth.loss, rel=1e-5)
    assert found.correct == truth.correct
    assert found.state.t == truth.state.t == 4
    for part in ("scores", "m", "v"):
        expected, got = getattr(truth.state, part), getattr(found.state, part)
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= TOLERANCE[part] * np.abs(expected).max(), part
    for part in ("values", "m", "v"):
        expected, got = getattr(truth.state.exact, part), getattr(found.state.exact, part)
        assert got.dtype == np.float32
        assert not got.size or np.abs(got - expected).max() <= TOLERANCE[part] * np.abs(expected).max(), part


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("n", [BATCH, 5, 1])
def test_a_step_is_that_of_the_reference(name: str, spec: ModelSpec, n: int) -> None:
    x, y, state, noise = example(spec, n)
    assert_same(*(opened(which, spec).step(x, y, state, noise, ADAM) for which in (name, "reference")))


@pytest.mark.parametrize("spec", [*SPECS, pytest.param(REGRESSION, id="regression")])
@pytest.mark.parametrize(("n", "micro"), [(BATCH, 4), (BATCH, 1), (13, 8), (3, 8), (1, 1)])
def test_a_few_examples_at_a_time_make_the_step_of_all_of_them(
    dividing: str, spec: ModelSpec, n: int, micro: int
) -> None:
    """One mask, one optimiser step, whatever the micro-batch and however short the last one is."""
    x, y, state, noise = example(spec, n, seed=4)
    truth = opened("reference", spec).step(x, y, state, noise, ADAM)
    for variant in variants_of(dividing, spec):
        found = opened(dividing, spec, MicroBatchPlan(micro, variant)).step(x, y, state, noise, ADAM)
        assert_same(found, truth)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_holds_for_micro_batches(dividing: str, rule: str) -> None:
    x, y, state, noise = example(DENSE, 7, seed=2)
    for variant in variants_of(dividing, DENSE):
        found = opened(dividing, DENSE, MicroBatchPlan(3, variant)).step(x, y, state, noise, RULES[rule])
        assert_same(found, opened("reference", DENSE).step(x, y, state, noise, RULES[rule]))


def test_a_micro_batch_or_a_variant_that_cannot_be_is_refused(dividing: str) -> None:
    for bad in (MicroBatchPlan(0), MicroBatchPlan(BATCH + 1), MicroBatchPlan(4, "abacus")):
        with pytest.raises(ValueError, match=r"a micro-batch is 1 \.\. 16 examples|variant is one of"):
            opened(dividing, DENSE, bad)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_that_of_the_reference(name: str, spec: ModelSpec, rule: str) -> None:
    x, y, state, noise = example(spec, 7, seed=2)
    found, truth = (opened(which, spec).step(x, y, state, noise, RULES[rule]) for which in (name, "reference"))
    assert_same(found, truth)
    assert np.array_equal(found.state.anchor, state.anchor)


@pytest.mark.parametrize("rule", ["adam", "momentum", "mean"])
@pytest.mark.parametrize("n", [BATCH, 5, 1])
def test_a_step_towards_numbers_is_that_of_the_reference(name: str, rule: str, n: int) -> None:
    x, y, state, noise = example(REGRESSION, n)
    found, truth = (opened(which, REGRESSION).step(x, y, state, noise, RULES[rule]) for which in (name, "reference"))
    assert_same(found, truth)
    assert found.correct == 0
    theta = 1 / (1 + np.exp(-state.scores.astype(np.float64)))
    mask = (theta if RULES[rule].mean else noise < theta).astype(np.float32)
    outputs = opened(name, REGRESSION).logits(x, mask)
    assert found.loss == pytest.approx(float(((outputs - y).astype(np.float64) ** 2).mean()), rel=1e-5)


def test_targets_of_another_kind_are_refused(name: str) -> None:
    x, y, state, noise = example(REGRESSION, 5)
    runtime = opened(name, REGRESSION)
    for wrong in (np.zeros(5, np.int64), y[:, :9], y.astype(np.float64), y[:4]):
        with pytest.raises(ValueError, match=r"y is float32 \[\d, 10\], found|x is"):
            runtime.step(x, wrong, state, noise, ADAM)


def test_numbers_are_learnt(name: str) -> None:
    """A linear map of the input, which the network does not know."""
    rng = np.random.default_rng(5)
    runtime, state = opened(name, REGRESSION), State.start(np.zeros(DENSE.d, np.float32))
    truth, losses = rng.normal(size=(64, 10)) / 8, []
    for _ in range(120):
        x = rng.normal(size=(BATCH, 1, 8, 8)).astype(np.float32)
        y = (x.reshape(BATCH, 64) @ truth).astype(np.float32)
        result = runtime.step(x, y, state, rng.random(DENSE.d, np.float32), StepConfig(0.1, mean=True))
        state = result.state
        losses.append(result.loss)
    assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:3])


@pytest.mark.export
@pytest.mark.filterwarnings("ignore:Specified provider")  # onnxruntime's own words about it
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu() -> None:
    requires("onnxruntime")
    if not runtimes.missing("onnxruntime_cuda"):
        pytest.skip("here is a GPU")
    with pytest.raises(MissingPackageError, match=r"onnxruntime_cuda needs CUDAExecutionProvider: pip install"):
        runtimes.open_runtime("onnxruntime_cuda", bundle_for("onnxruntime_cuda", DENSE))
    # As where onnxruntime was built for GPUs and finds none (tried with onnxruntime-gpu 1.31.1 without a GPU).
    with pytest.raises(UserError, match="could not start it"):
        onnxruntime_cuda.open_runtime(bundle_for("onnxruntime_cuda", DENSE), 1)


def test_a_state_on_a_gpu_comes_to_the_host_once_and_only_when_asked_for() -> None:
    fetched = []

    def fetch(tensor: np.ndarray) -> np.ndarray:
        fetched.append(tensor)
        return tensor

    before = State.start(np.zeros(4, np.float32), StepConfig(0.1))
    there = OnDevice(before, {"scores": np.ones(4, np.float32), "m": np.ones(4, np.float32)}, 1, before.exact, fetch)
    assert (there.t, there.v is before.v, fetched) == (1, True, [])
    assert there.shape_of("scores") == (4,)
    assert there.scores is there.scores
    assert len(fetched) == 1
    later = OnDevice(there, {"scores": np.full(4, 2, np.float32)}, 2, before.exact, fetch)
    assert (later.scores.tolist(), later.m.tolist(), len(fetched)) == ([2] * 4, [1] * 4, 3)


@pytest.mark.parametrize("rule", RULES)
def test_a_state_holds_no_vector_that_its_rule_has_no_use_for(name: str, rule: str) -> None:
    x, y, state, noise = example(DENSE, 5)
    runtime, states = opened(name, DENSE), [State.start(state.scores), State.start(state.scores, RULES[rule])]
    for _ in range(2):
        states = [runtime.step(x, y, each, noise, RULES[rule]).state for each in states]
    full, lean = states
    assert np.array_equal(full.scores, lean.scores)
    for part in ("m", "v", "anchor"):
        assert getattr(lean, part).shape == ((DENSE.d,) if part in RULES[rule].needs else (0,)), part
    assert {"m", "v"} & RULES["sgd"].needs == set()
    assert RULES["momentum"].needs == {"scores", "m"}


def test_the_next_round_keeps_the_optimiser_and_nothing_else_of_the_last_one(name: str) -> None:
    x, y, state, noise = example(DENSE, 5)
    rule, runtime = StepConfig(0.1, kl=1.0), opened(name, DENSE)
    last, scores = runtime.step(x, y, state, noise, rule).state, np.full(DENSE.d, 0.25, np.float32)
    again = last.again(scores, rule)
    assert (again.scores is scores, again.anchor is scores, again.t) == (True, True, 4)
    assert np.array_equal(again.m, last.m)
    assert np.array_equal(again.v, last.v)
    assert np.array_equal(
        runtime.step(x, y, again, noise, rule).state.scores,
        runtime.step(x, y, State(scores, last.m, last.v, 4, scores), noise, rule).state.scores,
    )


def test_an_optimiser_that_lacks_what_another_rule_needs_begins_anew() -> None:
    scores = np.zeros(4, np.float32)
    sgd = State.start(scores, RULES["sgd"])
    for rule in (ADAM, RULES["momentum"]):
        again = State(scores, sgd.m, sgd.v, 9, sgd.anchor).again(scores, rule)
        assert (again.t, again.m.tolist()) == (0, [0, 0, 0, 0])
    assert State(scores, sgd.m, sgd.v, 9, sgd.anchor).again(scores, RULES["sgd"]).t == 9


def objective(rule: StepConfig, s: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """Per weight, what the regularisers add to the loss, written out: float64 [d]."""
    theta, global_ = 1 / (1 + np.exp(-s)), 1 / (1 + np.exp(-anchor))
    divergence = theta * np.log(theta / global_) + (1 - theta) * np.log((1 - theta) / (1 - global_))
    total: np.ndarray = (rule.kl * divergence + rule.sparsity * theta) / len(s)
    return total


@pytest.mark.parametrize("terms", [{"kl": 50.0}, {"sparsity": 50.0}, {"kl": 50.0, "sparsity": 20.0}])
def test_the_regularisers_are_the_gradients_of_what_they_are_called(name: str, terms: dict[str, float]) -> None:
    x, y, state, noise = example(DENSE, 5)
    rule, runtime = StepConfig(1.0, "sgd", **terms), opened(name, DENSE)
    without = runtime.step(x, y, state, noise, StepConfig(1.0, "sgd")).state.scores.astype(np.float64)
    found = without - runtime.step(x, y, state, noise, rule).state.scores
    s, anchor, h = state.scores.astype(np.float64), state.anchor.astype(np.float64), 1e-5
    truth = (objective(rule, s + h, anchor) - objective(rule, s - h, anchor)) / (2 * h)
    assert np.abs(truth).max() > 1e-4
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-6)  # scores are float32: a last digit is 2e-7


def test_the_mean_network_has_the_gradient_of_its_own_loss(name: str) -> None:
    x, y, state, noise = example(NORMALISED, 6)
    rule, truth = StepConfig(1.0, "sgd", mean=True), opened("reference", NORMALISED)
    runtime = opened(name, NORMALISED)
    gradient = state.scores - runtime.step(x, y, state, noise, rule).state.scores
    along = np.random.default_rng(1).normal(size=NORMALISED.d)
    h = 2e-4
    losses = []
    for sign in (1, -1):
        moved = (state.scores + sign * h * along).astype(np.float32)
        logits = truth.logits(x, (1 / (1 + np.exp(-moved.astype(np.float64))))).astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        losses.append(float((np.log(np.exp(logits).sum(1)) - logits[np.arange(6), y]).mean()))
    assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(float(gradient @ along), rel=2e-2)
    other = runtime.step(x, y, state, 1 - noise, rule)
    assert other.loss == runtime.step(x, y, state, noise, rule).loss  # no mask is drawn


@pytest.mark.parametrize("spec", SPECS)
def test_logits_are_those_of_the_reference_for_any_number_of_examples(name: str, spec: ModelSpec) -> None:
    x, _, state, _ = example(spec, 2 * BATCH + 3)
    for mask in ((state.scores > 0).astype(np.float32), np.full(spec.d, 0.25, np.float32)):
        exact = state.exact.values
        truth, found = (opened(which, spec).logits(x, mask, exact) for which in ("reference", name))
        assert found.shape == (len(x), spec.classes)
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5 * np.abs(truth).max())


def test_no_examples_have_no_logits(name: str) -> None:
    x = np.zeros((0, *DENSE.input), np.float32)
    assert opened(name, DENSE).logits(x, np.ones(DENSE.d, np.float32)).shape == (0, 10)


def test_a_step_leaves_its_arguments_alone(name: str) -> None:
    x, y, state, noise = example(DENSE, 5)
    given = [x, y, state.scores, state.m, state.v, state.anchor, noise]
    before = [array.copy() for array in given]
    for rule in RULES.values():
        opened(name, DENSE).step(x, y, state, noise, rule)
    assert all(np.array_equal(a, b) for a, b in zip(given, before, strict=True))


def test_a_step_can_be_repeated(name: str) -> None:
    x, y, state, noise = example(CONVOLUTIONAL, 7)
    runtime = opened(name, CONVOLUTIONAL)
    first, second = (runtime.step(x, y, state, noise, ADAM) for _ in range(2))
    assert first.loss == second.loss
    assert np.array_equal(first.state.scores, second.state.scores)


def test_large_logits_have_a_finite_loss(name: str) -> None:
    x, y, state, noise = example(DENSE, 5)
    assert np.isfinite(opened(name, DENSE).step(x * 1e6, y, state, noise, ADAM).loss)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_input_that_is_no_number_is_a_diverged_step(name: str, bad: float) -> None:
    x, y, state, noise = example(DENSE, 5)
    x[2] = bad
    with pytest.raises(DivergedError, match="step 4"), np.errstate(invalid="ignore"):
        opened(name, DENSE).step(x, y, state, noise, ADAM)


def test_arguments_of_another_shape_are_refused(name: str) -> None:
    x, y, state, noise = example(DENSE, 5)
    runtime = opened(name, DENSE)
    short, lean = replace(state, scores=state.scores[:-1]), State.start(state.scores, RULES["sgd"])
    for arguments, text in [
        ((x[:4], y, state, noise, ADAM), r"x is \[5, 1, 8, 8\], found \[4, 1, 8, 8\]"),
        ((x.reshape(5, 64), y, state, noise, ADAM), "x is"),
        ((x[:0], y[:0], state, noise, ADAM), "1 .. 16 examples, found 0"),
        ((np.repeat(x, 4, 0), np.repeat(y, 4), state, noise, ADAM), "1 .. 16 examples, found 20"),
        ((x, y + 10, state, noise, ADAM), "classes in 0 .. 9"),
        ((x, y - 10, state, noise, ADAM), "classes in 0 .. 9"),
        ((x, y, short, noise, ADAM), "scores is"),
        ((x, y, lean, noise, ADAM), r"m is \[9482\], found \[0\]"),
        ((x, y, lean, noise, RULES["momentum"]), "m is"),
        ((x, y, lean, noise, StepConfig(0.1, "sgd", kl=1.0)), "anchor is"),
        ((x, y, state, noise[1:], ADAM), "noise is"),
        ((x, y, state, noise, StepConfig(0.0)), "rate is above 0"),
        ((x, y, state, noise, StepConfig(1.0, "sgd", 1.0)), "momentum is"),
        ((x, y, state, noise, StepConfig(1.0, "lion")), "optimizer is one of adam, sgd, found 'lion'"),
    ]:
        with pytest.raises(ValueError, match=text):
            runtime.step(*arguments)
    with pytest.raises(ValueError, match="mask is"):
        runtime.logits(x, noise[1:])
    with pytest.raises(ValueError, match="x is"):
        runtime.logits(x[0], noise)


def test_real_digits_are_learnt(name: str) -> None:
    """Alpaydin and Kaynak's digits, 8x8, bundled with scikit-learn."""
    requires("sim")
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = DENSE.normalise(digits.images[:, None]), digits.target.astype(np.int64)
    rng = np.random.default_rng(3)
    runtime, state = opened(name, DENSE), State.start(np.zeros(DENSE.d, np.float32))
    order = rng.permutation(1500)
    losses = []
    for _ in range(2):
        for at in range(0, 1500, BATCH):
            pick = order[at : at + BATCH]
            result = runtime.step(x[pick], y[pick], state, rng.random(DENSE.d, np.float32), ADAM)
            state = result.state
            losses.append(result.loss)
    assert np.mean(losses[-20:]) < 0.4 * np.mean(losses[:5])
    accuracy = (runtime.logits(x[1500:], (state.scores > 0).astype(np.float32)).argmax(1) == y[1500:]).mean()
    assert accuracy > 0.8


@pytest.mark.export
def test_a_gpus_state_comes_to_the_host_when_it_is_looked_at_and_is_the_same_until_then() -> None:
    """On the CPU, by telling the runtime that it is elsewhere: what a GPU does here is what its tensors do."""
    x, y, state, noise = example(DENSE, 5)
    there, here = opened("torch", DENSE), opened("torch", DENSE)
    there._lazy = True  # type: ignore[attr-defined]
    for rule in RULES.values():
        far, near = (r.step(x, y, State.start(state.scores, rule), noise, rule).state for r in (there, here))
        assert "scores" not in vars(far)
        far, near = there.step(x, y, far, noise, rule).state, here.step(x, y, near, noise, rule).state
        assert "scores" not in vars(far)
        assert far.t == near.t == 2
        for part in ("scores", "m", "v", "anchor"):
            assert np.array_equal(getattr(far, part), getattr(near, part)), part
        assert far.scores is far.scores
        again = far.again(state.scores, rule)
        moved = there.step(x, y, again, noise, rule).state.scores
        assert np.array_equal(moved, here.step(x, y, near.again(state.scores, rule), noise, rule).state.scores)
    with pytest.raises(AttributeError):
        _ = far.theta  # type: ignore[attr-defined]


def test_memory_of_a_state_that_somebody_looks_at_is_not_used_again(name: str) -> None:
    x, y, state, noise = example(DENSE, 5)
    runtime = opened(name, DENSE)
    state = runtime.step(x, y, state, noise, ADAM).state
    views = [state.scores[3:], state.m[::2], state.v.reshape(11, -1)]
    before = [view.copy() for view in views]
    for _ in range(4):
        state = runtime.step(x, y, state, noise, ADAM).state
    assert all(np.array_equal(view, copy) for view, copy in zip(views, before, strict=True))


def test_a_runtime_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"no runtime called 'abacus'; there are .*reference"):
        runtimes.open_runtime("abacus", Bundle(DENSE, BATCH, {}))
    with pytest.raises(UserError, match=r"; graphs for onnx are opened by onnxruntime and onnxruntime_cuda$"):
        runtimes.require("onnx")
    with pytest.raises(UserError, match=r"; graphs for onnx-lean are opened by onnxruntime$"):
        runtimes.require("onnx-lean")
    with pytest.raises(UserError, match=r"; this one is written onnxruntime_cuda$"):
        runtimes.require("onnxruntime-cuda")


def test_a_runtime_whose_package_is_absent_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "missing", lambda name: ["onnxruntime"])
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'seedmask\[onnxruntime\]'"):
        runtimes.open_runtime("onnxruntime", Bundle(DENSE, BATCH, {}))


def test_a_bundle_without_the_graphs_says_which_one_it_lacks() -> None:
    requires("onnxruntime")
    with pytest.raises(BundleError, match=r"no onnx/init\.onnx"):
        runtimes.open_runtime("onnxruntime", Bundle(DENSE, BATCH, {}))


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package on the path with a runtime that cannot be imported."""
    info = tmp_path / "seedmask_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: seedmask-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[seedmask.runtimes]\nbroken = seedmask_broken\n")
    (tmp_path / "seedmask_broken.py").write_text("raise RuntimeError('no beads')\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_package_brings_a_runtime_that_trains_like_ours(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(plugin))
    assert {"abacus", "reference"} <= set(runtimes.names())
    x, y, state, noise = example(DENSE, 5)
    assert_same(*(opened(which, DENSE).step(x, y, state, noise, ADAM) for which in ("abacus", "reference")))
    with pytest.raises(ValueError, match="abacus takes a batch as its graphs do"):
        runtimes.open_runtime("abacus", Bundle(DENSE, BATCH, {}), 1, MicroBatchPlan(4))


@pytest.mark.usefixtures("broken")
def test_a_runtime_that_cannot_be_imported_is_named_and_breaks_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    why = r"broken of seedmask.runtimes \(package seedmask-broken, seedmask_broken\) cannot be imported: .*no beads"
    with pytest.raises(UserError, match=why):
        runtimes.open_runtime("broken", Bundle(DENSE, BATCH, {}))
    with pytest.raises(UserError, match="no runtime called 'onnx'"):  # looks at every runtime for whom to name
        runtimes.require("onnx")
    assert main(["client", "runtimes", "--json"]) == 0
    rows = {row["runtime"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["reference"]["ready"]
    assert not rows["broken"]["ready"]
    assert "no beads" in rows["broken"]["missing"][0]
    assert rows["broken"]["install"] == "pip install --upgrade seedmask-broken, or pip uninstall it"


def test_listing_runtimes_imports_none_of_them() -> None:
    code = "import sys; from edge_client import runtimes; print(runtimes.names()); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'reference'" in done.stdout
    loaded = done.stdout.split()
    assert not {"torch", "onnxruntime", "executorch", "edge_client.runtimes.torch"} & set(loaded)


def test_every_runtime_module_keeps_to_the_contract() -> None:
    for name in runtimes.names():
        module = registry._module(name)
        assert isinstance(module.NEEDS, tuple)
        assert isinstance(module.GRAPHS, tuple)
        assert callable(module.open_runtime)
