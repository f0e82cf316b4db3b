"""One round of local training, with the reference runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_client.data import Dataset
from edge_client.runtimes import F32, I64, DivergedError, Runtime, State, StepConfig, StepResult, open_runtime
from edge_client.training import TrainingResult, step_config, train, update_of
from seedmask.bundle import Bundle
from seedmask.codec import by_id
from seedmask.mask import Theta
from seedmask.shared import Shared
from seedmask.spec import ModelSpec
from seedmask.training import TrainingConfig
from seedmask.wire import Announce, Phase, basis, decode, encode

WORK = TrainingConfig(epochs=4, learning_rate=0.1)


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Bundle) -> Runtime:
    return open_runtime("reference", tiny_bundle, 1)


def trained(
    runtime: Runtime, spec: ModelSpec, data: Dataset, theta: Theta, seed: int = 1, work: TrainingConfig = WORK
) -> TrainingResult:
    outcome = train(runtime, spec, data, theta, work, 8, np.random.default_rng(seed))
    assert outcome is not None
    return outcome


def accuracy(runtime: Runtime, spec: ModelSpec, data: Dataset, mask: np.ndarray) -> float:
    logits = runtime.logits(spec.normalise(data.x), mask.astype(np.float32))
    return float((logits.argmax(1) == data.y).mean())


def announced(spec: ModelSpec, theta: Theta, work: TrainingConfig, selected: tuple[str, ...] = ()) -> Announce:
    return Announce(
        job="fashion",
        round=3,
        rounds=9,
        phase=Phase.OPEN,
        model=spec.digest,
        theta=theta.digest(),
        transfer=bytes(16),
        chunks=1,
        base=bytes(16),
        delta=bytes(16),
        delta_chunks=0,
        deadline_ms=0,
        training=work,
        selected=selected,
        text="",
    )


class Recorder:
    """A runtime that learns nothing and remembers what it was asked for."""

    def __init__(self) -> None:
        self.rules: list[StepConfig] = []
        self.noise: list[F32] = []
        self.states: list[State] = []

    def step(self, x: F32, y: I64, state: State, noise: F32, rule: StepConfig) -> StepResult:
        self.rules.append(rule)
        self.noise.append(noise.copy())
        self.states.append(state)
        return StepResult(State(state.scores, state.m, state.v, state.t + 1, state.anchor), 1.0, 0)

    def logits(self, x: F32, mask: F32) -> F32:
        raise AssertionError("training does not predict")


def test_a_round_towards_numbers_lowers_the_error_and_reports_nothing_as_correct(
    tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    spec = replace(tiny_spec, loss="mse")
    data = Dataset(tiny_data.x, np.eye(4, dtype=np.float32)[tiny_data.y] - np.float32(0.25))
    theta = Theta(np.ones(spec.d, np.uint16), 2)
    work = replace(WORK, mean_epochs=8)
    losses = [
        trained(open_runtime("reference", Bundle(spec, 8, {}), 1), spec, data, theta, work=replace(work, epochs=epochs))
        for epochs in (1, 8)
    ]
    assert losses[1].loss < 0.5 * losses[0].loss
    update = update_of(announced(spec, theta, work), "pi-1", spec, theta, losses[1], 96, np.random.default_rng(2))
    assert (update.correct, update.loss) == (0, round(losses[1].loss * 1e6))
    assert decode(encode(update)) == update


def test_one_round_learns_and_the_scores_of_a_mask_come_out(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    outcome = trained(runtime, tiny_spec, tiny_data, Theta.even(tiny_spec.d))
    assert outcome.scores.dtype == np.float32
    assert outcome.scores.shape == (tiny_spec.d,)
    assert outcome.loss < 0.7 * np.log(4)
    assert 48 < outcome.correct <= 96
    assert accuracy(runtime, tiny_spec, tiny_data, outcome.scores > 0) > 0.6


@pytest.mark.parametrize(
    "work",
    [
        TrainingConfig(epochs=6, learning_rate=3.0, optimizer="sgd", momentum=0.5),
        TrainingConfig(epochs=4, mean_epochs=65_535),
        TrainingConfig(epochs=4, straight_through="theta", kl=1.0, mean_epochs=1),
    ],
    ids=["momentum", "mean", "regularised"],
)
def test_every_kind_of_work_learns(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset, work: TrainingConfig
) -> None:
    outcome = trained(runtime, tiny_spec, tiny_data, Theta.even(tiny_spec.d), work=work)
    assert accuracy(runtime, tiny_spec, tiny_data, outcome.scores > 0) > 0.6


def test_the_last_epoch_is_what_is_reported(runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset) -> None:
    first, last = (
        trained(runtime, tiny_spec, tiny_data, Theta.even(tiny_spec.d), work=TrainingConfig(epochs=epochs))
        for epochs in (1, 6)
    )
    assert last.loss < first.loss
    assert last.correct <= len(tiny_data.y)


def test_the_same_chance_gives_the_same_scores_and_another_gives_others(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    theta = Theta.even(tiny_spec.d)
    one, two, other = (trained(runtime, tiny_spec, tiny_data, theta, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.scores, two.scores)
    assert (one.loss, one.correct) == (two.loss, two.correct)
    assert not np.array_equal(one.scores, other.scores)


def test_training_starts_from_the_global_probabilities_and_is_anchored_there(
    tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    theta = Theta((np.arange(tiny_spec.d) % 2).astype(np.uint16), 1)
    for work in (TrainingConfig(epochs=1), TrainingConfig(epochs=1, kl=1e-06)):
        recorder = Recorder()
        outcome = train(recorder, tiny_spec, tiny_data, theta, work, 8, np.random.default_rng(1))
        assert outcome is not None
        first = recorder.states[0]
        assert np.array_equal(first.scores, theta.logit())
        assert np.array_equal(first.anchor, theta.logit() if work.kl else [])
        assert np.array_equal(outcome.scores, theta.logit())


def test_a_rule_says_what_the_work_says() -> None:
    assert step_config(TrainingConfig(), 1) == StepConfig(0.1)
    work = TrainingConfig(
        learning_rate=2.0,
        optimizer="sgd",
        momentum=0.9,
        straight_through="theta",
        kl=10.0,
        sparsity=3.0,
        rate_decay=0.1,
    )
    assert step_config(work, 1) == StepConfig(2.0, "sgd", 0.9, True, 10.0, 3.0)
    assert step_config(work, 3).rate == pytest.approx(2.0 * 0.9**2)


def test_the_rate_is_that_of_the_round(tiny_spec: ModelSpec, tiny_data: Dataset) -> None:
    recorder, work, rng = Recorder(), TrainingConfig(epochs=1, rate_decay=0.5), np.random.default_rng(1)
    train(recorder, tiny_spec, tiny_data, Theta.even(tiny_spec.d), work, 48, rng, round_=3)
    assert [rule.rate for rule in recorder.rules] == pytest.approx([0.025, 0.025])


@pytest.mark.parametrize(("mean_epochs", "mean"), [(0, 0), (2, 2), (65_535, 3)])
def test_the_first_epochs_run_the_mean_network_and_draw_no_noise(
    tiny_spec: ModelSpec, tiny_data: Dataset, mean_epochs: int, mean: int
) -> None:
    recorder, work = Recorder(), TrainingConfig(epochs=3, mean_epochs=mean_epochs)
    train(recorder, tiny_spec, tiny_data, Theta.even(tiny_spec.d), work, 48, np.random.default_rng(1))
    assert [rule.mean for rule in recorder.rules] == [step < 2 * mean for step in range(6)]
    drawn = [noise for noise, rule in zip(recorder.noise, recorder.rules, strict=True) if not rule.mean]
    assert len({noise.tobytes() for noise in drawn}) == len(drawn)
    assert all(noise.min() >= 0 and noise.max() < 1 and noise.std() > 0.2 for noise in drawn)


def test_an_optimiser_goes_on_where_it_stood_if_it_is_kept(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    theta, work = Theta.even(tiny_spec.d), TrainingConfig(epochs=1)
    first = trained(runtime, tiny_spec, tiny_data, theta, work=work)
    assert first.state is not None
    assert first.state.t == 12
    kept, fresh = (
        train(runtime, tiny_spec, tiny_data, theta, work, 8, np.random.default_rng(2), round_=2, kept=states)
        for states in ([first.state], [])
    )
    assert kept is not None
    assert fresh is not None
    assert kept.state is not None
    assert kept.state.t == 24
    assert not np.array_equal(kept.scores, fresh.scores)
    recorder = Recorder()
    train(recorder, tiny_spec, tiny_data, theta, work, 8, np.random.default_rng(2), kept=[first.state])
    assert np.array_equal(recorder.states[0].m, first.state.m)
    assert np.array_equal(recorder.states[0].scores, theta.logit())


def test_inputs_that_are_no_numbers_are_a_diverged_round(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    x = tiny_data.x.astype(np.float32)
    x[50] = np.nan
    with pytest.raises(DivergedError, match="no longer finite"), np.errstate(invalid="ignore"):
        trained(runtime, tiny_spec, Dataset(x, tiny_data.y), Theta.even(tiny_spec.d))


def test_progress_is_told_before_every_step_and_can_stop_it(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    told: list[tuple[int, int]] = []

    def progress(step: int, steps: int) -> bool:
        told.append((step, steps))
        return step < 13

    part = Dataset(tiny_data.x[:50], tiny_data.y[:50])  # seven steps an epoch, the last of two examples
    rng = np.random.default_rng(1)
    assert train(runtime, tiny_spec, part, Theta.even(tiny_spec.d), WORK, 8, rng, progress) is None
    assert told == [(i, 28) for i in range(14)]


@pytest.mark.parametrize("codec", [1, 2, 3])
@pytest.mark.parametrize("masks", [1, 3])
def test_the_update_says_what_was_learnt_and_its_masks_can_be_read(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset, codec: int, masks: int
) -> None:
    theta, work = Theta.even(tiny_spec.d), replace(WORK, codec=by_id(codec).NAME, masks=masks)
    outcome = trained(runtime, tiny_spec, tiny_data, theta)
    announce = announced(tiny_spec, theta, work)
    made = update_of(announce, "pi-1", tiny_spec, theta, outcome, 96, np.random.default_rng(5))
    assert decode(encode(made)) == made
    assert made.basis == basis("fashion", tiny_spec.digest, theta.digest())
    assert (made.round, made.samples, made.codec, len(made.payloads)) == (3, 96, codec, masks)
    assert (made.loss, made.correct) == (round(outcome.loss * 1e6), outcome.correct)
    read = [
        by_id(codec).decode(payload, theta, Shared(tiny_spec.seed, 3, "fashion", "pi-1", index))
        for index, payload in enumerate(made.payloads)
    ]
    assert {mask.shape for mask in read} == {(tiny_spec.d,)}
    assert len({mask.tobytes() for mask in read}) == masks


@pytest.mark.parametrize("codec", [1, 2, 3])
def test_masks_are_drawn_from_what_was_learnt(tiny_spec: ModelSpec, codec: int) -> None:
    """255 masks of one device: their mean is the probability, within five standard deviations and hmrc's bias."""
    theta = Theta.even(tiny_spec.d)
    scores = np.where(np.arange(tiny_spec.d) % 2, 0.5, -0.5).astype(np.float32)
    work = TrainingConfig(codec=by_id(codec).NAME, masks=255)
    announce = announced(tiny_spec, theta, work)
    made = update_of(announce, "pi-1", tiny_spec, theta, TrainingResult(scores, 0.1, 1), 96, np.random.default_rng(5))
    read = [
        by_id(codec).decode(payload, theta, Shared(tiny_spec.seed, 3, "fashion", "pi-1", index))
        for index, payload in enumerate(made.payloads)
    ]
    mean, p = np.mean(read, axis=0), 1 / (1 + np.exp(-scores))
    for odd in (0, 1):
        deviation = np.sqrt(0.25 / (255 * tiny_spec.d / 2))
        assert abs(float(mean[odd::2].mean() - p[odd::2].mean())) < 5 * deviation + (0.03 if codec == 3 else 0)


def test_a_loss_beyond_the_wire_is_told_as_the_largest(tiny_spec: ModelSpec) -> None:
    theta = Theta.even(tiny_spec.d)
    outcome = TrainingResult(np.zeros(tiny_spec.d, np.float32), 1e30, 0)
    made = update_of(
        announced(tiny_spec, theta, TrainingConfig()), "pi-1", tiny_spec, theta, outcome, 96, np.random.default_rng()
    )
    assert made.loss == 2**32 - 1
    encode(made)
