"""The web client in a real browser: web/src on onnxruntime-web, against Python's runtimes and training."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from capabilities import FASHION_MNIST, requires

requires("torch", "onnx", "onnxruntime")

import chromium  # noqa: E402
from chromium import PageRuntime  # noqa: E402
from test_runtimes import ADAM, BATCH, DENSE, RULES, SPECS, assert_same, example  # noqa: E402
from torch import nn  # noqa: E402

from aggregator.round import JobState, PresenceChanged, RoundClosed, SendReceipt, UpdateArrived, announcement, step  # noqa: E402
from aggregator.settings import AggregationConfig, RoundsConfig  # noqa: E402
from edge_client.data import Dataset  # noqa: E402
from edge_client.data.idx import read  # noqa: E402
from edge_client.runtimes import DivergedError, State, StepConfig, StepResult, open_runtime  # noqa: E402
from edge_client.training import train  # noqa: E402
from export.make import make_bundle  # noqa: E402
from export.trace import trace  # noqa: E402
from export.zoo import ZOO  # noqa: E402
from seedmask import codec  # noqa: E402
from seedmask.bundle import Bundle  # noqa: E402
from seedmask.chunks import transfer_id  # noqa: E402
from seedmask.codec import by_id  # noqa: E402
from seedmask.mask import Theta  # noqa: E402
from seedmask.seed import fold, key_of, words  # noqa: E402
from seedmask.shared import Shared  # noqa: E402
from seedmask.spec import ModelSpec  # noqa: E402
from seedmask.training import TrainingConfig  # noqa: E402
from seedmask.wire import Announce, Phase, Presence, Status, Update, basis, decode, encode  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.export]
JOB, DEVICE, ROUND = "web", "phone-1", 3


@pytest.fixture(scope="module")
def page() -> Iterator[chromium.Page]:
    requires("browser")
    page = chromium.Page()
    try:
        yield page
    finally:
        page.close()


def zoo(name: str) -> ModelSpec:
    entry = ZOO[name]
    return trace(entry.factory(), name, 0x5EED, entry.input, (0, 255), entry.classes)


def regression() -> ModelSpec:
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 3))
    return trace(net, "squares", 5, (6,), (0, 16), 3, loss="mse")


def smooth(exact: bool = False) -> ModelSpec:
    """Without a kink: bytes and weights of one size make ties in ReLU, and in a round a difference lives on."""
    layers = [nn.Linear(64, 48), nn.GELU(), nn.GroupNorm(4, 48, affine=exact), nn.Linear(48, 10)]
    kinds = {"exact": ("norm", "4.bias"), "frozen": ("1.bias",)} if exact else {}
    return trace(nn.Sequential(nn.Flatten(), *layers), "smooth", 3, (1, 8, 8), (0, 16), 10, **kinds)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spec", SPECS)
def test_every_rule_is_that_of_the_reference(page: chromium.Page, spec: ModelSpec, rule: str) -> None:
    runtime, truth = PageRuntime(page, make_bundle(spec, BATCH)), open_runtime("reference", Bundle(spec, BATCH, {}))
    for n in (BATCH, 7, 1):
        x, y, state, noise = example(spec, n, seed=n)
        found = runtime.step(x, y, state, noise, RULES[rule])
        assert_same(found, truth.step(x, y, state, noise, RULES[rule]))
        assert np.array_equal(found.state.anchor, state.anchor)
        values = state.exact.values
        lean = runtime.step(x, y, State.start(state.scores, RULES[rule], values), noise, RULES[rule]).state
        full = runtime.step(x, y, State.start(state.scores, exact=values), noise, RULES[rule]).state
        assert np.array_equal(lean.scores, full.scores)
        assert all(lean.shape_of(name) == ((spec.d,) if name in RULES[rule].needs else (0,)) for name in ("m", "v"))


def test_squares_and_numbers_as_targets(page: chromium.Page) -> None:
    spec = regression()
    bundle = make_bundle(spec, 8)
    runtime, truth = PageRuntime(page, bundle), open_runtime("reference", bundle)
    for n in (8, 3):
        x, _, state, noise = example(spec, n)
        y = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
        assert_same(runtime.step(x, y, state, noise, ADAM), truth.step(x, y, state, noise, ADAM))
    with pytest.raises(ValueError, match=r"y is Float32Array \[n \* 3\], found Int32Array"):
        runtime.step(x, np.zeros(3, np.int64), state, noise, ADAM)


@pytest.mark.parametrize("spec", SPECS)
def test_logits_are_those_of_the_reference_for_any_number_of_examples(page: chromium.Page, spec: ModelSpec) -> None:
    runtime, truth = PageRuntime(page, make_bundle(spec, BATCH)), open_runtime("reference", Bundle(spec, BATCH, {}))
    x, _, state, _ = example(spec, 2 * BATCH + 3)
    for mask in ((state.scores > 0).astype(np.float32), np.full(spec.d, 0.25, np.float32)):
        expected, found = (each.logits(x, mask, state.exact.values) for each in (truth, runtime))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_wrong_arguments_are_refused_in_words(page: chromium.Page) -> None:
    runtime = PageRuntime(page, make_bundle(DENSE, BATCH))
    x, y, state, noise = example(DENSE, 5)
    lean = State.start(state.scores, RULES["sgd"])
    for arguments, text in [
        ((x[:4], y, state, noise, ADAM), r"x is \[320\], found \[256\]"),
        ((x[:0], y[:0], state, noise, ADAM), "1 .. 16 examples, found 0"),
        ((np.repeat(x, 4, 0), np.repeat(y, 4), state, noise, ADAM), "1 .. 16 examples, found 20"),
        ((x, y + 10, state, noise, ADAM), "classes in 0 .. 9"),
        ((x, y - 10, state, noise, ADAM), "classes in 0 .. 9"),
        ((x, y, replace(state, scores=state.scores[:-1]), noise, ADAM), "scores is"),
        ((x, y, lean, noise, ADAM), r"m is \[9482\], found \[0\]"),
        ((x, y, lean, noise, StepConfig(0.1, "sgd", kl=1.0)), "anchor is"),
        ((x, y, state, noise[1:], ADAM), "noise is"),
        ((x, y, state, noise, StepConfig(0.0)), "rate is above 0"),
        ((x, y, state, noise, StepConfig(1.0, "sgd", 1.0)), "momentum is"),
        ((x, y, state, noise, StepConfig(1.0, "lion")), "optimizer is one of adam, sgd, found lion"),
    ]:
        with pytest.raises(ValueError, match=text):
            runtime.step(*arguments)
    with pytest.raises(ValueError, match="mask is"):
        runtime.logits(x, noise[1:])
    with pytest.raises(ValueError, match=r"x is \[n \* 64\]"):
        runtime.logits(x.ravel()[1:], noise)
    x[2] = np.nan
    with pytest.raises(DivergedError, match="step 4"):
        runtime.step(x, y, state, noise, ADAM)


def test_a_bundle_without_graphs_says_what_it_lacks(page: chromium.Page) -> None:
    with pytest.raises(RuntimeError, match=r"ProtocolError: bundle: the bundle has no onnx/step\.onnx; it has "):
        PageRuntime(page, Bundle(DENSE, BATCH, {}))
    with pytest.raises(RuntimeError, match="bundle: not a bundle"):
        page.call("open", {"name": "x"}, {"bundle": np.zeros(40, np.uint8)})


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST: uint8 [n, 1, 28, 28] and int64 [n]."""
    requires("fashion-mnist")
    x, y = (read(FASHION_MNIST / f"train-{kind}-ubyte.gz")[:2000] for kind in ("images-idx3", "labels-idx1"))
    return x.reshape(-1, 1, 28, 28), y.astype(np.int64)


def off(found: StepResult, truth: StepResult, vector: str) -> np.ndarray:
    """How far each entry of a vector of the state is off, as a share of the largest one."""
    a, b = getattr(found.state, vector), getattr(truth.state, vector)
    return np.abs(a - b) / np.abs(b).max()


@pytest.mark.parametrize("name", ["mlpn", "conv4n", "mixer", "resnet20g"])
def test_steps_on_real_images_are_those_of_native_onnxruntime(
    page: chromium.Page, images: tuple[np.ndarray, np.ndarray], name: str
) -> None:
    """Twelve steps, each from the state in which the page left the one before; m shows the gradient itself.

    Inputs are jittered and batches small, and what counts is the median step: in one of some dozens an activation lies
    within rounding of zero, and two correct programs differ. Adam divides by sqrt(v), which is near zero for some
    weights in the first steps, so one score in a hundred may be further off than its gradient is.
    """
    spec = zoo(name)
    bundle = make_bundle(spec, 8)
    runtime, native = PageRuntime(page, bundle), open_runtime("onnxruntime", bundle, 1)
    x, y = images
    rng = np.random.default_rng(1)
    gradients, scores = [], []
    for rule in (StepConfig(0.05), StepConfig(0.05, mean=True, kl=3.0)):
        state = State.start(rng.normal(size=spec.d).astype(np.float32), rule)
        for at in range(0, 48, 8):
            part = slice(at, at + 8 if at else 5)  # a short batch first
            batch = spec.normalise(x[part]) + rng.normal(scale=1e-3, size=x[part].shape).astype(np.float32)
            noise = rng.random(spec.d, np.float32)
            found, truth = (each.step(batch, y[part], state, noise, rule) for each in (runtime, native))
            assert found.loss == pytest.approx(truth.loss, rel=1e-5)
            assert found.correct == truth.correct
            gradients.append(max(off(found, truth, moment).max() for moment in ("m", "v")))
            scores.append(off(found, truth, "scores"))
            state = found.state
    assert np.median(gradients) <= 2e-6
    assert np.median([np.quantile(each, 0.99) for each in scores]) <= 2e-6
    assert max(*gradients, *(each.max() for each in scores)) <= 1e-2


def announced(spec: ModelSpec, theta: Theta, work: TrainingConfig, round_: int = ROUND) -> Announce:
    nothing = bytes(16)
    return Announce(
        *(JOB, round_, 9, Phase.OPEN, spec.digest, theta.digest(), nothing, 1, nothing, nothing, 0, 0),
        *(work, (), ""),
    )


def round_in(
    page: chromium.Page, spec: ModelSpec, announce: Announce, theta: Theta, data: Dataset, device: str, **head: Any
) -> dict[str, Any]:
    """What page.mjs says of a whole round: its frame, its scores, and the masks that its own bytes decode to."""
    arrays = {
        "frame": np.frombuffer(encode(announce), np.uint8),
        "level": theta.level,
        "values": theta.exact,
        "x": data.x,
        "y": chromium.targets(data.y),
    }
    head = {"name": spec.name, "device": device, "max_level": theta.max_level, "clamp": theta.clamp, **head}
    return page.call("round", head, arrays)


class Followed:
    """The randomness that page.mjs uses if it is given a seed, as `train` asks for it."""

    def __init__(self, seed: int) -> None:
        self.key, self.calls = key_of(seed), 0

    def uniforms(self, n: int) -> np.ndarray:
        self.calls += 1
        drawn = words(fold(self.key, self.calls - 1), n) >> np.uint32(8)
        return drawn.astype(np.float32) * np.float32(2.0**-24)

    def permutation(self, n: int) -> np.ndarray:
        order, uniforms = np.arange(n), self.uniforms(n)
        for i in range(n - 1, 0, -1):
            j = int(float(uniforms[i]) * (i + 1))
            order[[i, j]] = order[[j, i]]
        return order

    def random(self, dtype: Any, out: np.ndarray) -> None:
        assert dtype is np.float32
        out[:] = self.uniforms(out.size)


@pytest.mark.parametrize(
    "work",
    [
        TrainingConfig(
            epochs=3, learning_rate=30.0, optimizer="sgd", momentum=0.5, rate_decay=0.1, straight_through="theta"
        ),
        TrainingConfig(epochs=3, optimizer="sgd", learning_rate=20.0, mean_epochs=2, sparsity=20.0),
        TrainingConfig(epochs=2, learning_rate=0.05, mean_epochs=65535, kl=3.0),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_a_rounds_training_is_that_of_the_python_client(page: chromium.Page, work: TrainingConfig, exact: bool) -> None:
    rng = np.random.default_rng(4)
    spec = smooth(exact)
    bundle = make_bundle(spec, BATCH)
    PageRuntime(page, bundle)
    data = Dataset(rng.integers(0, 17, (41, *spec.input)).astype(np.uint8), rng.integers(0, 10, 41))
    values = spec.begin() + rng.integers(-999, 999, spec.e).astype(np.int32)
    theta = Theta(rng.integers(1, 10, spec.d).astype(np.uint16), 10, exact=values)
    work = replace(work, exact_rate=0.02)
    found = round_in(page, spec, announced(spec, theta, work), theta, data, DEVICE, seed=12)
    native = open_runtime("onnxruntime", bundle, 1)
    same: Any = Followed(12)
    truth = train(native, spec, data, theta, work, BATCH, same, round_=ROUND)
    assert truth is not None
    assert found["steps"] == 3 * work.epochs
    assert found["correct"] == truth.correct
    assert found["loss"] == pytest.approx(truth.loss, rel=1e-4)
    assert np.abs(truth.scores - theta.logit()).max() > 0.05
    assert np.abs(found["scores"] - truth.scores).max() <= 1e-4 * np.abs(truth.scores).max()
    update = decode(found["frame"].tobytes())
    assert isinstance(update, Update)
    if not exact:
        assert update.exact == b""
        return
    sent = codec.exact.decode(update.exact, values, codec.exact.REACH) / 4096
    assert np.abs(truth.exact - theta.values()).max() > 0.01
    assert np.abs(sent - truth.exact).max() <= 2e-4


def test_the_optimiser_goes_on_from_round_to_round_if_the_job_says_so(page: chromium.Page) -> None:
    rng = np.random.default_rng(4)
    spec = smooth()
    bundle = make_bundle(spec, BATCH)
    PageRuntime(page, bundle)
    native = open_runtime("onnxruntime", bundle, 1)
    data = Dataset(rng.integers(0, 17, (30, *spec.input)).astype(np.uint8), rng.integers(0, 10, 30))
    theta = Theta(rng.integers(1, 10, spec.d).astype(np.uint16), 10)
    for keep in (True, False):
        work = TrainingConfig(epochs=2, learning_rate=0.05, mean_epochs=2, keep_optimizer=keep)
        kept: State | None = None
        for again in (False, True):
            found = round_in(page, spec, announced(spec, theta, work), theta, data, DEVICE, seed=1, again=again)
            same: Any = Followed(1)
            before: list[State] = [kept] if keep and kept is not None else []
            truth = train(native, spec, data, theta, work, BATCH, same, round_=ROUND, kept=before)
            assert truth is not None
            assert np.abs(found["scores"] - truth.scores).max() <= 1e-4 * np.abs(truth.scores).max()
            kept = truth.state


def test_a_round_can_be_stopped(page: chromium.Page) -> None:
    PageRuntime(page, make_bundle(DENSE, BATCH))
    theta = Theta.even(DENSE.d)
    data = Dataset(np.zeros((40, *DENSE.input), np.uint8), np.zeros(40, np.int64))
    assert round_in(page, DENSE, announced(DENSE, theta, TrainingConfig()), theta, data, DEVICE, stop=4) == {
        "stopped": 5
    }


@pytest.mark.parametrize("name", codec.NAMES)
def test_the_masks_of_a_round_are_what_python_decodes_and_follow_the_scores(page: chromium.Page, name: str) -> None:
    rng = np.random.default_rng(6)
    PageRuntime(page, make_bundle(DENSE, BATCH))
    data = Dataset(rng.integers(0, 17, (48, *DENSE.input)).astype(np.uint8), rng.integers(0, 10, 48))
    theta = Theta(rng.integers(0, 11, DENSE.d).astype(np.uint16), 10)
    coder = by_id(codec.NAMES[name])
    work = TrainingConfig(epochs=8, learning_rate=0.2, codec=name, masks=3, mean_epochs=8, kappa=2.0, max_blocks=1100)
    announce = announced(DENSE, theta, work)
    found = round_in(page, DENSE, announce, theta, data, DEVICE, seed=3)
    update = decode(found["frame"].tobytes())
    assert isinstance(update, Update)
    assert (update.round, update.samples, update.codec) == (ROUND, 48, coder.ID)
    assert update.basis == basis(JOB, DENSE.digest, theta.digest())
    assert update.correct == found["correct"]
    assert update.loss == int(found["loss"] * 1e6 + 0.5)
    masks = []
    for index, payload in enumerate(update.payloads):
        shared = Shared(DENSE.seed, ROUND, JOB, DEVICE, index)
        mask = coder.decode(payload, theta, shared, work.max_blocks)
        assert np.array_equal(mask, found[f"mask{index}"])
        masks.append(mask)
    assert not np.array_equal(masks[0], masks[1])
    # Draws of what was learnt: where training moved a probability, the masks moved along, as far as Python's do.
    before = theta.q16() / 65536
    learnt = 1 / (1 + np.exp(-found["scores"].astype(np.float64))) - before
    shared, plan = Shared(DENSE.seed, ROUND, JOB, "another"), work.plan()
    ours = [coder.decode(coder.draw(found["scores"], theta, shared, rng, plan), theta, shared) for _ in range(3)]
    slopes = [float((np.mean(drawn, axis=0) - before) @ learnt / (learnt @ learnt)) for drawn in (masks, ours)]
    assert slopes[0] == pytest.approx(slopes[1], abs=0.12)
    assert slopes[0] > 0.7


def test_the_aggregator_takes_what_pages_send_and_the_model_learns(
    page: chromium.Page, images: tuple[np.ndarray, np.ndarray]
) -> None:
    """Two devices, one after the other in this page, three rounds of the aggregator's own state machine."""
    spec = zoo("mlpn")
    bundle = make_bundle(spec, 16)
    PageRuntime(page, bundle)
    x, y = images
    devices = {"phone-1": slice(0, 400), "phone-2": slice(400, 800)}
    work = TrainingConfig(epochs=2, mean_epochs=2, kl=3.0)
    job = JobState(
        JOB,
        spec.digest,
        spec.d,
        spec.seed,
        RoundsConfig(devices=2, total=3),
        work,
        AggregationConfig(),
        Theta.even(spec.d),
    )
    statuses, closed = [], []
    for device in devices:
        job, _ = step(job, PresenceChanged(Presence(device, True, 1, spec.digest, 400, "onnxruntime-web", "web/0.1")))
    while job.phase is Phase.OPEN:
        announce, theta = announcement(job, 1, 1 if job.delta else 0), job.theta
        for device, part in devices.items():
            found = round_in(page, spec, announce, theta, Dataset(x[part], y[part]), device)
            frame = found["frame"].tobytes()
            update = decode(frame)
            assert isinstance(update, Update)
            assert len(frame) < spec.d / 8 / 2  # half of one bit a weight, at the very most
            job, effects = step(job, UpdateArrived(device, transfer_id(frame), update, frame))
            statuses += [effect.receipt.status for effect in effects if isinstance(effect, SendReceipt)]
            closed += [effect for effect in effects if isinstance(effect, RoundClosed)]
    assert statuses == [Status.ACCEPTED] * 6
    native = open_runtime("onnxruntime", bundle, 1)
    test = spec.normalise(x[1000:])
    predicted = native.logits(test, (job.theta.q16() / 65536).astype(np.float32)).argmax(1)
    assert (predicted == y[1000:]).mean() > 0.65
    # The same in the page: a phone can show what the model knows.
    shown = PageRuntime(page, bundle).logits(test[:50], closed[-1].mask.astype(np.float32)).argmax(1)
    assert np.array_equal(shown, native.logits(test[:50], closed[-1].mask.astype(np.float32)).argmax(1))


def test_private_randomness_is_uniform_and_never_the_same(page: chromium.Page) -> None:
    first, second = (page.call("chance", {"count": 100_000}, {})["out"] for _ in range(2))
    for drawn in (first, second):
        assert 0 <= drawn.min() < 1e-3
        assert 0.999 < drawn.max() < 1
        assert np.histogram(drawn, 20, (0, 1))[0] == pytest.approx(5000, abs=400)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert np.unique(first).size > 99_000


@pytest.mark.requires("node")
def test_the_guides_example_imports_what_there_is() -> None:
    guide = (chromium.ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    names = re.findall(r'^import (\{.*\}) from "\./seedmask\.mjs";$', guide, re.M)
    assert names
    code = "\n".join(f'import {each} from "{(chromium.WEB / "index.mjs").as_uri()}";' for each in names)
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.requires("node")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": bytes(32)}, "field: job web trains model 000000000000, our bundle is model "),
        ({"theta": bytes(16)}, "theta-mismatch: round 3 begins from 000000000000, found "),
        ({"selected": ("phone-2",)}, "field: round 3 does not ask phone-1"),
        ({"training": TrainingConfig(codec="#77")}, "kind: codec 77 is unknown"),
        ({}, "it trains"),
    ],
)
def test_a_round_that_is_not_ours_is_refused_before_training(change: dict[str, Any], error: str) -> None:
    announce = replace(announced(DENSE, Theta.even(DENSE.d), TrainingConfig()), **change)
    web = (chromium.WEB / "index.mjs").as_uri()
    code = f"""
        import {{ Theta, decode, readSpec, trainRound }} from "{web}";
        const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
        const spec = readSpec(bytes("{DENSE.canonical().hex()}"));
        const step = () => {{ throw new Error("it trains"); }};
        const data = {{ x: new Uint8Array(spec.input.reduce((a, b) => a * b)), y: [0] }};
        const theta = new Theta(new Uint16Array(spec.d).fill(1), 2);
        const round = decode(bytes("{encode(announce).hex()}"));
        await trainRound({{ spec, bundle: {{ batch: 8 }}, step }}, data, round, theta, "{DEVICE}")
            .catch((error) => console.log(error.message));
    """
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(error)
