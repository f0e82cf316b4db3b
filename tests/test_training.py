"""One round of local training, with the reference runtime."""

from __future__ import annotations

import numpy as np
import pytest

from edge_client.data import Dataset
from edge_client.runtimes import DivergedError, Runtime, open_runtime
from edge_client.training import Outcome, train, update_of
from seedmask.bundle import Bundle
from seedmask.codec import by_id
from seedmask.mask import Theta
from seedmask.spec import ModelSpec
from seedmask.wire import Announce, Phase, Work, decode, encode

WORK = Work(epochs=4, learning_rate=100_000)


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Bundle) -> Runtime:
    return open_runtime("reference", tiny_bundle, 1)


def trained(
    runtime: Runtime, spec: ModelSpec, data: Dataset, theta: Theta, seed: int = 1, work: Work = WORK
) -> Outcome:
    outcome = train(runtime, spec, data, theta, work, 8, np.random.default_rng(seed))
    assert outcome is not None
    return outcome


def accuracy(runtime: Runtime, spec: ModelSpec, data: Dataset, mask: np.ndarray) -> float:
    logits = runtime.logits(spec.normalise(data.x), mask.astype(np.float32))
    return float((logits.argmax(1) == data.y).mean())


def test_one_round_learns_and_a_mask_is_all_that_comes_out(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    theta = Theta.even(tiny_spec.d)
    outcome = trained(runtime, tiny_spec, tiny_data, theta)
    assert outcome.mask.dtype == np.uint8
    assert outcome.mask.shape == (tiny_spec.d,)
    assert set(np.unique(outcome.mask).tolist()) == {0, 1}
    assert outcome.loss < 0.7 * np.log(4)
    assert 48 < outcome.correct <= 96
    assert accuracy(runtime, tiny_spec, tiny_data, outcome.mask) > 0.6


def test_the_last_epoch_is_what_is_reported(runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset) -> None:
    first, last = (
        trained(runtime, tiny_spec, tiny_data, Theta.even(tiny_spec.d), work=Work(epochs=epochs)) for epochs in (1, 6)
    )
    assert last.loss < first.loss
    assert last.correct <= len(tiny_data.y)


def test_the_same_chance_gives_the_same_mask_and_another_gives_another(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    theta = Theta.even(tiny_spec.d)
    one, two, other = (trained(runtime, tiny_spec, tiny_data, theta, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.mask, two.mask)
    assert (one.loss, one.correct) == (two.loss, two.correct)
    assert not np.array_equal(one.mask, other.mask)


def test_training_starts_from_the_global_probabilities(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    level = (np.arange(tiny_spec.d) % 2).astype(np.uint16)
    barely = Work(epochs=1, learning_rate=1)
    outcome = trained(runtime, tiny_spec, tiny_data, Theta(level, 1), work=barely)
    assert (outcome.mask == level).mean() > 0.95


def test_inputs_that_are_no_numbers_are_a_diverged_round(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset
) -> None:
    x = tiny_data.x.astype(np.float32)
    x[50] = np.nan
    with pytest.raises(DivergedError, match="not finite"), np.errstate(invalid="ignore"):
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


@pytest.mark.parametrize("codec", [1, 2])
def test_the_update_says_what_was_learnt_and_its_mask_can_be_read(
    runtime: Runtime, tiny_spec: ModelSpec, tiny_data: Dataset, codec: int
) -> None:
    theta = Theta.even(tiny_spec.d)
    outcome = trained(runtime, tiny_spec, tiny_data, theta)
    announce = Announce(
        "fashion", 3, 9, Phase.OPEN, tiny_spec.digest, theta.digest(), bytes(16), 1, 0, Work(codec=codec), (), ""
    )
    made = update_of(announce, "pi-1", theta, outcome, 96)
    assert decode(encode(made)) == made
    assert (made.job, made.device, made.round, made.samples) == ("fashion", "pi-1", 3, 96)
    assert (made.model, made.theta) == (tiny_spec.digest, theta.digest())
    assert (made.loss, made.correct) == (round(outcome.loss * 1e6), outcome.correct)
    assert np.array_equal(by_id(codec).decode(made.payload, theta), outcome.mask)


def test_a_loss_beyond_the_wire_is_told_as_the_largest(tiny_spec: ModelSpec) -> None:
    theta = Theta.even(tiny_spec.d)
    announce = Announce("fashion", 3, 9, Phase.OPEN, tiny_spec.digest, theta.digest(), bytes(16), 1, 0, Work(), (), "")
    made = update_of(announce, "pi-1", theta, Outcome(np.zeros(tiny_spec.d, np.uint8), 1e30, 0), 96)
    assert made.loss == 2**32 - 1
    encode(made)
