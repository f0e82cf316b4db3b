"""Tensors that have no mask, through the whole system: exact values on the wire, in rounds, in files; frozen weights.

What each runtime computes with them is held to the reference in tests/test_runtimes.py, their bytes in the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from capabilities import requires
from hypothesis import given
from hypothesis import strategies as st

from aggregator.config import RunConfig
from aggregator.finished import finished
from aggregator.history import job_result
from aggregator.round import Effect, JobState, PresenceChanged, SendReceipt, UpdateArrived, announcement, resume, step
from aggregator.rules import FedPM, Votes
from aggregator.settings import AggregationConfig, RoundsConfig
from aggregator.store import Store
from edge_client import session as device
from edge_client.data import Dataset
from edge_client.runtimes import State, StepConfig, open_runtime, step_exact
from edge_client.session import Session, Train
from edge_client.training import train, update_of
from seedmask import cli, model, topics, wire
from seedmask.bundle import Bundle
from seedmask.chunks import split, transfer_id
from seedmask.codec import Plan, counts, delta, exact, hmrc, packed
from seedmask.describe import size_lines
from seedmask.errors import BundleError, CodecError, SpecError
from seedmask.io.inspect import describe
from seedmask.io.link import Connected, Received
from seedmask.layers import Flatten, GroupNorm, LayerNorm, Linear, ReLU, RMSNorm
from seedmask.mask import EXACT_LIMIT, EXACT_ONE, I32, Theta
from seedmask.seed import sign_bits
from seedmask.shared import Shared
from seedmask.spec import ModelSpec, Tensor, from_json, scale_bits
from seedmask.training import TrainingConfig
from seedmask.wire import Presence, Status, Update, basis
from sim.fleet import Faults, Fleet
from sim.partition import split as partition
from sim.pool import Pool

HALF = scale_bits(0.5)
SPEC = ModelSpec(
    "kinds",
    0x7E57,
    (1, 4, 4),
    (0, 255),
    4,
    (
        Flatten(),
        Linear("a.weight", "a.bias"),
        GroupNorm(1, "n.weight", "n.bias"),
        ReLU(),
        Linear("f.weight", None),
        ReLU(),
        Linear("b.weight", "b.bias"),
    ),
    (
        Tensor("a.weight", (16, 16), HALF),
        Tensor("a.bias", (16,), HALF, "frozen"),
        Tensor("n.weight", (16,), kind="exact", start=1),
        Tensor("n.bias", (16,), kind="exact"),
        Tensor("f.weight", (16, 16), HALF, "frozen"),
        Tensor("b.weight", (4, 16), HALF),
        Tensor("b.bias", (4,), kind="exact"),
    ),
)
D, E = SPEC.d, SPEC.e
NAMES = ["pi-1", "pi-2", "pi-3"]


def ints(*values: int) -> I32:
    return np.array(values, np.int32)


# --- the spec ---


def test_each_kind_has_a_vector_of_its_own_and_signs_are_one_stream() -> None:
    assert (D, E, SPEC.count("frozen")) == (256 + 64, 36, 16 + 256)
    assert SPEC.offsets["b.weight"] == (SPEC.tensors[5], 256)
    assert SPEC.offsets["f.weight"][1] == 16
    assert SPEC.offsets["b.bias"][1] == 32
    bits = sign_bits(SPEC.seed, D + 272)
    parts = SPEC.parts(SPEC.weights(), SPEC.frozen(), SPEC.even().values())
    assert np.array_equal(parts["a.weight"].ravel() < 0, bits[:256])
    assert np.array_equal(parts["a.bias"] < 0, bits[256:272])
    assert np.array_equal(parts["f.weight"].ravel() < 0, bits[272:528])
    assert np.array_equal(parts["b.weight"].ravel() < 0, bits[528:])
    assert parts["n.weight"].tolist() == [1] * 16
    assert parts["b.bias"].tolist() == [0] * 4


def test_a_spec_of_masked_tensors_alone_keeps_its_bytes(tiny_spec: ModelSpec) -> None:
    assert tiny_spec.digest.hex()[:16] == "d1cfb07f84ae0cff"
    assert b"kind" not in tiny_spec.canonical()
    assert from_json(SPEC.canonical()) == SPEC


def changed(**tensors: Tensor) -> ModelSpec:
    by_name = {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    return replace(SPEC, tensors=tuple(by_name.get(tensor.name, tensor) for tensor in SPEC.tensors))


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (Tensor("b.bias", (4,), HALF, "dense"), "of kind 'dense'; there are masked, frozen, exact"),
        (Tensor("b.bias", (4,), HALF, "exact"), "scale of b.bias"),
        (Tensor("b.bias", (4,), 0, "exact", 2), "start of b.bias"),
        (Tensor("b.bias", (4,), HALF, "frozen", 1), "start of b.bias"),
        (Tensor("n.bias", (16,), HALF), "n.bias of a groupnorm is exact or left out, found masked"),
        (Tensor("n.weight", (16,), HALF, "frozen"), "n.weight of a groupnorm is exact or left out, found frozen"),
        (Tensor("n.weight", (4, 4), kind="exact"), r"n.weight is \[4, 4\], expected \[16\]"),
    ],
)
def test_a_tensor_that_cannot_be_what_it_says_is_named(tensor: Tensor, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        changed(**{tensor.name.replace(".", "_"): tensor})


def test_exact_tensors_are_small_and_something_is_masked() -> None:
    def made(inputs: int, weight: Tensor) -> ModelSpec:
        tensors = (weight, Tensor("b", (2,), HALF, "masked" if inputs > 2 else "frozen"))
        return ModelSpec("wide", 1, (inputs,), (0, 1), 2, (Linear("w", "b"),), tensors)

    with pytest.raises(SpecError, match="at most 65536 exact values in all, found 80000"):
        made(40000, Tensor("w", (2, 40000), kind="exact"))
    with pytest.raises(SpecError, match="1 masked weight at least"):
        made(2, Tensor("w", (2, 2), kind="exact"))


@pytest.mark.parametrize("layer", [LayerNorm(1, "s", "t"), RMSNorm(1, "s"), GroupNorm(2, None, "s")])
def test_scales_and_shifts_have_the_shape_of_what_they_go_with(layer: LayerNorm | RMSNorm | GroupNorm) -> None:
    for size in (4, 3):
        tensors = [Tensor(name, (size,), kind="exact") for name in layer.tensors]

        def made(tensors: list[Tensor] = tensors) -> ModelSpec:
            last = Linear("w", None)
            return ModelSpec("n", 1, (4,), (0, 1), 2, (layer, last), (*tensors, Tensor("w", (2, 4), HALF)))

        if size == 4:
            assert made().e == 4 * len(tensors)
        else:
            with pytest.raises(SpecError, match=r"layer 0 .*expected \[4\]"):
                made()


# --- the codec, and theta with exact values ---

VALUES = st.lists(st.tuples(*[st.integers(-EXACT_LIMIT, EXACT_LIMIT)] * 2), max_size=8)


@given(VALUES)
def test_exact_values_come_back_and_no_part_of_their_bytes_does(pairs: list[tuple[int, int]]) -> None:
    before, after = (np.array(side, np.int32) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    payload = exact.encode(after, before)
    assert np.array_equal(exact.decode(payload, before), after)
    for n in range(len(payload)):
        with pytest.raises(CodecError):
            exact.decode(payload[:n], before)
    with pytest.raises(CodecError):
        exact.decode(payload + b"\0", before)


def test_small_moves_take_a_byte_and_far_ones_are_refused() -> None:
    assert exact.encode(ints(3, -64, 65536), ints(0, 0, 65599)).hex() == "067f7d"
    far = exact.encode(ints(exact.REACH + 1), ints(0))
    assert exact.decode(far, ints(0)).tolist() == [exact.REACH + 1]
    for payload, before in ((far, 0), (b"\2", EXACT_LIMIT)):
        with pytest.raises(CodecError, match=f"moves {exact.REACH} at most, to {EXACT_LIMIT} at most"):
            exact.decode(payload, ints(before), exact.REACH)


def test_a_device_reports_the_nearest_unit_within_reach() -> None:
    values = np.array([0.5 / EXACT_ONE, 1.6 / EXACT_ONE, 100.0, -100.0, 300_000.0], np.float32)
    before = ints(0, 0, 0, 0, EXACT_LIMIT - 5)
    assert exact.quantised(values, before).tolist() == [0, 2, exact.REACH, -exact.REACH, EXACT_LIMIT]


def test_other_exact_values_are_another_theta() -> None:
    plain, zero, one = Theta.even(4), Theta.even(4, exact=ints(0)), Theta.even(4, exact=ints(1))
    assert len({theta.digest() for theta in (plain, zero, one)}) == 3
    assert one.values().tolist() == [2.0**-12]
    for wrong in (np.zeros(1, np.int64), ints(EXACT_LIMIT + 1)):
        with pytest.raises(ValueError, match="exact values"):
            Theta.even(4, exact=wrong)  # type: ignore[arg-type]


def test_the_whole_and_the_difference_carry_them() -> None:
    rng = np.random.default_rng(1)
    base = Theta(rng.integers(0, 4, D).astype(np.uint16), 3, exact=SPEC.begin())
    theta = Theta(
        rng.integers(0, 4, D).astype(np.uint16), 3, exact=SPEC.begin() + rng.integers(-99, 99, E).astype("i4")
    )
    assert counts.decode(counts.encode(theta), D, E).digest() == theta.digest()
    assert delta.decode(delta.encode(theta, base), base).digest() == theta.digest()
    assert not delta.possible(theta, Theta(base.level, 3))
    for e in (0, E - 1, E + 1):
        with pytest.raises(CodecError):
            counts.decode(counts.encode(theta), D, e)


# --- training ---


def test_what_is_learnt_is_sent_and_frozen_weights_stay(tiny_data: Dataset) -> None:
    runtime = open_runtime("reference", Bundle(SPEC, 8, {}), 1)
    theta, work = SPEC.even(), TrainingConfig(epochs=2, mean_epochs=2, exact_rate=0.01)
    rng = np.random.default_rng(1)
    outcome_ = train(runtime, SPEC, tiny_data, theta, work, 8, rng)
    assert outcome_ is not None
    assert np.abs(outcome_.exact - theta.values()).max() > 0.01
    nothing = bytes(16)
    announce = wire.Announce(
        *("j", 1, 1, wire.Phase.OPEN, SPEC.digest, theta.digest(), nothing, 1, nothing, nothing, 0, 0, work, (), "")
    )
    made = update_of(announce, "pi-1", SPEC, theta, outcome_, 96, rng)
    sent = exact.decode(made.exact, theta.exact, exact.REACH)
    assert np.abs(sent / EXACT_ONE - outcome_.exact).max() <= 0.5001 / EXACT_ONE
    assert wire.decode(wire.encode(made)) == made


def test_exact_values_have_a_rate_of_their_own_that_decays_alike() -> None:
    work = TrainingConfig(exact_rate=0.002, rate_decay=0.5)
    assert [work.rate_of_exact(r) for r in (1, 2)] == [0.002, 0.001]


@pytest.mark.parametrize(
    "rule", [StepConfig(0.1, exact_rate=0.01), StepConfig(1.0, "sgd", exact_rate=0.01), StepConfig(1.0, "sgd", 0.5)]
)
def test_the_gradient_is_that_of_the_loss(tiny_data: Dataset, rule: StepConfig) -> None:
    """By differences of the loss itself, in float64 through the reference's network."""
    runtime = open_runtime("reference", Bundle(SPEC, 8, {}), 1)
    rng = np.random.default_rng(2)
    x, y = SPEC.normalise(tiny_data.x[:8]), tiny_data.y[:8]
    values = (SPEC.even().values() + rng.normal(size=E) * 0.1).astype(np.float32)
    state = State.start(rng.normal(size=D).astype(np.float32), rule, values)
    noise = np.full(D, 0.5, np.float32)

    def loss(at: np.ndarray) -> float:
        moved = replace(state, exact=replace(state.exact, values=at.astype(np.float32)))
        return runtime.step(x, y, moved, noise, rule).loss

    h = 1e-2
    slope = [(loss(values + h * row) - loss(values - h * row)) / (2 * h) for row in np.eye(E)]
    after = runtime.step(x, y, state, noise, rule).state.exact
    gradient = after.m / (1 if rule.optimizer == "sgd" else 0.1)
    assert np.abs(gradient - slope).max() <= 2e-2 * np.abs(slope).max()
    move = rule.exact_rate * (np.sign(gradient) if rule.optimizer == "adam" else gradient)
    assert np.abs(values - move - after.values).max() <= 1e-5


def test_the_optimiser_of_exact_values_goes_on_only_where_the_job_says_so() -> None:
    rule, values = StepConfig(0.1), np.ones(E, np.float32)
    state = State.start(np.zeros(D, np.float32), rule, values)
    stepped = replace(state, t=1, exact=step_exact(state.exact, np.full(E, 2.0), rule, 1))
    again = stepped.again(np.zeros(D, np.float32), rule, values)
    assert again.t == 1
    assert again.exact.values is values
    assert again.exact.m == pytest.approx(0.2)
    assert State.start(np.zeros(D, np.float32), rule, values).exact.m.tolist() == [0] * E
    assert stepped.again(np.zeros(D, np.float32), rule, values[:3]).t == 0


# --- the round ---


def job_of(work: TrainingConfig = TrainingConfig(), aggregation: AggregationConfig = AggregationConfig()) -> JobState:
    rounds = RoundsConfig(devices=3, total=3)
    job = JobState("fashion", SPEC.digest, D, SPEC.seed, rounds, work, aggregation, SPEC.even())
    for name in NAMES:
        job, _ = step(job, PresenceChanged(Presence(name, True, 1, SPEC.digest, 100, "reference", "0.1")))
    return job


def update(job: JobState, name: str, moved: int = 0, **changes: object) -> Update:
    rng = np.random.default_rng([job.round, NAMES.index(name)])
    shared = Shared(SPEC.seed, job.round, job.name, name)
    payload = hmrc.draw(rng.normal(size=D).astype(np.float32) / 4, job.theta, shared, rng, Plan(5))
    after = job.theta.exact + np.arange(E, dtype=np.int32) * 7 + moved
    made = Update(
        *(job.round, basis(job.name, SPEC.digest, job.theta.digest()), 100, 1, 9, hmrc.ID, (payload,)),
        exact.encode(after, job.theta.exact),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def arrived(name: str, made: Update) -> UpdateArrived:
    frame = wire.encode(made)
    return UpdateArrived(name, transfer_id(frame), made, frame)


def reply(effects: list[Effect]) -> tuple[Status, str]:
    (receipt,) = [effect.receipt for effect in effects if isinstance(effect, SendReceipt)]
    return receipt.status, receipt.reason


def played(job: JobState, order: list[str], moved: dict[str, int]) -> JobState:
    for name in order:
        job, effects = step(job, arrived(name, update(job, name, moved[name])))
        assert reply(effects)[0] is Status.ACCEPTED
    return job


def test_exact_values_move_by_the_mean_in_any_order() -> None:
    moved = {"pi-1": 1, "pi-2": 0, "pi-3": -5}
    jobs = [played(job_of(), order, moved) for order in (NAMES, NAMES[::-1])]
    assert len({job.theta.digest() for job in jobs}) == 1
    wanted = SPEC.begin() + np.arange(E) * 7 - 1  # -4 / 3 is nearest to -1
    assert jobs[0].theta.exact.tolist() == wanted.tolist()
    assert jobs[0].round == 2


def test_the_mean_weighs_devices_as_their_masks_do() -> None:
    """To the nearest unit, halves up, by integers; masks of one update weigh it once."""
    theta = Theta.even(2, exact=ints(10, 10, 10))
    votes = Votes.empty(2, 3)
    for weight, moved in ((3, (1, -1, 0)), (1, (0, 1, -2))):
        for _ in range(2):
            votes = votes.with_mask(np.zeros(2, np.uint8), weight)
        votes = votes.with_exact(np.array(moved, np.int64), weight)
    assert FedPM().conclude(votes, theta, b"", AggregationConfig())[0].exact.tolist() == [
        11,
        10,
        10,
    ]  # 3/4, -2/4 and -2/4
    assert FedPM().conclude(votes, theta, b"", AggregationConfig(carry=0.5))[0].exact.tolist() == [11, 10, 10]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (b"", "codec: exact: 36 values expected, found 0 bytes"),
        (b"\0" * (E - 1), "codec: exact: 36 values expected, found 35 bytes"),
        (b"\0" * (E + 1), "codec: exact: 36 values expected, found 1 bytes after them"),
        (b"\x80" * E, "codec: the number at byte 0 is longer than 5 bytes"),
        (exact.encode(ints(*[exact.REACH + 1] * E), ints(*[0] * E)), "codec: exact: a value moves 16384 at most"),
    ],
)
def test_exact_values_that_nobody_can_have_learnt_are_refused_with_a_receipt(made: bytes, says: str) -> None:
    job = job_of()
    after, effects = step(job, arrived("pi-1", update(job, "pi-1", exact=made)))
    status, reason = reply(effects)
    assert status is Status.INVALID
    assert reason.startswith(says)
    assert (after.accepted, after.votes.digest()) == ({}, job.votes.digest())


def test_exact_values_of_a_model_that_has_none_are_refused(tiny_spec: ModelSpec) -> None:
    theta = tiny_spec.even()
    job = JobState(
        "j",
        tiny_spec.digest,
        tiny_spec.d,
        1,
        RoundsConfig(),
        TrainingConfig(codec=packed.NAME),
        AggregationConfig(),
        theta,
    )
    job, _ = step(job, PresenceChanged(Presence("pi-1", True, 1, tiny_spec.digest, 9, "reference", "0.1")))
    mask = packed.encode(np.zeros(tiny_spec.d, np.uint8), theta)
    made = Update(1, basis("j", tiny_spec.digest, theta.digest()), 9, 1, 1, packed.ID, (mask,), b"\0")
    _, effects = step(job, arrived("pi-1", made))
    assert reply(effects) == (Status.INVALID, "codec: exact: 0 values expected, found 1 bytes after them")


def test_an_update_made_under_other_exact_values_is_stale() -> None:
    job = job_of()
    other = replace(job, theta=Theta.even(D, exact=SPEC.begin() + ints(*[1] * E)))
    _, effects = step(job, arrived("pi-1", update(other, "pi-1")))
    assert reply(effects)[0] is Status.STALE


@pytest.mark.parametrize("kind", ["whole", "relay", "delta"])
def test_a_device_has_the_rounds_exact_values_however_theta_comes(kind: str) -> None:
    """The second round: by the masks that made it, by what changed, or as a whole for who missed the first."""
    aggregation = AggregationConfig(downlink=4, relay=kind == "relay")
    before = job_of(aggregation=aggregation)
    job = played(before, NAMES, dict.fromkeys(NAMES, 3))
    if kind == "delta":
        job = replace(job, delta=delta.encode(job.theta, before.theta))
    assert kind != "relay" or job.delta[:1] == b"\x12"
    own = Session("fashion", "pi-9", SPEC.digest, D, SPEC.seed, held=None if kind == "whole" else before.theta, e=E)
    own, _ = device.step(own, Connected())
    blob, topic = (job.blob, topics.theta) if kind == "whole" else (job.delta, topics.delta)
    parts = split(blob, 64)
    said = announcement(job, len(split(job.blob, 64)), len(split(job.delta, 64)) if job.delta else 0)
    effects: list[object] = []
    for message, where in ((said, topics.round_("fashion")), *((c, topic("fashion", 2, c.index)) for c in parts)):
        own, more = device.step(own, Received(where, wire.encode(message)))
        effects += more
    (begun,) = [effect for effect in effects if isinstance(effect, Train)]
    assert begun.theta.digest() == job.theta.digest()
    assert begun.theta.exact.tolist() == (SPEC.begin() + np.arange(E) * 7 + 3).tolist()


def test_a_device_holds_the_first_rounds_values_before_it_hears_anything() -> None:
    job = job_of()
    own = Session("fashion", "pi-1", SPEC.digest, D, SPEC.seed, held=SPEC.even(), e=E)
    said = wire.encode(announcement(job, 1))
    _, effects = device.step(own, Received(topics.round_("fashion"), said))
    assert [effect.theta.exact.tolist() for effect in effects if isinstance(effect, Train)] == [SPEC.begin().tolist()]


def test_a_restart_loses_no_exact_value(tmp_path: Path, no_sync: None) -> None:
    path = tmp_path / "job.sqlite"
    first = Store(path, "fashion", SPEC.digest, SPEC.canonical(), D, E)
    job = job_of()
    first.opened(1, job.blob, (), 3, b"", job.training)
    made = [update(job, name, 5) for name in NAMES[:2]]
    live = job
    for name, one in zip(NAMES, made, strict=False):
        frame = wire.encode(one)
        first.counted(name, transfer_id(frame), one, frame)
        live, _ = step(live, arrived(name, one))
    first.close()
    second = Store(path, "fashion", SPEC.digest, SPEC.canonical(), D, E)
    known = second.resume()
    assert known is not None
    assert known.theta.digest() == job.theta.digest()
    back = resume(replace(job, theta=known.theta), known.selected, known.quorum, known.updates, known.delta)
    assert back.votes.digest() == live.votes.digest()
    ended = [step(each, arrived("pi-3", update(each, "pi-3", 5)))[0] for each in (live, back)]
    assert ended[0].theta.digest() == ended[1].theta.digest()
    second.closed(1, counts.encode(ended[0].theta), {"round": 1})
    second.close()
    assert job_result(path).recent[0].exact.tolist() == ended[0].theta.exact.tolist()


# --- a fleet ---


@pytest.fixture(scope="module")
def parts(tiny_data: Dataset) -> list[Dataset]:
    return [
        Dataset(tiny_data.x[p], tiny_data.y[p]) for p in partition("iid", tiny_data.y, 4, 0, np.random.default_rng(1))
    ]


@pytest.fixture(scope="module")
def pool(parts: list[Dataset]) -> Iterator[Pool]:
    with Pool(Bundle(SPEC, 8, {}), parts, "reference", 1, 1) as pool:
        yield pool


def fleet_of(home: Path, pool: Pool, parts: list[Dataset], faults: Faults, per_round: int, relay: bool) -> Fleet:
    rounds = RoundsConfig(total=4, devices=4, per_round=per_round, deadline_s=300)
    work = TrainingConfig(epochs=2, exact_rate=0.02, mean_epochs=2)
    learning = AggregationConfig(relay=relay, average_last=2)
    config = RunConfig("sim", home / "x", home / "state", rounds, work, learning)
    return Fleet(config, home / "devices", Bundle(SPEC, 8, {}), parts, pool, "reference", 3, faults)


@pytest.mark.parametrize(
    ("faults", "per_round", "relay"),
    [(Faults(), 0, True), (Faults(), 2, True), (Faults(), 0, False), (Faults(0.3, 0.4), 0, True)],
    ids=["relayed", "some unselected", "not relayed", "faults"],
)
def test_a_fleet_learns_exact_values_whatever_happens(
    tmp_path: Path, parts: list[Dataset], pool: Pool, no_sync: None, faults: Faults, per_round: int, relay: bool
) -> None:
    thetas: list[Theta] = []
    fleet = fleet_of(tmp_path, pool, parts, faults, per_round, relay)
    fleet.run(lambda record, theta, seconds: thetas.append(theta))
    assert len(thetas) == 4
    assert all(not np.array_equal(theta.exact, SPEC.begin()) for theta in thetas)
    assert all(one.client.finished and not one.client.session.pending for one in fleet.devices)
    made = model.load(tmp_path / "state" / "model.smk")
    assert made.exact.tolist() == ((thetas[2].exact.astype(int) + thetas[3].exact + 1) // 2).tolist()
    if not (per_round or faults.cut or faults.crash):
        held = {one.client.session.held.digest() for one in fleet.devices if one.client.session.held}
        assert len(held) == 1
        again = fleet_of(tmp_path / "again", pool, parts, faults, per_round, relay)
        repeated: list[bytes] = []
        again.run(lambda record, theta, seconds: repeated.append(theta.digest()))
        assert repeated == [theta.digest() for theta in thetas]


# --- the finished model ---


def finished_model() -> model.FinishedModel:
    rng = np.random.default_rng(4)
    moved = rng.integers(-2000, 2000, E).astype(np.int32)
    return model.FinishedModel(SPEC, rng.integers(0, 2, D).astype(np.uint8), SPEC.begin() + moved)


def test_the_file_holds_mask_and_exact_values_and_says_what_they_weigh(tmp_path: Path) -> None:
    made = finished_model()
    data = model.encode(made)
    sizes = model.sizes(made, data)
    again = model.decode(data)
    assert np.array_equal(again.exact, made.exact)
    assert np.array_equal(again.mask, made.mask)
    assert len(data) == sizes.file == sizes.spec + sizes.mask + sizes.exact + 45
    assert E <= sizes.exact <= 5 * E
    assert any(line.startswith("  exact") for line in size_lines(sizes))
    (tmp_path / "m.smk").write_bytes(data)
    facts = describe(tmp_path / "m.smk")
    assert (facts["parameters"], facts["frozen"], facts["exact"]) == (D, 272, E)
    kinds = {row["name"]: (row["kind"], row.get("start")) for row in facts["tensors"]}
    assert kinds["n.weight"] == ("exact", 1)
    assert kinds["f.weight"] == ("frozen", None)
    assert kinds["a.weight"] == ("masked", None)


def test_a_file_with_other_exact_values_than_its_spec_is_refused(tiny_spec: ModelSpec) -> None:
    import hashlib

    def sealed(body: bytes) -> bytes:
        return body + hashlib.sha256(body).digest()

    data = model.encode(finished_model())[:-32]
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(CodecError):
            model.decode(sealed(wrong))
    plain = model.encode(model.FinishedModel(tiny_spec, np.zeros(tiny_spec.d, np.uint8)))[:-32]
    with pytest.raises(BundleError, match="the model file's mask has"):
        model.decode(sealed(plain + b"\0"))


def test_the_finished_values_are_the_mean_of_the_last_rounds() -> None:
    thetas = [Theta.even(2, exact=ints(*values)) for values in ((1, -1, 4), (2, -2, 4))]
    assert finished(tuple(thetas))[1].tolist() == [2, -1, 4]


@pytest.mark.export
def test_every_format_says_the_same_with_exact_and_frozen_tensors() -> None:
    requires("torch", "onnx", "onnxruntime")
    import onnxruntime as ort
    import torch

    from edge_client.predict import logits_of
    from export import final_torch
    from export.final_onnx import HOLDINGS, final_graph
    from export.make import make_bundle

    made = finished_model()
    x = np.random.default_rng(5).integers(0, 256, (12, *SPEC.input)).astype(np.uint8)
    truth = logits_of(open_runtime("reference", Bundle(SPEC, 8, {}), 1), made, x)
    for name in ("onnxruntime", "torch"):
        found = logits_of(open_runtime(name, make_bundle(SPEC, 8), 1), made, x)
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5 * np.abs(truth).max())
    for holding in HOLDINGS:
        session = ort.InferenceSession(final_graph(made, holding), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": x.astype(np.float32)})
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5 * np.abs(truth).max(), err_msg=holding)
    with torch.no_grad():
        found = final_torch.network(made)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5 * np.abs(truth).max())
    state = final_torch.state_dict(made)
    assert list(state) == [tensor.name for tensor in SPEC.tensors]
    assert state["n.bias"].tolist() == (made.exact[16:32] / EXACT_ONE).tolist()
    assert state["a.bias"].abs().tolist() == [0.5] * 16


@pytest.mark.export
@pytest.mark.timeout(1200)
def test_executorch_says_the_same_with_exact_and_frozen_tensors() -> None:
    """On devices, from the seed; in a finished network's file, whose weights are in it; and nearly in int8."""
    requires("torch", "executorch")
    from edge_client.predict import logits_of
    from edge_client.runtimes.executorch.library import Program, aligned
    from export.make import make_bundle
    from export.targets.executorch import finished_pte

    def predicted(file: bytes) -> np.ndarray:
        out = aligned(len(x) * SPEC.classes, np.float32)
        Program(file, 1).run("forward", [x], [out])
        return out.reshape(len(x), SPEC.classes)

    made = finished_model()
    x = np.random.default_rng(5).integers(0, 256, (12, *SPEC.input)).astype(np.float32)
    truth = logits_of(open_runtime("reference", Bundle(SPEC, 8, {}), 1), made, x)
    runtime = open_runtime("executorch", make_bundle(SPEC, 8, ["executorch"]), 1)
    for found in (logits_of(runtime, made, x), predicted(finished_pte(made, batch=len(x)))):
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5 * np.abs(truth).max())
    rounded = predicted(finished_pte(made, int8=True, calibration=x, batch=len(x)))
    assert 0 < np.abs(rounded - truth).mean() <= 3e-2 * np.abs(truth).max()


@pytest.mark.export
def test_the_command_line_declares_kinds_and_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requires("torch", "onnx")
    monkeypatch.chdir(tmp_path)
    said = [
        "export",
        "mlpa",
        "--seed",
        "1",
        "-o",
        "m.bundle",
        "--exact",
        "norm",
        "--exact",
        "7.bias",
        "--frozen",
        "4.*",
    ]
    assert cli.main(said) == 0
    printed = capsys.readouterr().out
    assert "groupnorm 1 scale shift" in printed
    assert "weight exact, bias exact" in printed
    assert "masked  201,984 weights" in printed
    assert "frozen  32,768 weights" in printed
    assert "exact   778 values" in printed
    assert cli.main(["inspect", "m.bundle"]) == 0
    printed = capsys.readouterr().out
    assert "weights   201,984, none stored, 32,768 frozen, 778 exact" in printed
    rows = {line.split()[0]: line.split()[3:] for line in printed.splitlines() if ".weight" in line or ".bias" in line}
    assert rows["4.weight"] == ["+-0.0883883", "frozen"]
    assert rows["5.weight"] == ["from", "1", "exact"]
    assert rows["7.bias"] == ["from", "0", "exact"]
    assert rows["7.weight"] == ["+-0.125"]
    assert cli.main(["simulate", "--bundle", "m.bundle", "--exact", "norm", "--virtual"]) == 2
    assert "--exact is for an export; mlpa has been exported already" in capsys.readouterr().err
