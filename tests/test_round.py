"""The aggregator's half of a round, as a pure function: no clock, no network, no disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.round import (
    REMIND_SECONDS,
    ClockTicked,
    Effect,
    EndJob,
    Event,
    JobState,
    PresenceChanged,
    PublishRound,
    RoundClosed,
    RoundOpened,
    RuleFailed,
    SelectionExtended,
    SendReceipt,
    TransferBroken,
    UpdateAccepted,
    UpdateArrived,
    announcement,
    resume,
    step,
    waiting_for,
)
from aggregator.rules import FedPM, RuleError, Votes, share_of, theta_of
from aggregator.settings import AggregationConfig, RoundsConfig
from seedmask import wire
from seedmask.chunks import transfer_id
from seedmask.codec import by_id, counts, delta, hmrc, packed, rans, relay
from seedmask.errors import CodecError
from seedmask.io.link import Connected, Disconnected, Refused
from seedmask.io.logs import Log
from seedmask.mask import CLAMP, Mask, Theta
from seedmask.shared import Shared
from seedmask.training import TrainingConfig
from seedmask.wire import Phase, Presence, Status, Update, basis

WORK, COUNTS = TrainingConfig(), AggregationConfig()
JOB, MODEL, D, SEED = "fashion", bytes(range(32)), 300, 7
NAMES = ["pi-1", "pi-2", "pi-3", "pi-4", "pi-5"]


def job_of(
    devices: int = 3, work: TrainingConfig = WORK, aggregation: AggregationConfig = COUNTS, **rounds: float
) -> JobState:
    settings = RoundsConfig(devices=devices, **{"total": 3, **rounds})  # type: ignore[arg-type]
    return JobState(JOB, MODEL, D, SEED, settings, work, aggregation, Theta.even(D))


def presence(device: str, online: bool = True, boot: int = 1, model: bytes = MODEL) -> PresenceChanged:
    return PresenceChanged(Presence(device, online, boot, model, 1200, "reference", "0.1"))


def update(of: JobState, sender: str, coded: int = packed.ID, seed: int = 0, **changes: object) -> Update:
    """What `sender` would send in the open round, with `changes`."""
    rng = np.random.default_rng([seed, of.round, NAMES.index(sender)])
    payloads = []
    for _ in range(of.training.masks):
        mask = rng.integers(0, 2, D).astype(np.uint8)
        payloads.append((rans if coded == rans.ID else packed).encode(mask, of.theta))
    made = Update(of.round, basis(JOB, MODEL, of.theta.digest()), 100, 700_000, 60, coded, tuple(payloads))
    return replace(made, **changes)  # type: ignore[arg-type]


def mask_of(made: Update, theta: Theta, index: int = 0) -> Mask:
    return by_id(made.codec).decode(made.payloads[index], theta, Shared(SEED, made.round, JOB, "any", index))


def arrived(made: Update, device: str) -> UpdateArrived:
    frame = wire.encode(made)
    return UpdateArrived(device, transfer_id(frame), made, frame)


def coming(of: JobState, *senders: str, **changes: object) -> list[Event]:
    """The updates of these devices in the open round."""
    return [arrived(update(of, name, **changes), name) for name in senders]  # type: ignore[arg-type]


def after(job: JobState, *events: Event) -> tuple[JobState, list[Effect]]:
    effects: list[Effect] = []
    for event in events:
        job, more = step(job, event)
        effects += more
    return job, effects


def open_job(
    devices: int = 3, work: TrainingConfig = WORK, aggregation: AggregationConfig = COUNTS, **rounds: float
) -> JobState:
    """With its first round open and `devices` devices online."""
    job, _ = after(job_of(devices, work, aggregation, **rounds), *[presence(name) for name in NAMES[:devices]])
    assert job.phase is Phase.OPEN
    return job


def status_of(effects: list[Effect]) -> Status:
    (reply,) = [effect for effect in effects if isinstance(effect, SendReceipt)]
    return reply.receipt.status


def reason_of(effects: list[Effect]) -> str:
    (reply,) = [effect for effect in effects if isinstance(effect, SendReceipt)]
    return reply.receipt.reason


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects if not isinstance(effect, Log)]


def said(effects: list[Effect]) -> str:
    return " | ".join(effect.text for effect in effects if isinstance(effect, Log))


# --- opening ---


def test_a_round_opens_when_enough_devices_are_online() -> None:
    job, effects = after(job_of(3), presence("pi-1"), presence("pi-2"))
    assert (job.phase, kinds(effects)) == (Phase.WAITING, [PublishRound, PublishRound])
    job, effects = after(job, presence("pi-3"))
    assert (job.phase, job.round, job.quorum) == (Phase.OPEN, 1, 3)
    assert kinds(effects) == [RoundOpened, PublishRound]
    assert PublishRound(theta=True) in effects


def test_a_round_is_stored_before_it_is_announced() -> None:
    _, effects = after(job_of(1), presence("pi-1"))
    assert kinds(effects).index(RoundOpened) < kinds(effects).index(PublishRound)


def test_the_job_says_what_it_waits_for() -> None:
    job, effects = after(job_of(3), presence("pi-1"), presence("pi-2"))
    assert waiting_for(job) == "2 of 3 devices online, need 3"
    assert waiting_for(job) in said(effects)
    assert announcement(job, 0).text == waiting_for(job)
    job, _ = after(job, presence("pi-3"))
    job, _ = after(job, ClockTicked(559.0), arrived(update(job, "pi-2"), "pi-2"))
    assert waiting_for(job) == "round 1 of 3: 1 of 3 updates, 41 s left, waiting for pi-1, pi-3"


def test_what_is_missing_is_said_again_now_and_then() -> None:
    job, effects = after(job_of(2), presence("pi-1"), ClockTicked(REMIND_SECONDS - 1))
    _, effects = after(
        job, ClockTicked(REMIND_SECONDS), ClockTicked(REMIND_SECONDS + 1), ClockTicked(2 * REMIND_SECONDS)
    )
    assert [e.text for e in effects if isinstance(e, Log)] == ["1 of 2 devices online, need 2"] * 2


def test_many_missing_devices_are_not_all_listed() -> None:
    job = job_of(8)
    job, _ = after(job, *[presence(f"pi-{i}") for i in range(8)])
    assert waiting_for(job).endswith("waiting for pi-0, pi-1, pi-2, pi-3, pi-4 and 3 more")


def test_a_device_that_announces_itself_twice_counts_once() -> None:
    job, _ = after(job_of(2), presence("pi-1"), presence("pi-1", boot=2))
    assert job.phase is Phase.WAITING


def test_a_device_with_another_model_is_named_and_not_counted() -> None:
    job, effects = after(job_of(2), presence("pi-1"), presence("pi-2", model=bytes(32)))
    assert job.phase is Phase.WAITING
    assert "pi-2 has model 000000000000, the job trains 000102030405: it is not counted" in said(effects)


def test_a_device_that_comes_back_with_another_model_is_counted_no_more() -> None:
    job, _ = after(job_of(3), presence("pi-1"), presence("pi-2"), presence("pi-1", boot=2, model=bytes(32)))
    assert set(job.online) == {"pi-2"}
    assert after(job, presence("pi-3"))[0].phase is Phase.WAITING


def test_a_device_that_leaves_is_not_counted() -> None:
    job, effects = after(job_of(2), presence("pi-1"), presence("pi-1", online=False), presence("pi-2"))
    assert job.phase is Phase.WAITING
    assert "pi-1 left; 0 of 2 devices online, need 2" in said(effects)


def test_the_will_of_an_earlier_life_is_ignored() -> None:
    job, effects = after(job_of(2), presence("pi-1", boot=2), presence("pi-1", online=False, boot=1))
    assert set(job.online) == {"pi-1"}
    assert "left" not in said(effects)
    assert after(job_of(2), presence("pi-9", online=False))[1] == []


# --- who is asked ---


def test_per_round_asks_that_many_the_same_after_a_restart_and_others_in_the_next_round() -> None:
    events = [presence(name) for name in NAMES]
    first, _ = after(job_of(5, per_round=2, total=50), *events)
    again, _ = after(job_of(5, per_round=2, total=50), *reversed(events))
    assert first.selected == again.selected
    assert len(first.selected) == first.quorum == 2
    assert announcement(first, 1).selected == first.selected
    asked, job = set(), first
    for _ in range(20):
        asked.update(job.selected)
        job, _ = after(job, *[arrived(update(job, name), name) for name in job.selected])
    assert asked == set(NAMES)


def test_a_selected_device_that_vanishes_is_replaced_by_an_idle_one() -> None:
    job, _ = after(job_of(3, per_round=2, minimum=2, deadline_s=60), *[presence(name) for name in NAMES[:3]])
    idle = next(name for name in NAMES[:3] if name not in job.selected)
    gone, stays = job.selected
    job, _ = after(job, arrived(update(job, stays), stays), presence(gone, online=False))
    job, effects = after(job, ClockTicked(60.0))
    assert [kind for kind in kinds(effects) if kind in (SelectionExtended, PublishRound)] == [
        SelectionExtended,
        PublishRound,
    ]
    assert idle in announcement(job, 1).selected
    assert job.deadline == 120.0
    job, effects = after(job, arrived(update(job, idle), idle))
    assert status_of(effects) is Status.ACCEPTED
    assert job.round == 2 or RoundClosed in kinds(effects)


def test_a_device_that_let_a_round_run_out_is_not_waited_for_again_until_it_is_heard_of() -> None:
    job = open_job(2, minimum=2, deadline_s=60, total=9)
    both = ("pi-1", "pi-2")
    job, _ = after(job, presence("pi-3"), *[arrived(update(job, name), name) for name in both])
    assert (job.round, job.quorum) == (2, 3)
    slow = update(job, "pi-3")
    job, _ = after(job, *[arrived(update(job, name), name) for name in both], ClockTicked(60.0))
    assert (job.round, job.quorum) == (3, 2)  # pi-3 may be dead without anybody having said so
    job, effects = after(job, arrived(slow, "pi-3"))
    assert status_of(effects) is Status.LATE
    assert "pi-3 is here" in said(effects)  # slow, not gone
    job, _ = after(job, *[arrived(update(job, name), name) for name in both])
    assert (job.round, job.quorum) == (4, 3)


def test_a_minimum_that_the_devices_cannot_reach_is_refused() -> None:
    with pytest.raises(ValueError, match=r"minimum \(5\) cannot be above devices \(1\)"):
        RoundsConfig(devices=1, minimum=5)


def test_more_correct_than_samples_is_invalid() -> None:
    job = open_job(3)
    _, effects = after(job, arrived(update(job, "pi-1", samples=5, correct=6), "pi-1"))
    assert (status_of(effects), reason_of(effects)) == (Status.INVALID, "6 correct of 5 samples")


def test_per_round_above_the_number_of_devices_asks_all() -> None:
    job = open_job(3, per_round=10)
    assert (job.selected, job.quorum) == ((), 3)


def test_a_device_that_was_not_asked_is_told_so() -> None:
    job, _ = after(job_of(5, per_round=2), *[presence(name) for name in NAMES])
    idle = next(name for name in NAMES if name not in job.selected)
    job, effects = after(job, arrived(update(job, idle), idle))
    assert status_of(effects) is Status.NOT_SELECTED
    assert job.votes.masks == 0


# --- closing ---


def test_the_last_asked_update_closes_the_round_and_opens_the_next() -> None:
    job = open_job(2)
    job, effects = after(job, arrived(update(job, "pi-1"), "pi-1"))
    assert kinds(effects) == [UpdateAccepted, SendReceipt]
    job, effects = after(job, arrived(update(job, "pi-2"), "pi-2"))
    assert kinds(effects) == [UpdateAccepted, SendReceipt, RoundClosed, RoundOpened, PublishRound]
    assert (job.phase, job.round, job.votes.masks, job.accepted) == (Phase.OPEN, 2, 0, {})


def test_what_comes_of_a_round_is_the_count_of_ones() -> None:
    job = open_job(2)
    masks = [mask_of(update(job, name), job.theta) for name in NAMES[:2]]
    _, effects = after(job, *[arrived(update(job, name), name) for name in NAMES[:2]])
    (closed,) = [effect for effect in effects if isinstance(effect, RoundClosed)]
    assert (closed.round, closed.updates, closed.theta.max_level, closed.theta.clamp) == (1, 2, 2, CLAMP)
    assert np.array_equal(closed.theta.level, masks[0] + masks[1])


def test_a_quorum_closes_the_round_at_once_and_the_rest_is_late() -> None:
    job = open_job(3, quorum=2)
    third = update(job, "pi-3")
    job, effects = after(job, *[arrived(update(job, name), name) for name in NAMES[:2]])
    assert RoundClosed in kinds(effects)
    assert job.round == 2
    _, effects = after(job, arrived(third, "pi-3"))
    assert (status_of(effects), reason_of(effects)) == (Status.LATE, "round 1 is closed")


def test_the_deadline_closes_the_round_with_the_minimum_and_not_before() -> None:
    job = open_job(3, minimum=2, deadline_s=60)
    job, effects = after(job, arrived(update(job, "pi-1"), "pi-1"), ClockTicked(60.0))
    assert RoundClosed not in kinds(effects)
    assert waiting_for(job) == "round 1 of 3: 1 of 3 updates, time is up, at least 2 must come, waiting for pi-2, pi-3"
    job, effects = after(job, arrived(update(job, "pi-2"), "pi-2"), ClockTicked(60.5))
    assert [e.updates for e in effects if isinstance(e, RoundClosed)] == [2]
    early, effects = after(open_job(3, minimum=1, deadline_s=60), ClockTicked(59.9))
    assert early.round == 1


def test_a_device_that_leaves_in_mid_round_does_not_change_what_closes_it() -> None:
    job, _ = after(open_job(2), presence("pi-2", online=False))
    job, effects = after(job, arrived(update(job, "pi-1"), "pi-1"))
    assert RoundClosed not in kinds(effects)
    assert job.quorum == 2


def test_a_round_that_closes_with_too_few_online_waits_for_devices() -> None:
    job, _ = after(open_job(2), presence("pi-2", online=False))
    job, effects = after(job, *[arrived(update(job, name), name) for name in NAMES[:2]])
    assert kinds(effects)[-2:] == [RoundClosed, PublishRound]
    assert (job.phase, waiting_for(job)) == (Phase.WAITING, "1 of 2 devices online, need 2")
    assert after(job, presence("pi-2", boot=2))[0].round == 2


def test_the_last_round_ends_the_job() -> None:
    job = open_job(1, total=1)
    late = arrived(update(job, "pi-1", seed=5), "pi-1")
    job, effects = after(job, arrived(update(job, "pi-1"), "pi-1"))
    assert kinds(effects) == [UpdateAccepted, SendReceipt, RoundClosed, PublishRound, EndJob]
    assert (job.phase, waiting_for(job)) == (Phase.DONE, "done after 1 rounds")
    told = announcement(job, 0)
    assert (told.phase, told.transfer, told.deadline_ms, told.text) == (Phase.DONE, bytes(16), 0, waiting_for(job))
    _, effects = after(job, late, ClockTicked(1e6), presence("pi-2"), Connected())
    assert status_of(effects) is Status.LATE
    assert kinds(effects) == [SendReceipt, PublishRound]


def test_the_announcement_tells_the_time_that_is_left() -> None:
    job, _ = after(open_job(2, deadline_s=60), ClockTicked(15.5))
    told = announcement(job, 4)
    assert (told.phase, told.deadline_ms, told.chunks, told.text) == (Phase.OPEN, 44_500, 4, "")
    assert (told.theta, told.transfer) == (job.theta.digest(), transfer_id(counts.encode(job.theta)))
    assert announcement(after(job, ClockTicked(1e6))[0], 4).deadline_ms == 0


# --- how theta is told to those who hold the one before ---


def thrifty(job: JobState, *senders: str) -> list[Event]:
    """Updates in `hmrc` of devices that learnt a little."""
    found: list[Event] = []
    for name in senders:
        rng = np.random.default_rng([NAMES.index(name), job.round])
        scores = (job.theta.logit() + rng.normal(0, 0.3, D)).astype(np.float32)
        shared = Shared(SEED, job.round, JOB, name)
        coded = hmrc.draw(scores, job.theta, shared, rng, job.training.plan())
        found.append(arrived(update(job, name, codec=hmrc.ID, payloads=(coded,)), name))
    return found


def test_the_first_round_is_told_whole() -> None:
    job = open_job(2)
    told = announcement(job, 1)
    assert (job.delta, told.base, told.delta, told.delta_chunks) == (b"", bytes(16), bytes(16), 0)


@pytest.mark.parametrize("by_samples", [False, True])
def test_masks_that_are_shorter_than_theta_are_relayed_and_give_it(by_samples: bool) -> None:
    first = open_job(3, aggregation=AggregationConfig(weighting="samples" if by_samples else "equal", max_samples=1000))
    job, _ = after(first, *thrifty(first, "pi-3", "pi-1", "pi-2"))
    assert job.delta[0] == relay.ID
    assert len(job.delta) < len(job.blob)
    assert relay.decode(job.delta, first.theta, SEED, JOB).digest() == job.theta.digest()
    told = announcement(job, 1, 2)
    assert (told.base, told.delta, told.delta_chunks) == (first.theta.digest(), transfer_id(job.delta), 2)


@pytest.mark.parametrize("said", [{"relay": False}, {"prior": 1.5}, {"step": 0.9}, {"carry": 0.001}])
def test_nothing_is_relayed_that_devices_could_not_add_up_or_should_not_see(said: dict[str, float]) -> None:
    aggregation = AggregationConfig(**said)  # type: ignore[arg-type]
    first = open_job(3, aggregation=aggregation)
    job, _ = after(first, *thrifty(first, *NAMES[:3]))
    assert job.round == 2
    assert job.delta[:1] != bytes([relay.ID])


class Halfway(FedPM):
    """Goes half of the way from theta to what the masks say, in round 1; then FedPM."""

    def conclude(self, votes: Votes, theta: Theta, memory: bytes, settings: AggregationConfig) -> tuple[Theta, bytes]:
        if votes.round > 1:
            return super().conclude(votes, theta, memory, settings)
        return theta_of((share_of(theta) + votes.share()) // 2, settings, votes.exact(theta)), b"halfway"


def test_the_masks_are_relayed_of_whatever_rule_gives_the_theta_that_they_add_up_to() -> None:
    first = replace(open_job(3), rule=Halfway())
    second, effects = after(first, *thrifty(first, *NAMES[:3]))
    (closed,) = [effect for effect in effects if isinstance(effect, RoundClosed)]
    assert (second.memory, second.made, closed.keep) == (b"halfway", (), False)
    assert second.delta[:1] != bytes([relay.ID])
    third, _ = after(second, *thrifty(second, *NAMES[:3]))
    assert third.delta[0] == relay.ID
    assert relay.decode(third.delta, second.theta, SEED, JOB).digest() == third.theta.digest()


def test_a_rule_that_fails_stops_the_job_once_the_update_is_stored_and_leaves_the_round_open() -> None:
    class Broken(FedPM):
        def conclude(self, *_: object) -> tuple[Theta, bytes]:
            raise ZeroDivisionError("by nothing")

    whole = open_job(2)
    job = replace(whole, rule=Broken())
    job, effects = after(job, *coming(job, "pi-1", "pi-2"))
    assert kinds(effects) == [UpdateAccepted, SendReceipt, UpdateAccepted, SendReceipt, RuleFailed]
    (failed,) = [effect for effect in effects if isinstance(effect, RuleFailed)]
    assert str(failed.error) == "rule 'fedpm' failed in conclude, round 1: ZeroDivisionError: by nothing"
    assert isinstance(failed.error, RuleError)
    assert isinstance(failed.error.__cause__, ZeroDivisionError)
    assert (job.phase, job.round, job.votes.masks) == (Phase.OPEN, 1, 2)
    mended, _ = after(replace(job, rule=FedPM()), ClockTicked(1.0))
    assert mended.theta.digest() == after(whole, *coming(whole, "pi-1", "pi-2"))[0].theta.digest()


def test_levels_are_told_as_what_changed_where_that_is_shorter_than_the_masks() -> None:
    first = open_job(3, aggregation=AggregationConfig(downlink=4))
    second, _ = after(first, *coming(first, *NAMES[:3]))
    made_for = basis(JOB, MODEL, second.theta.digest())
    same = [replace(update(first, name), round=2, basis=made_for) for name in NAMES[:3]]
    third, _ = after(second, *[arrived(u, name) for u, name in zip(same, NAMES[:3], strict=True)])
    assert third.theta.digest() == second.theta.digest()
    assert third.delta[0] == delta.ID
    assert delta.decode(third.delta, second.theta).digest() == third.theta.digest()


# --- several masks, weights ---


def test_every_mask_of_an_update_counts() -> None:
    job = open_job(2, replace(WORK, masks=3))
    events = coming(job, "pi-1", "pi-2")
    masks = [mask_of(e.update, job.theta, i) for e in events if isinstance(e, UpdateArrived) for i in range(3)]
    _, effects = after(job, *events)
    (closed,) = [effect for effect in effects if isinstance(effect, RoundClosed)]
    assert (closed.updates, closed.theta.max_level) == (2, 6)
    assert np.array_equal(closed.theta.level, np.sum(masks, axis=0))


def test_a_device_with_more_examples_counts_more_if_the_job_says_so() -> None:
    for by_samples, max_level in ((True, 4), (False, 2)):
        job = open_job(
            2, aggregation=AggregationConfig(weighting="samples" if by_samples else "equal", max_samples=1000)
        )
        one, three = update(job, "pi-1", samples=100), update(job, "pi-2", samples=300)
        after_it, _ = after(job, arrived(one, "pi-1"), arrived(three, "pi-2"))
        assert after_it.theta.max_level == max_level
        weight = 3 if by_samples else 1
        total = mask_of(one, job.theta).astype(int) + weight * mask_of(three, job.theta)
        assert np.array_equal(after_it.theta.level, total)


# --- what becomes of an update ---


@pytest.mark.parametrize("codec", [packed.ID, rans.ID])
def test_a_good_update_of_either_codec_is_accepted(codec: int) -> None:
    job = open_job(2, replace(WORK, codec=rans.NAME))  # packed may stand in for any
    job, effects = after(job, arrived(update(job, "pi-1", codec), "pi-1"))
    assert status_of(effects) is Status.ACCEPTED
    assert job.votes.masks == 1


def test_a_repeat_is_acknowledged_and_not_counted() -> None:
    job = open_job(2)
    made = arrived(update(job, "pi-1"), "pi-1")
    job, _ = after(job, made)
    job, effects = after(job, made)
    assert (status_of(effects), reason_of(effects)) == (Status.DUPLICATE, "already counted")
    assert job.votes.masks == 1


def test_a_second_update_of_one_device_is_a_duplicate_too() -> None:
    """A device whose disk was lost trains again, and draws another mask."""
    job = open_job(2)
    job, effects = after(job, arrived(update(job, "pi-1"), "pi-1"))
    job, effects = after(job, arrived(update(job, "pi-1", seed=1), "pi-1"))
    assert (status_of(effects), kinds(effects)) == (Status.DUPLICATE, [SendReceipt])
    assert job.votes.masks == 1


def test_a_repeat_after_the_round_closed_is_still_a_duplicate() -> None:
    """Its device must not be told that an update which counted came too late."""
    job = open_job(1)
    made = arrived(update(job, "pi-1"), "pi-1")
    job, _ = after(job, made)
    assert job.round == 2
    assert status_of(after(job, made)[1]) is Status.DUPLICATE


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"round": 2}, Status.STALE, "round 2 has not been"),
        ({"round": 0}, Status.LATE, "round 0 is closed"),
        ({"basis": bytes(16)}, Status.STALE, "made for another job or model, or under other probabilities than this"),
        ({"payloads": ()}, Status.INVALID, "0 mask(s), the job asks for 1"),
        ({"payloads": (bytes(38), bytes(38))}, Status.INVALID, "2 mask(s), the job asks for 1"),
        ({"codec": 77}, Status.INVALID, "codec 77, the job asks for 3"),
        ({"payloads": (b"",)}, Status.INVALID, "codec: packed mask of 300 weights"),
        ({"payloads": (b"\xff" * 38,)}, Status.INVALID, "codec: packed mask: padding bits"),
        ({"codec": 2, "payloads": (b"\xff" * 40,)}, Status.INVALID, "codec 2, the job asks for 3"),
        ({"codec": 3, "payloads": (b"\xff" * 40,)}, Status.INVALID, "codec: "),
    ],
)
def test_every_other_update_gets_the_receipt_that_says_why(
    changes: dict[str, object], status: Status, reason: str
) -> None:
    job = open_job(2)
    after_it, effects = after(job, UpdateArrived("pi-1", bytes(16), update(job, "pi-1", **changes), b""))  # type: ignore[arg-type]
    assert (status_of(effects), kinds(effects)) == (status, [SendReceipt])
    assert reason_of(effects).startswith(reason)
    assert after_it is job
    # and a good one is still welcome
    assert status_of(after(job, arrived(update(job, "pi-1"), "pi-1"))[1]) is Status.ACCEPTED


def test_an_update_before_the_first_round_has_no_round_to_count_in() -> None:
    job = job_of(2)
    assert status_of(after(job, arrived(update(job, "pi-1", round=1), "pi-1"))[1]) is Status.STALE
    assert status_of(after(job, arrived(update(job, "pi-1", round=0), "pi-1"))[1]) is Status.LATE


def test_a_transfer_that_is_no_update_gets_a_receipt_too() -> None:
    job = open_job(2)
    _, effects = after(job, TransferBroken("pi-1", bytes(16), CodecError("not this")))
    (reply, _) = effects
    assert isinstance(reply, SendReceipt)
    assert (reply.device, reply.receipt.transfer) == ("pi-1", bytes(16))
    assert (reply.receipt.status, reply.receipt.reason) == (Status.INVALID, "codec: not this")


def test_a_device_that_came_after_the_opening_may_take_part() -> None:
    job, _ = after(open_job(2, quorum=3, minimum=1), presence("pi-3"))
    assert status_of(after(job, arrived(update(job, "pi-3"), "pi-3"))[1]) is Status.ACCEPTED


# --- the connection ---


def test_every_connection_publishes_what_a_restarted_broker_has_forgotten() -> None:
    assert after(open_job(2), Connected())[1] == [PublishRound(theta=True)]
    assert after(job_of(2), Connected())[1] == [PublishRound(theta=False)]


def test_a_lost_connection_and_a_refused_message_are_told_and_change_nothing() -> None:
    job = open_job(2)
    assert after(job, Disconnected("cable"), Refused("t", "too large")) == (
        job,
        [Log("offline: cable"), Log("the broker refused t: too large")],
    )


# --- restarts, order ---


def stored_of(job: JobState, *senders: str, **changes: object) -> list[tuple[str, bytes, Update]]:
    """Their updates as the store gives them back."""
    made = [(name, update(job, name, **changes)) for name in senders]  # type: ignore[arg-type]
    return [(name, transfer_id(wire.encode(u)), u) for name, u in made]


def test_a_restart_in_mid_round_has_the_same_counts() -> None:
    job = open_job(3)
    stored = stored_of(job, *NAMES[:2])
    whole, _ = after(job, *[arrived(update(job, name), name) for name in NAMES[:3]])
    fresh = replace(job_of(3), round=job.round, theta=job.theta, now=1e5)
    again = resume(fresh, job.selected, job.quorum, stored)
    assert set(again.accepted) == set(NAMES[:2])
    assert again.deadline == 1e5 + job.rounds.deadline_s
    again, more = after(again, *[arrived(u, name) for name, _, u in stored], arrived(update(job, "pi-3"), "pi-3"))
    assert [e.receipt.status for e in more if isinstance(e, SendReceipt)] == [
        Status.DUPLICATE,
        Status.DUPLICATE,
        Status.ACCEPTED,
    ]
    assert again.theta.digest() == whole.theta.digest()


def test_a_restart_between_the_last_update_and_the_closing_closes_at_the_next_tick() -> None:
    job = open_job(2)
    stored = stored_of(job, *NAMES[:2])
    whole, _ = after(job, *[arrived(u, name) for name, _, u in stored])
    again = resume(replace(job_of(2), round=1, theta=job.theta, now=50.0), (), 2, stored)
    again, effects = after(again, ClockTicked(50.5))
    assert RoundClosed in kinds(effects)
    assert again.theta.digest() == whole.theta.digest()


@settings(max_examples=40)
@given(st.permutations(range(10)), st.lists(st.integers(0, 9), max_size=5))
def test_order_of_arrival_and_repeats_do_not_matter(order: list[int], repeats: list[int]) -> None:
    job = open_job(5)
    valid = [arrived(update(job, name), name) for name in NAMES]
    noise = coming(job, *NAMES, basis=bytes(16))
    events = [(valid + noise)[i] for i in order]
    events = events[:3] + [(valid + noise)[i] for i in repeats if (valid + noise)[i] in events[:3]] + events[3:]
    expected, _ = after(open_job(5), *valid)
    found, effects = after(job, *events)
    assert found.theta.digest() == expected.theta.digest()
    assert sum(isinstance(e, UpdateAccepted) for e in effects) == 5
    assert sum(isinstance(e, SendReceipt) for e in effects) == len(events)


VARIED = st.builds(
    lambda device, sender, changes, seed: (device, sender, changes, seed),
    st.sampled_from(NAMES[:3]),
    st.sampled_from(NAMES[:3]),
    st.fixed_dictionaries(
        {},
        optional={
            "round": st.integers(0, 4),
            "basis": st.binary(min_size=16, max_size=16),
            "codec": st.integers(0, 255),
            "payloads": st.lists(st.binary(max_size=60), min_size=1, max_size=3).map(tuple),
        },
    ),
    st.integers(0, 2),
)


@settings(max_examples=60)
@given(st.lists(st.one_of(VARIED, st.booleans(), st.floats(0, 2000)), max_size=25))
def test_every_update_gets_one_receipt_and_is_stored_before_it(script: list[object]) -> None:
    job, now, counted = open_job(2, deadline_s=300), 0.0, set()
    for item in script:
        if isinstance(item, tuple):
            device, sender, changes, seed = item
            event: Event = UpdateArrived(sender, bytes([seed]) * 16, update(job, device, seed=seed, **changes), b"")
        elif isinstance(item, bool):
            event = presence("pi-2", online=item)
        else:
            now += float(str(item))
            event = ClockTicked(now)
        job, effects = step(job, event)
        names = kinds(effects)
        assert names.count(SendReceipt) == isinstance(event, UpdateArrived)
        if isinstance(event, UpdateArrived):
            accepted = status_of(effects) is Status.ACCEPTED
            assert (names[:2] == [UpdateAccepted, SendReceipt]) is accepted
            assert UpdateAccepted not in names[1:]
            if accepted:
                key = (event.device, event.update.round)
                assert key not in counted
                counted.add(key)
