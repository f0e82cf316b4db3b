"""The device's half of a round, as a pure function: no clock, no network, no disk, no training."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.session import (
    FETCH_SECONDS,
    MAX_RETRY_SECONDS,
    RETRY_SECONDS,
    Cancel,
    Drop,
    Effect,
    Event,
    Failed,
    LeaveJob,
    Pending,
    PublishPresence,
    Save,
    Send,
    Session,
    Subscribe,
    Ticked,
    Train,
    Trained,
    Unsubscribe,
    start,
    step,
)
from seedmask import PROTOCOL_VERSION, topics
from seedmask.chunks import split, transfer_id
from seedmask.codec import Plan, counts, delta, hmrc, relay
from seedmask.io.link import Connected, Disconnected, Received, Refused
from seedmask.io.logs import Log
from seedmask.mask import Theta
from seedmask.pooling import Pooling
from seedmask.shared import Shared
from seedmask.training import TrainingConfig
from seedmask.wire import Announce, Chunk, Heartbeat, Message, Phase, Presence, Receipt, Status, encode

JOB, DEVICE, MODEL, D, SEED = "fashion", "pi-1", bytes(range(32)), 400, 11
ROUND = topics.round_(JOB)


def theta_of(seed: int, d: int = D) -> Theta:
    return Theta(np.random.default_rng(seed).integers(0, 1001, d).astype(np.uint16), 1000)


THETA = theta_of(1)


def announce(round_: int = 1, of: Theta = THETA, **changes: object) -> Announce:
    blob = counts.encode(of)
    said = Announce(
        job=JOB,
        round=round_,
        rounds=5,
        phase=Phase.OPEN,
        model=MODEL,
        theta=of.digest(),
        transfer=transfer_id(blob),
        chunks=len(split(blob, 100)),
        base=bytes(16),
        delta=bytes(16),
        delta_chunks=0,
        deadline_ms=1000,
        training=TrainingConfig(codec="rans"),
        selected=(),
        text="",
    )
    return replace(said, **changes)  # type: ignore[arg-type]


def received(message: Message, topic: str = ROUND) -> Received:
    return Received(topic, encode(message))


def probabilities(theta: Theta = THETA, round_: int = 1, size: int = 100) -> list[Event]:
    return [received(c, topics.theta(JOB, round_, c.index)) for c in split(counts.encode(theta), size)]


def trained(round_: int = 1, theta: Theta = THETA) -> Trained:
    frame = b"update of round %d" % round_
    return Trained(round_, theta.digest(), transfer_id(frame), frame)


def receipt(status: Status, of: Trained, reason: str = "") -> Received:
    return received(Receipt(JOB, of.round, of.transfer, status, reason), topics.receipt(JOB, DEVICE))


def heartbeat(boot: int, online: bool = True) -> Received:
    return received(Heartbeat(JOB, online, boot), topics.aggregator(JOB))


def after(*events: Event, session: Session | None = None) -> tuple[Session, list[Effect]]:
    """A fresh, connected device after `events`, and all effects since it connected."""
    session = session or step(Session(JOB, DEVICE, MODEL, D, SEED), Connected())[0]
    effects: list[Effect] = []
    for event in events:
        session, more = step(session, event)
        effects += more
    return session, effects


def only(effects: list[Effect], *kinds: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kinds)]


def said(effects: list[Effect]) -> str:
    return " | ".join(effect.text for effect in effects if isinstance(effect, Log))


# --- one round, from the announcement to the receipt ---


def test_a_device_first_watches_the_round_the_aggregator_and_its_own_receipts() -> None:
    watched = [effect.topic for effect in start(Session(JOB, DEVICE, MODEL, D, SEED)) if isinstance(effect, Subscribe)]
    assert watched == [ROUND, topics.aggregator(JOB), topics.receipt(JOB, DEVICE)]


def test_every_connection_is_greeted_with_our_presence() -> None:
    session, effects = after(Connected(), Disconnected("cable"), Connected())
    assert only(effects, PublishPresence) == [PublishPresence(), PublishPresence()]
    assert session.online


def test_a_round_goes_fetch_train_save_send_receipt_drop() -> None:
    told = announce()
    made = trained()
    _, effects = after(received(told), *probabilities(), made, receipt(Status.ACCEPTED, made))
    theta = topics.theta(JOB, 1, "+")
    kinds = [type(effect) for effect in effects if not isinstance(effect, Log)]
    assert kinds == [Subscribe, Unsubscribe, Train, Save, Send, Drop]
    assert only(effects, Subscribe, Unsubscribe) == [Subscribe(theta), Unsubscribe(theta)]
    (train,) = only(effects, Train)
    assert isinstance(train, Train)
    assert train.announce == told
    assert train.theta.digest() == THETA.digest()
    assert only(effects, Save) == [Save(made.transfer, made.theta, made.frame)]
    assert only(effects, Send) == [Send(made.frame)]
    (drop,) = only(effects, Drop)
    assert isinstance(drop, Drop)
    assert (drop.transfer, drop.theta, drop.receipt.status) == (made.transfer, THETA.digest(), Status.ACCEPTED)


def test_an_update_is_saved_before_it_is_sent() -> None:
    _, effects = after(received(announce()), *probabilities(), trained())
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Save) < kinds.index(Send)


def test_an_update_made_offline_is_saved_and_goes_out_when_the_broker_answers() -> None:
    session, effects = after(received(announce()), *probabilities(), Disconnected("cable"), trained())
    assert only(effects, Save, Send) == [Save(trained().transfer, trained().theta, trained().frame)]
    session, effects = after(Ticked(100), session=session)
    assert effects == []
    _, effects = after(Connected(), Ticked(101), session=session)
    assert effects == [PublishPresence(), Send(trained().frame)]


@pytest.mark.parametrize("backwards", [False, True])
def test_chunks_may_come_in_any_order_and_twice(backwards: bool) -> None:
    chunks = probabilities()
    assert len(chunks) > 3
    order = [*reversed(chunks)] if backwards else [chunks[2], *chunks[:3], *chunks[1:]]
    assert len(only(after(received(announce()), *order)[1], Train)) == 1


def test_a_repeated_announcement_trains_once() -> None:
    told = received(announce())
    session, effects = after(told, told, *probabilities(), told, *probabilities(), told)
    assert len(only(effects, Train)) == 1
    session, effects = after(trained(), told, *probabilities(), session=session)
    assert only(effects, Train, Subscribe) == []
    _, effects = after(receipt(Status.ACCEPTED, trained()), told, *probabilities(), session=session)
    assert only(effects, Train, Subscribe) == []


def test_the_next_round_is_trained_from_its_own_probabilities() -> None:
    second = theta_of(2)
    first = trained()
    session, _ = after(received(announce()), *probabilities(), first, receipt(Status.ACCEPTED, first))
    _, effects = after(received(announce(2, second)), *probabilities(second, 2), session=session)
    (train,) = only(effects, Train)
    assert isinstance(train, Train)
    assert train.theta.digest() == second.digest()


# --- what changed since the round before ---

SECOND = Theta(THETA.level // 100, 11)
THIRD = Theta(SECOND.level.copy(), 11)
THIRD.level[:9] ^= 1
DELTA = topics.delta(JOB, 3, "+")
WHOLE = topics.theta(JOB, 3, "+")


def offer(of: Theta = THIRD, base: Theta = SECOND, blob: bytes | None = None, round_: int = 3) -> Announce:
    """A round that is told whole and against `base`."""
    coded = delta.encode(of, base) if blob is None else blob
    return announce(round_, of, base=base.digest(), delta=transfer_id(coded), delta_chunks=len(split(coded, 100)))


def difference(blob: bytes, round_: int = 3) -> list[Event]:
    return [received(c, topics.delta(JOB, round_, c.index)) for c in split(blob, 100)]


def holding(theta: Theta = SECOND) -> Session:
    """A device that trained round 2 under `theta` and has its receipt."""
    made = trained(2, theta)
    events = [received(announce(2, theta)), *probabilities(theta, 2), made, receipt(Status.ACCEPTED, made)]
    return after(*events)[0]


def trains(effects: list[Effect], theta: Theta) -> bool:
    found = only(effects, Train)
    return len(found) == 1 and isinstance(found[0], Train) and found[0].theta.digest() == theta.digest()


def test_who_holds_the_base_fetches_only_what_changed() -> None:
    told = [received(offer()), *difference(delta.encode(THIRD, SECOND))]
    session, effects = after(*told, session=holding())
    assert only(effects, Subscribe, Unsubscribe) == [Subscribe(DELTA), Unsubscribe(DELTA)]
    assert trains(effects, THIRD)
    assert "fetching what changed" in said(effects)
    fourth = Theta(THIRD.level.copy(), 11)
    fourth.level[50:60] ^= 1
    made = trained(3, THIRD)
    told = [made, receipt(Status.ACCEPTED, made), received(offer(fourth, THIRD, round_=4))]
    session, effects = after(*told, *difference(delta.encode(fourth, THIRD), 4), session=session)
    assert trains(effects, fourth)  # and what came by a delta is held for the next one


def test_what_a_device_holds_it_does_not_fetch() -> None:
    _, effects = after(received(announce(3, SECOND)), session=holding())
    assert not only(effects, Subscribe)
    assert trains(effects, SECOND)


def test_a_device_that_missed_a_round_takes_the_snapshot() -> None:
    for session in (None, holding(theta_of(5))):
        _, effects = after(received(offer()), *probabilities(THIRD, 3), session=session)
        assert only(effects, Subscribe, Unsubscribe) == [Subscribe(WHOLE), Unsubscribe(WHOLE)]
        assert trains(effects, THIRD)


def test_without_an_offer_the_snapshot_is_fetched() -> None:
    _, effects = after(received(announce(3, THIRD)), *probabilities(THIRD, 3), session=holding())
    assert only(effects, Subscribe) == [Subscribe(WHOLE)]
    assert trains(effects, THIRD)


BAD = {
    "nonsense": b"?" * 99,
    "of another base": delta.encode(THIRD, Theta(np.ones(D, np.uint16), 2)),
    "to another theta": delta.encode(Theta(SECOND.level.copy(), 12), SECOND),
    "cut short": delta.encode(THIRD, SECOND)[:-1],
    "empty but for one byte": b"x",
    "too large to be one": bytes(2 * D + (1 << 16) + 1),
}


@pytest.mark.parametrize("blob", BAD.values(), ids=BAD.keys())
def test_a_delta_that_is_no_good_leads_to_the_snapshot_of_the_same_round(blob: bytes) -> None:
    told = received(offer(blob=blob))
    session, effects = after(told, *difference(blob)[:1000], session=holding())
    assert only(effects, Subscribe, Unsubscribe) == [Subscribe(DELTA), Unsubscribe(DELTA), Subscribe(WHOLE)]
    assert only(effects, Train) == []
    assert said(effects).count("fetching the whole probabilities") == 1
    session, effects = after(told, *difference(blob)[:3], session=session)
    assert effects == []  # it is said once, and not tried again
    session, effects = after(*probabilities(THIRD, 3), session=session)
    assert trains(effects, THIRD)
    assert only(effects, Unsubscribe) == [Unsubscribe(WHOLE)]


def test_a_delta_whose_bytes_were_changed_on_the_way_leads_to_the_snapshot() -> None:
    parts = split(delta.encode(THIRD, SECOND), 100)
    spoilt = [received(damaged(c), topics.delta(JOB, 3, c.index)) for c in parts]
    session, effects = after(received(offer()), *spoilt, session=holding())
    assert "the difference is no good (checksum: " in said(effects)
    assert trains(after(*probabilities(THIRD, 3), session=session)[1], THIRD)


def test_a_delta_that_does_not_come_leads_to_the_snapshot() -> None:
    """A broker whose access rules were written before there were deltas refuses the topic in silence."""
    session, effects = after(received(offer()), Ticked(FETCH_SECONDS), session=holding())
    assert only(effects, Subscribe, Unsubscribe) == [Subscribe(DELTA), Unsubscribe(DELTA), Subscribe(WHOLE)]
    assert "the difference does not come" in said(effects)
    assert trains(after(*probabilities(THIRD, 3), session=session)[1], THIRD)


def test_chunks_of_the_snapshot_are_nothing_to_who_fetches_the_delta() -> None:
    session, effects = after(received(offer()), *probabilities(THIRD, 3), session=holding())
    assert only(effects, Train) == []
    assert trains(after(*difference(delta.encode(THIRD, SECOND)), session=session)[1], THIRD)


def test_a_delta_under_way_is_given_up_when_the_round_moves_on() -> None:
    told = received(announce(4, theta_of(4)))
    _, effects = after(received(offer()), told, session=holding())
    assert only(effects, Subscribe, Unsubscribe) == [
        Subscribe(DELTA),
        Unsubscribe(DELTA),
        Subscribe(topics.theta(JOB, 4, "+")),
    ]


def masks_of_round_2(base: Theta, *devices: str) -> bytes:
    """The masks of round 2 as they are relayed in round 3."""
    parts = []
    for k, device in enumerate(devices):
        shared = Shared(SEED, 2, JOB, device)
        rng = np.random.default_rng(k)
        coded = hmrc.draw(base.logit() + np.float32(0.3), base, shared, rng, Plan())
        parts.append(relay.Part(device, 10, hmrc.ID, (coded,)))
    return relay.encode(base, 2, Pooling(0, 655, True), parts)


def test_who_holds_the_base_adds_up_the_masks_that_are_relayed() -> None:
    blob = masks_of_round_2(SECOND, "pi-1", "pi-2", "pi-3")
    made = relay.decode(blob, SECOND, SEED, JOB)
    assert made.max_level == 3
    _, effects = after(received(offer(made, blob=blob)), *difference(blob), session=holding())
    assert only(effects, Subscribe) == [Subscribe(DELTA)]
    assert trains(effects, made)


def test_relayed_masks_that_do_not_give_what_was_announced_lead_to_the_snapshot() -> None:
    blob = masks_of_round_2(SECOND, "pi-1", "pi-2", "pi-3")
    session, effects = after(received(offer(THIRD, blob=blob)), *difference(blob), session=holding())
    assert only(effects, Train) == []
    assert "the difference is no good (theta-mismatch: " in said(effects)
    assert trains(after(*probabilities(THIRD, 3), session=session)[1], THIRD)


# --- work that we do not understand ---


def test_an_announcement_with_an_option_that_we_do_not_know_is_named_and_not_trained() -> None:
    frame = encode(announce(training=TrainingConfig()))
    body = frame[4:-4]
    at = len(body) - 5
    assert body[at:] == bytes(5)  # no options, nobody selected, no text
    strange = framed(1, body[:at] + b"\1\x63" + bytes(4) + body[at + 1 :])
    _, effects = after(Received(ROUND, strange), *probabilities())
    known = "1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18"
    assert said(effects) == f"ignored a message on {ROUND}: field: training option 99 is unknown; known: {known}"
    assert only(effects, Train, Subscribe) == []


def test_a_codec_that_we_do_not_have_is_named_and_not_trained() -> None:
    _, effects = after(received(announce(training=TrainingConfig(codec="#200"))), *probabilities())
    assert only(effects, Train, Subscribe) == []
    assert "round 1 asks for masks in codec 200, we have packed, rans" in said(effects)


# --- the round moves on ---


@pytest.mark.parametrize(
    "told",
    [
        announce(2, theta_of(2)),
        announce(1, theta_of(2)),
        announce(1, theta_of(2), phase=Phase.WAITING, text="1 of 2 devices online, need 2"),
        announce(5, theta_of(2), phase=Phase.DONE),
    ],
    ids=["next round", "same round, other probabilities", "waiting", "done"],
)
def test_training_is_given_up_when_the_round_moves_on(told: Announce) -> None:
    session, effects = after(received(announce()), *probabilities(), received(told))
    assert only(effects, Cancel) == [Cancel()]
    assert not session.training
    session, effects = after(trained(), session=session)
    assert only(effects, Save, Send) == []
    assert "closed while we trained" in said(effects)
    assert session.pending == ()


def test_fetching_is_given_up_when_the_round_moves_on() -> None:
    second = theta_of(2)
    session, effects = after(
        received(announce()), probabilities()[0], received(announce(2, second)), *probabilities(second, 2)
    )
    assert only(effects, Subscribe, Unsubscribe) == [
        Subscribe(topics.theta(JOB, 1, "+")),
        Unsubscribe(topics.theta(JOB, 1, "+")),
        Subscribe(topics.theta(JOB, 2, "+")),
        Unsubscribe(topics.theta(JOB, 2, "+")),
    ]
    assert session.training


def test_an_update_of_a_past_round_is_still_sent_while_the_next_is_trained() -> None:
    second = theta_of(2)
    session, effects = after(
        received(announce()), *probabilities(), trained(), received(announce(2, second)), *probabilities(second, 2)
    )
    assert len(only(effects, Train)) == 2
    assert [item.round for item in session.pending] == [1]


def test_what_the_aggregator_waits_for_is_passed_on_to_people() -> None:
    _, effects = after(received(announce(phase=Phase.WAITING, text="1 of 2 devices online, need 2")))
    assert effects == [Log("waiting: 1 of 2 devices online, need 2")]


def test_a_device_that_is_not_selected_says_so_and_does_not_train() -> None:
    _, effects = after(received(announce(selected=("pi-2", "pi-3"))), *probabilities())
    assert effects == [Log("round 1: not selected")]
    assert only(after(received(announce(selected=("pi-1",))), *probabilities())[1], Train)


# --- another model ---


def test_a_device_with_another_model_says_so_once_and_does_not_train() -> None:
    told = received(announce(model=bytes(32)))
    session, effects = after(told, told, *probabilities())
    assert [type(effect) for effect in effects] == [Log]
    assert "trains model 000000000000, our bundle is model 000102030405: not taking part" in said(effects)
    assert only(after(received(announce()), *probabilities(), session=session)[1], Train)


def test_a_job_that_changes_its_model_ends_what_was_under_way() -> None:
    """The other model may have as many weights as ours: its probabilities must not be trained as if they were ours."""
    other = theta_of(2)
    told = received(announce(1, other, model=bytes(32)))
    _, effects = after(received(announce()), probabilities()[0], told, *probabilities(other))
    assert only(effects, Train) == []
    assert only(effects, Unsubscribe) == [Unsubscribe(topics.theta(JOB, 1, "+"))]
    _, effects = after(received(announce()), *probabilities(), told, trained())
    assert only(effects, Cancel) == [Cancel()]
    assert only(effects, Save, Send) == []


# --- probabilities that do not come, or are wrong ---


def test_probabilities_that_do_not_come_are_asked_for_again() -> None:
    topic = topics.theta(JOB, 1, "+")
    chunks = probabilities()
    session, effects = after(Ticked(5), received(announce()), *chunks[:2], Ticked(5 + FETCH_SECONDS - 1))
    assert only(effects, Unsubscribe) == []
    session, effects = after(Ticked(5 + FETCH_SECONDS), session=session)
    assert effects == [Log("the probabilities do not come; asking again"), Unsubscribe(topic), Subscribe(topic)]
    assert after(Ticked(6 + FETCH_SECONDS), session=session)[1] == []
    assert only(after(*chunks[2:], session=session)[1], Train)


def test_nothing_is_asked_for_again_while_offline() -> None:
    _, effects = after(received(announce()), Disconnected("cable"), Ticked(10 * FETCH_SECONDS))
    assert only(effects, Unsubscribe) == []


def test_chunks_of_another_transfer_are_ignored() -> None:
    other = probabilities(theta_of(2))
    session, effects = after(received(announce()), *other, session=None)
    assert only(effects, Train) == []
    assert only(after(*probabilities(), *other, session=session)[1], Train)


def test_chunks_cut_to_another_size_replace_those_that_came() -> None:
    """An aggregator that restarts behind a broker with a lower limit sends the same transfer in other chunks."""
    _, effects = after(received(announce()), *probabilities(size=100)[:2], *probabilities(size=64))
    assert len(only(effects, Train)) == 1


def damaged(chunk: Chunk) -> Chunk:
    return replace(chunk, data=bytes(len(chunk.data)))


@pytest.mark.parametrize(
    ("told", "chunks", "says"),
    [
        (announce(), [damaged(split(counts.encode(THETA), 9999)[0])], "round 1: checksum: "),
        (announce(theta=bytes(16)), split(counts.encode(THETA)), "round 1: theta-mismatch: "),
        (announce(transfer=transfer_id(b"?" * 99)), split(b"?" * 99), "round 1: limit: "),
        (announce(1, theta_of(1, D + 1)), split(counts.encode(theta_of(1, D + 1))), "round 1: limit: "),
    ],
    ids=["damaged", "not the announced", "no counts", "of a larger model"],
)
def test_wrong_probabilities_are_named_and_the_next_announcement_starts_over(
    told: Announce, chunks: list[Chunk], says: str
) -> None:
    session, effects = after(received(told), *[received(c, topics.theta(JOB, 1, c.index)) for c in chunks])
    assert only(effects, Train) == []
    assert says in said(effects)
    assert len(only(effects, Unsubscribe)) == 1
    assert only(after(received(announce()), *probabilities(), session=session)[1], Train)


def test_a_transfer_too_large_to_be_probabilities_is_not_collected() -> None:
    blob = bytes(2 * D + (1 << 16) + 1)
    chunks = split(blob, 1000)
    session, effects = after(received(announce(transfer=transfer_id(blob))), received(chunks[0]))
    assert "limit" in said(effects)
    assert session.assembly is None


def test_failed_training_is_told_and_the_next_round_is_trained() -> None:
    second = theta_of(2)
    session, effects = after(received(announce()), *probabilities(), Failed(1, THETA.digest(), "out of memory"))
    assert "round 1: training failed: out of memory" in said(effects)
    assert not session.training
    _, effects = after(received(announce()), received(announce(2, second)), *probabilities(second, 2), session=session)
    assert [effect.announce.round for effect in effects if isinstance(effect, Train)] == [2]
    assert only(effects, Cancel) == []


def test_the_failure_of_a_training_that_was_given_up_is_not_told() -> None:
    session, _ = after(received(announce()), *probabilities(), received(announce(2, theta_of(2))))
    assert after(Failed(1, THETA.digest(), "too late"), session=session) == (session, [])


# --- receipts ---


@pytest.mark.parametrize("status", Status)
def test_every_receipt_ends_the_duty_to_send(status: Status) -> None:
    session, _ = after(received(announce()), *probabilities(), trained())
    session, effects = after(receipt(status, trained(), "because"), session=session)
    assert len(only(effects, Drop)) == 1
    assert f"round 1: {status.name.lower().replace('_', '-')} (because)" in said(effects)
    assert session.pending == ()
    assert only(after(Ticked(1e6), heartbeat(7), session=session)[1], Send) == []


def test_a_receipt_for_another_update_changes_nothing() -> None:
    session, _ = after(received(announce()), *probabilities(), trained())
    other = Receipt(JOB, 1, transfer_id(b"another"), Status.ACCEPTED, "")
    elsewhere = Receipt("other-job", 1, trained().transfer, Status.ACCEPTED, "")
    assert after(received(other), received(elsewhere), session=session) == (session, [])


def test_a_stale_update_makes_the_device_take_up_the_announced_round() -> None:
    """An aggregator that lost its disk begins again at round 1 with other probabilities."""
    old, fresh = trained(), theta_of(2)
    pending = Pending(1, old.theta, old.transfer, old.frame)
    session = Session(JOB, DEVICE, MODEL, D, SEED, online=True, pending=(pending,), work=(1, old.theta))
    session, effects = after(received(announce(1, fresh)), *probabilities(fresh), session=session)
    assert only(effects, Train) == []  # not before it is known what became of the update of this round
    session, effects = after(receipt(Status.STALE, old), session=session)
    assert only(effects, Drop, Subscribe)[1:] == [Subscribe(topics.theta(JOB, 1, "+"))]
    assert len(only(after(*probabilities(fresh), session=session)[1], Train)) == 1


def test_a_stale_update_of_the_round_we_already_train_disturbs_nothing() -> None:
    old, fresh = trained(), theta_of(2)
    session = Session(JOB, DEVICE, MODEL, D, SEED, online=True, pending=(Pending(3, *_parts(old)),))
    session, _ = after(received(announce(1, fresh)), *probabilities(fresh), session=session)
    session, effects = after(receipt(Status.STALE, old), session=session)
    assert only(effects, Subscribe, Cancel, Train) == []
    assert session.training


def _parts(made: Trained) -> tuple[bytes, bytes, bytes]:
    return made.theta, made.transfer, made.frame


# --- sending again ---


def test_an_update_is_sent_again_with_growing_pauses_until_its_receipt() -> None:
    session, _ = after(received(announce()), *probabilities(), trained())
    sent = [0]
    for now in range(1, 2001):
        session, effects = after(Ticked(now), session=session)
        sent += [now] * len(only(effects, Send))
    pauses = [b - a for a, b in pairwise(sent)]
    assert pauses[:5] == [RETRY_SECONDS, 2 * RETRY_SECONDS, 4 * RETRY_SECONDS, 8 * RETRY_SECONDS, MAX_RETRY_SECONDS]
    assert set(pauses[5:]) == {MAX_RETRY_SECONDS}
    session, _ = after(receipt(Status.DUPLICATE, trained()), session=session)
    assert after(Ticked(1e6), session=session)[1] == []


def test_a_new_boot_of_the_aggregator_is_sent_everything_at_once() -> None:
    session, effects = after(received(announce()), *probabilities(), heartbeat(1), trained())
    session, effects = after(Ticked(1), heartbeat(1), session=session)
    assert effects == []
    session, effects = after(heartbeat(1, online=False), session=session)
    assert effects == [Log("the aggregator is away")]
    assert after(heartbeat(1), session=session)[1] == []  # it was only the network
    session, effects = after(heartbeat(2), session=session)
    assert effects == [Send(trained().frame)]
    assert only(after(Ticked(1 + RETRY_SECONDS), session=session)[1], Send) == [Send(trained().frame)]


def test_a_restart_with_an_update_in_the_outbox_sends_it_and_does_not_train_again() -> None:
    old = trained()
    pending = Pending(1, *_parts(old))
    session = Session(JOB, DEVICE, MODEL, D, SEED, pending=(pending,), work=(1, old.theta))
    session, effects = after(Connected(), received(announce()), *probabilities(), Ticked(1), session=session)
    assert only(effects, Train, Subscribe) == []
    assert only(effects, Send) == [Send(old.frame)]
    session, effects = after(receipt(Status.ACCEPTED, old), received(announce()), session=session)
    assert only(effects, Train, Subscribe) == []


def test_a_restart_after_the_receipt_does_not_train_that_round_again() -> None:
    session = Session(JOB, DEVICE, MODEL, D, SEED, online=True, work=(1, THETA.digest()))
    assert only(after(received(announce()), *probabilities(), session=session)[1], Train, Subscribe) == []


# --- the end ---


def test_a_done_job_finishes_once_and_only_when_nothing_is_pending() -> None:
    session, _ = after(received(announce()), *probabilities(), trained())
    done = received(announce(5, theta_of(9), phase=Phase.DONE))
    session, effects = after(done, Ticked(1), session=session)
    assert only(effects, LeaveJob) == []
    session, effects = after(receipt(Status.LATE, trained()), session=session)
    assert [type(effect) for effect in effects] == [Drop, Log, LeaveJob]
    assert only(after(done, done, session=session)[1], LeaveJob) == []


def test_a_device_that_comes_to_a_done_job_finishes() -> None:
    assert only(after(received(announce(5, phase=Phase.DONE)))[1], LeaveJob) == [LeaveJob("job fashion is done")]


def test_the_retained_end_of_another_models_job_ends_nobody() -> None:
    session, effects = after(received(announce(5, phase=Phase.DONE, model=bytes(32))))
    assert not only(effects, LeaveJob)
    assert only(after(received(announce(1)), session=session)[1], Subscribe)


def test_a_failed_training_is_tried_again_in_the_same_round_with_growing_pauses() -> None:
    session, _ = after(received(announce()), *probabilities())
    pauses, now = [], 0.0
    for _ in range(6):
        session, _ = after(Failed(1, THETA.digest(), "out of memory"), session=session)
        failed = now
        while not only((result := after(Ticked(now), session=session))[1], Train, Subscribe) and now < 10_000:
            session, now = result[0], now + 10
        session, effects = result
        assert trains(effects, THETA)  # from what came the first time: nothing is fetched again
        assert not only(effects, Subscribe)
        pauses.append(now - failed)
    assert pauses == [30, 60, 120, 240, 480, 480]


def test_a_copy_that_has_not_left_is_not_followed_by_another() -> None:
    session, effects = after(received(announce()), *probabilities(), trained())
    assert only(effects, Send)
    for now in range(0, 600, 5):
        session, effects = after(Ticked(now, busy=True), session=session)
        assert not only(effects, Send)
    session, effects = after(Ticked(2000.0), session=session)
    assert only(effects, Send)


def test_the_will_of_an_earlier_aggregator_is_ignored() -> None:
    session, _ = after(heartbeat(2), heartbeat(1, online=False))
    assert not session.away
    assert after(heartbeat(2, online=False), session=session)[0].away


def test_a_round_finished_in_an_earlier_life_is_said_once() -> None:
    work = (1, THETA.digest())
    session = step(Session(JOB, DEVICE, MODEL, D, SEED, work=work, finished_before=work), Connected())[0]
    session, effects = after(received(announce()), session=session)
    assert "has its receipt" in said(effects)
    assert said(after(received(announce()), session=session)[1]) == ""


# --- what strangers send ---


def test_messages_that_are_not_ours_or_not_messages_are_ignored() -> None:
    session, _ = after(received(announce()))
    for message in (
        replace(announce(2), job="other"),
        Heartbeat("other", True, 3),
        Presence("pi-2", True, 3, MODEL, 10, "reference", "0"),
    ):
        assert after(received(message), session=session) == (session, [])
    assert after(Received(ROUND, b""), session=session) == (session, [])  # a cleared retained message
    _, effects = after(Received(ROUND, b"hello, world"), session=session)
    assert said(effects).startswith(f"ignored a message on {ROUND}: magic: ")


def test_a_message_that_the_broker_refused_is_told() -> None:
    _, effects = after(Refused("a/topic", "not authorised"))
    assert effects == [Log("the broker refused a/topic: not authorised")]


def framed(kind: int, body: bytes) -> bytes:
    frame = b"SM" + bytes([PROTOCOL_VERSION, kind]) + body
    return frame + struct.pack("<I", zlib.crc32(frame))


def mutated(draw: Callable[..., object], frame: bytes) -> bytes:
    """A real frame with a few bytes of its body changed and the checksum made right again."""
    body = bytearray(frame[4:-4])
    for _ in range(draw(st.integers(1, 4))):  # type: ignore[call-overload]
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))  # type: ignore[call-overload]
    return framed(frame[3], bytes(body))


FRAMES = [encode(announce()), *[e.payload for e in probabilities(size=400) if isinstance(e, Received)]]
FRAMES += [encode(offer()), *[e.payload for e in difference(delta.encode(THIRD, SECOND)) if isinstance(e, Received)]]
FRAMES += [receipt(Status.STALE, trained()).payload, heartbeat(2).payload]
FRAMES += [encode(announce(1, theta_of(2))), encode(announce(2, phase=Phase.DONE, model=bytes(32)))]


@st.composite
def hostile(draw: Callable[..., object]) -> bytes:
    which = draw(st.sampled_from(["bytes", "body", "mutated", "real"]))
    if which == "bytes":
        return draw(st.binary(max_size=80))  # type: ignore[return-value]
    if which == "body":
        return framed(draw(st.integers(0, 8)), draw(st.binary(max_size=120)))  # type: ignore[arg-type]
    frame = draw(st.sampled_from(FRAMES))
    return frame if which == "real" else mutated(draw, frame)  # type: ignore[return-value, arg-type]


PLACES = [ROUND, topics.aggregator(JOB), topics.theta(JOB, 1, 0), topics.delta(JOB, 3, 0), "x"]
EVENTS = st.one_of(
    st.builds(Received, st.sampled_from(PLACES), hostile()),
    st.builds(Received, st.text(max_size=20), st.binary(max_size=40)),
    st.sampled_from([Connected(), Disconnected("x"), Refused("t", "x"), trained(), Failed(1, THETA.digest(), "x")]),
    st.builds(Ticked, st.floats(0, 1e4)),
)


@given(st.lists(EVENTS, max_size=30))
def test_no_bytes_on_any_topic_raise_and_nothing_is_sent_that_was_not_saved(events: list[Event]) -> None:
    session, saved = Session(JOB, DEVICE, MODEL, D, SEED), set()
    for event in [Connected(), received(announce()), *events]:
        session, effects = step(session, event)
        for effect in effects:
            if isinstance(effect, Save):
                saved.add(effect.frame)
            if isinstance(effect, Send):
                assert effect.frame in saved
            if isinstance(effect, Train):
                assert effect.announce.model == MODEL
                assert effect.theta.digest() == effect.announce.theta


@settings(max_examples=40)
@given(st.lists(EVENTS, max_size=30))
def test_only_one_training_is_under_way_at_a_time(events: list[Event]) -> None:
    session, _ = after(received(announce()), *probabilities())
    for event in events:
        before = session.training
        session, effects = step(session, event)
        busy = before and not isinstance(event, Trained | Failed)
        for effect in effects:
            if isinstance(effect, Cancel):
                busy = False
            if isinstance(effect, Train):
                assert not busy
                busy = True


def test_a_job_that_is_done_and_whose_aggregator_left_holds_nobody_back() -> None:
    session, _ = after(received(announce()), *probabilities(), heartbeat(1), trained())
    session, effects = after(received(announce(phase=Phase.DONE)), session=session)
    assert not [effect for effect in effects if isinstance(effect, LeaveJob)]
    session, effects = after(heartbeat(1, online=False), session=session)
    [finish] = only(effects, LeaveJob)
    assert "1 update(s) without a receipt stay in the outbox" in finish.text
    assert session.pending
