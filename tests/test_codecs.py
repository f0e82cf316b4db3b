"""Codecs: exact, canonical, total on any bytes, and as small as the probabilities allow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedmask.codec import (
    CODECS,
    NAMES,
    MaskCodec,
    Plan,
    ans,
    by_id,
    counts,
    delta,
    hmrc,
    packed,
    rans,
    relay,
    varint,
)
from seedmask.errors import CodecError, KindError, LimitError, ProtocolError, ThetaMismatchError
from seedmask.mask import F32, Mask, Theta, sample
from seedmask.pooling import Pooling, pool
from seedmask.shared import Shared

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

SHARED = Shared(0x5EED, 3, "job", "device-1")


EACH = pytest.mark.parametrize("codec", [packed, rans], ids=["packed", "rans"])
EVERY = pytest.mark.parametrize("codec", CODECS.values(), ids=list(NAMES))
TOPS = st.sampled_from([1, 2, 3, 10, 100, 255, 256, 300, 65535])
CLAMPS = st.sampled_from([1, 655, 20_000, 32767])


@st.composite
def thetas(draw: Any, d: int | None = None) -> Theta:
    """Levels that are all alike, all over the place, at the ends, or in one bucket."""
    size = draw(st.integers(1, 400)) if d is None else d
    max_level, rng = draw(TOPS), np.random.default_rng(draw(st.integers(0, 1 << 32)))
    choices = {
        "spread": rng.integers(0, max_level + 1, size),
        "ends": rng.integers(0, 2, size) * max_level,
        "one": np.full(size, rng.integers(0, max_level + 1)),
    }
    return Theta(choices[draw(st.sampled_from(sorted(choices)))].astype(np.uint16), max_level, draw(CLAMPS))


@st.composite
def pairs(draw: Any) -> tuple[Theta, Mask]:
    """A theta, and a mask that follows it, contradicts it, or ignores it."""
    theta = draw(thetas())
    drawn = sample(theta.probability(), np.random.default_rng(draw(st.integers(0, 1 << 32))))
    bits = draw(st.sampled_from([drawn, 1 - drawn, np.zeros_like(drawn), np.ones_like(drawn)]))
    return theta, bits.astype(np.uint8)


def only_ways_out(action: Any, *arguments: Any) -> Any:
    """The value, or None after a ProtocolError; anything else escapes and fails the test."""
    try:
        return action(*arguments)
    except ProtocolError:
        return None


@EACH
@given(pair=pairs())
def test_what_was_coded_comes_back(codec: Any, pair: tuple[Theta, Mask]) -> None:
    theta, mask = pair
    back = codec.decode(codec.encode(mask, theta), theta)
    assert back.dtype == np.uint8
    assert np.array_equal(back, mask)


@EACH
@given(pair=pairs())
@settings(max_examples=25)
def test_every_truncation_of_a_mask_is_rejected(codec: Any, pair: tuple[Theta, Mask]) -> None:
    theta, mask = pair
    payload = codec.encode(mask, theta)
    for n in range(len(payload)):
        with pytest.raises(CodecError):
            codec.decode(payload[:n], theta)
    with pytest.raises(CodecError):
        codec.decode(payload + b"\0", theta)


@EACH
@given(pair=pairs(), data=st.data())
def test_damaged_bytes_are_refused_or_are_the_one_encoding_of_another_mask(
    codec: Any, pair: tuple[Theta, Mask], data: st.DataObject
) -> None:
    theta, mask = pair
    payload = bytearray(codec.encode(mask, theta))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    found = only_ways_out(codec.decode, bytes(payload), theta)
    if found is not None:
        assert codec.encode(found, theta) == payload


@EACH
@given(theta=thetas(), payload=st.binary(max_size=200))
def test_any_bytes_are_refused_or_are_the_one_encoding_of_a_mask(codec: Any, theta: Theta, payload: bytes) -> None:
    found = only_ways_out(codec.decode, payload, theta)
    if found is not None:
        assert codec.encode(found, theta) == payload


def test_bit_flips_in_a_large_rans_mask_end_in_a_codec_error_or_the_one_encoding_of_another_mask() -> None:
    theta = polarised(20_000, 10)
    payload = rans.encode(drawn(theta), theta)
    for at in range(0, len(payload), 61):
        bad = payload[:at] + bytes([payload[at] ^ 1 << at % 8]) + payload[at + 1 :]
        found = only_ways_out(rans.decode, bad, theta)
        assert found is None or rans.encode(found, theta) == bad


@given(thetas())
def test_probabilities_come_back(theta: Theta) -> None:
    back = counts.decode(counts.encode(theta), theta.d)
    assert back.digest() == theta.digest()


@given(thetas())
@settings(max_examples=25)
def test_every_truncation_of_counts_is_rejected(theta: Theta) -> None:
    payload = counts.encode(theta)
    for n in range(0, len(payload), 1 + len(payload) // 60):
        with pytest.raises(CodecError):
            counts.decode(payload[:n], theta.d)


@given(thetas(), st.data())
def test_damaged_counts_are_refused_or_are_the_one_encoding_of_other_counts(theta: Theta, data: st.DataObject) -> None:
    payload = bytearray(counts.encode(theta))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    found = only_ways_out(counts.decode, bytes(payload), theta.d)
    if found is not None:
        assert counts.encode(found) == payload


@given(st.binary(max_size=100), st.integers(0, 50))
def test_any_bytes_are_refused_or_are_counts(payload: bytes, d: int) -> None:
    found = only_ways_out(counts.decode, payload, d)
    assert found is None or counts.encode(found) == payload


def test_counts_of_another_model_are_a_limit_error() -> None:
    with pytest.raises(LimitError, match="the model has 6"):
        counts.decode(counts.encode(Theta.even(5)), 6)


def test_a_share_of_ones_that_the_bits_do_not_have_is_refused() -> None:
    theta = Theta.even(4)
    honest = rans.encode(np.array([0, 0, 0, 1], np.uint8), theta)
    symbols, context = np.array([8]), np.array([0])
    other = np.array([1025])
    lying = other.astype("<u2").tobytes() + ans.encode(symbols, context, rans.frequencies(other))
    assert len(lying) == len(honest)
    with pytest.raises(CodecError, match="share"):
        rans.decode(lying, theta)


@pytest.mark.parametrize("share", [1, 2047, 2048, 2049, 4095])
def test_frequencies_sum_to_the_total_and_leave_no_symbol_out(share: int) -> None:
    row = rans.frequencies(np.array([share]))[0]
    assert int(row.sum()) == ans.TOTAL
    assert int(row.min()) >= 1


@given(st.lists(st.integers(0, 1 << 28), min_size=1, max_size=256).filter(any))
def test_normalised_counts_sum_to_the_total_and_keep_what_occurs(occurs: list[int]) -> None:
    frequency = ans.normalise(np.array(occurs))
    assert int(frequency.sum()) == ans.TOTAL
    assert [f > 0 for f in frequency.tolist()] == [n > 0 for n in occurs]


@pytest.mark.parametrize("n", [1, 2047, 2048, 2049, 4095, 4096, 300_000, 1 << 21])
def test_lanes_follow_from_the_number_of_symbols(n: int) -> None:
    assert ans.lanes_of(n) == min(1024, max(1, 1 << max(0, n.bit_length() - 11)))


@given(st.integers(1, 9000), st.integers(0, 1 << 32))
@settings(max_examples=30)
def test_a_scalar_loop_reads_what_the_lanes_wrote(n: int, number: int) -> None:
    """PROTOCOL 5.3 as a client on a phone would write it."""
    rng = np.random.default_rng(number)
    row = ans.normalise(rng.integers(0, 50, 7) ** 2 + 1)
    symbols = rng.integers(0, 7, n)
    payload = ans.encode(symbols, np.zeros(n, np.intp), row[None, :])
    lanes = ans.lanes_of(n)
    state = [int.from_bytes(payload[4 * lane : 4 * lane + 4], "little") for lane in range(lanes)]
    at, found = 4 * lanes, []
    starts = (np.cumsum(row) - row).tolist()
    for i in range(n):
        x = state[i % lanes]
        slot = x % 4096
        symbol = max(s for s in range(7) if starts[s] <= slot and row[s] > 0)
        x = int(row[symbol]) * (x // 4096) + slot - starts[symbol]
        if x < 65536:
            x = x * 65536 + int.from_bytes(payload[at : at + 2], "little")
            at += 2
        state[i % lanes] = x
        found.append(symbol)
    assert found == symbols.tolist()
    assert (at, set(state)) == (len(payload), {65536})


def polarised(d: int, max_level: int, seed: int = 0) -> Theta:
    """Theta as it looks after some rounds: most weights near an end."""
    p = np.random.default_rng(seed).beta(0.3, 0.3, d)
    return Theta(np.rint(p * max_level).astype(np.uint16), max_level)


def drawn(theta: Theta, seed: int = 1) -> Mask:
    return sample(theta.probability(), np.random.default_rng(seed))


def ideal_bytes(mask: Mask, theta: Theta) -> float:
    """Cross-entropy of the mask under theta."""
    p = theta.q16().astype(np.float64) / 65536
    return float(-np.log2(np.where(mask == 1, p, 1 - p)).sum() / 8)


@pytest.mark.parametrize("lanes", [1, 2, 8])
@given(data=st.data())
def test_few_lanes_read_one_by_one_say_what_they_say_row_by_row(lanes: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    n = data.draw(st.integers(1, 400))
    rows = np.stack([ans.normalise(rng.integers(0, 50, 7) ** 2 + 1) for _ in range(3)])
    symbols, contexts = rng.integers(0, 7, n), rng.integers(0, 3, n)
    payload = bytearray(ans.encode(symbols, contexts, rows, lanes))
    for _ in range(data.draw(st.integers(0, 2))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    payload = payload[: len(payload) - data.draw(st.sampled_from([0, 0, 2, 4]))]
    said: list[Any] = []
    for few in (0, lanes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ans, "_FEW_LANES", few)
            patch.setattr(ans, "_PIECE", 64)
            try:
                said.append(ans.decode(bytes(payload), contexts, rows, lanes).tolist())
            except CodecError as error:
                said.append(str(error))
    assert said[0] == said[1]


@pytest.mark.parametrize("max_level", [2, 10, 100, 300])
def test_a_large_rans_mask_is_within_two_percent_of_the_ideal(max_level: int) -> None:
    theta = polarised(500_000, max_level)
    mask = drawn(theta)
    assert len(rans.encode(mask, theta)) <= 1.02 * ideal_bytes(mask, theta) + 1500


@pytest.mark.parametrize("max_level", [2, 10, 100, 300])
def test_large_counts_are_within_two_percent_of_their_entropy(max_level: int) -> None:
    theta = polarised(500_000, max_level)
    share = np.bincount(theta.level, minlength=max_level + 1) / theta.d
    ideal = float(-(share[share > 0] * np.log2(share[share > 0])).sum() * theta.d / 8)
    assert len(counts.encode(theta)) <= 1.02 * ideal + 2500


def test_a_mask_that_contradicts_theta_still_fits_in_little_more_than_packed() -> None:
    theta = polarised(100_000, 10)
    noise = np.random.default_rng(3).integers(0, 2, theta.d).astype(np.uint8)
    assert len(rans.encode(noise, theta)) <= 1.01 * len(packed.encode(noise, theta)) + 500


def test_an_unknown_codec_id_says_which_ones_are_known() -> None:
    for number in (0, 4, 16, 17, 255):
        with pytest.raises(KindError, match=r"known: 1 packed, 2 rans, 3 hmrc$"):
            by_id(number)


@EACH
def test_a_wrong_mask_is_a_bug_at_home(codec: Any) -> None:
    with pytest.raises(ValueError, match="mask"):
        codec.encode(np.array([0, 2], np.uint8), Theta.even(2))


# --- masks that are drawn: what a device learnt, at the price of its information ---


def learnt(theta: Theta, spread: float = 0.35, seed: int = 5) -> F32:
    """Scores as they are after a round: the logits of theta, each moved by about `spread`."""
    noise = np.random.default_rng(seed).normal(0, spread, theta.d)
    return (theta.logit() + noise).astype(np.float32)


def probabilities(scores: F32) -> Any:
    return 1 / (1 + np.exp(-scores.astype(np.float64)))


def divergence_bits(scores: F32, theta: Theta) -> float:
    """KL(Bernoulli(sigmoid(scores)) || theta), bits in all."""
    p, q = probabilities(scores), theta.probability().astype(np.float64)
    return float((p * np.log2(p / q) + (1 - p) * np.log2((1 - p) / (1 - q))).sum())


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@EVERY
@given(theta=thetas(), spread=st.sampled_from([0.0, 0.3, 30.0, -80.0]))
@settings(max_examples=60)
def test_what_is_drawn_decodes_to_a_mask_under_all_probabilities(codec: MaskCodec, theta: Theta, spread: float) -> None:
    scores = (theta.logit() * (1 if spread >= 0 else -1)).astype(np.float32) + np.float32(spread)
    mask = codec.decode(codec.draw(scores, theta, SHARED, rng(), Plan()), theta, SHARED)
    assert mask.dtype == np.uint8
    assert mask.shape == (theta.d,)
    assert int(mask.max()) <= 1


@EVERY
def test_scores_that_are_no_numbers_are_a_bug_at_home(codec: MaskCodec) -> None:
    theta = Theta.even(4)
    for scores in (np.array([0, 0, 0, np.nan], np.float32), np.zeros(5, np.float32)):
        with pytest.raises(ValueError, match="scores"):
            codec.draw(scores, theta, SHARED, rng(), Plan())


@EVERY
@given(theta=thetas(), payload=st.binary(max_size=80))
def test_any_bytes_are_refused_or_are_a_mask(codec: MaskCodec, theta: Theta, payload: bytes) -> None:
    found = only_ways_out(codec.decode, payload, theta, SHARED)
    assert found is None or (found.shape == (theta.d,) and int(found.max()) <= 1)


def test_hmrc_costs_less_than_twice_the_relative_entropy_and_moves_as_far_as_it_should() -> None:
    theta = polarised(400_000, 10)
    scores = learnt(theta)
    payload = hmrc.draw(scores, theta, SHARED, rng(), Plan())
    assert 8 * len(payload) <= 2.0 * divergence_bits(scores, theta)
    mask = hmrc.decode(payload, theta, SHARED)
    q = theta.probability().astype(np.float64)
    moved = probabilities(scores) - q
    slope = float(((mask - q) * moved).sum() / (moved**2).sum())
    assert 0.95 <= slope <= 1.05


def test_hmrc_costs_a_fraction_of_rans() -> None:
    theta = polarised(200_000, 10)
    scores = learnt(theta)
    exact, random = (len(codec.draw(scores, theta, SHARED, rng(), Plan())) for codec in (rans, hmrc))
    assert exact > 9 * random


def test_without_anything_learnt_hmrc_is_one_block_and_its_mask_follows_theta() -> None:
    theta = polarised(100_000, 10)
    payload = hmrc.draw(theta.logit(), theta, SHARED, rng(), Plan())
    assert len(payload) == 2
    mask = hmrc.decode(payload, theta, SHARED)
    assert abs(float(mask.mean()) - float(theta.probability().mean())) < 0.005


def test_a_larger_kappa_sends_fewer_blocks_and_a_bound_holds() -> None:
    theta = polarised(100_000, 10)
    scores = learnt(theta)
    blocks = [
        varint.get(hmrc.draw(scores, theta, SHARED, rng(), plan), 0)[0]
        for plan in (Plan(5.0), Plan(24.0), Plan(5.0, max_blocks=40), Plan(0.001))
    ]
    assert blocks[0] > 4 * blocks[1] > blocks[2]
    assert blocks[2] == 40
    assert blocks[3] == theta.d // 8


def test_more_blocks_than_the_job_allows_are_a_limit_error() -> None:
    theta = Theta.even(80)
    payload = varint.put(10) + bytes(10)
    assert hmrc.decode(payload, theta, SHARED).shape == (80,)
    with pytest.raises(LimitError, match="9 are allowed"):
        hmrc.decode(payload, theta, SHARED, max_blocks=9)
    with pytest.raises(LimitError):
        hmrc.decode(varint.put(11) + bytes(11), theta, SHARED)


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(0, 1 << 32))
@settings(max_examples=25)
def test_a_scalar_loop_reads_the_blocks_of_hmrc(d: int, blocks: int, seed: int) -> None:
    """PROTOCOL 5.5 as a client on a phone would write it."""
    blocks = min(blocks, max(1, d // 8))
    theta = polarised(d, 3, seed)
    picks = np.random.default_rng(seed).integers(0, 256, blocks).astype(np.uint8)
    found = hmrc.decode(varint.put(blocks) + picks.tobytes(), theta, SHARED)
    u, q = SHARED.uniforms(d).tolist(), theta.q16().tolist()
    for i in range(0, d, max(1, d // 200)):
        r1 = 1 + i // blocks % 255
        r2 = r1 << 1 if r1 < 128 else (r1 << 1) ^ 0x11D
        j = int(picks[i % blocks])
        s = 2 * (bin(r1 & j).count("1") & 1) + (bin(r2 & j).count("1") & 1)
        assert found[i] == ((u[i] + 16384 * s) % 65536 < q[i])


def test_candidates_of_a_block_are_draws_of_theta() -> None:
    theta = Theta(np.full(60_000, 3, np.uint16), 10)
    for pick in (0, 1, 77, 255):
        mask = hmrc.decode(varint.put(1) + bytes([pick]), theta, SHARED)
        assert abs(float(mask.mean()) - float(theta.probability()[0])) < 0.01


# --- theta, under the theta of the round before ---


def moved(theta: Theta, share: float, seed: int = 9) -> Theta:
    """Some levels one up or down."""
    rng = np.random.default_rng(seed)
    step = rng.integers(-1, 2, theta.d) * (rng.random(theta.d) < share)
    return Theta(np.clip(theta.level + step, 0, theta.max_level).astype(np.uint16), theta.max_level, theta.clamp)


@given(st.integers(1, 500), st.sampled_from([1, 3, 10, 15]), st.sampled_from([1, 2, 3, 10, 255]), st.integers(0, 999))
def test_a_delta_gives_theta_back_and_is_canonical(d: int, base_max_level: int, max_level: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = Theta(rng.integers(0, base_max_level + 1, d).astype(np.uint16), base_max_level)
    theta = Theta(rng.integers(0, max_level + 1, d).astype(np.uint16), max_level, 700)
    payload = delta.encode(theta, base)
    assert delta.decode(payload, base).digest() == theta.digest()
    for n in range(0, len(payload), 1 + len(payload) // 40):
        with pytest.raises(CodecError):
            delta.decode(payload[:n], base)
    at = int(rng.integers(0, len(payload)))
    bad = payload[:at] + bytes([payload[at] ^ 1 << int(rng.integers(0, 8))]) + payload[at + 1 :]
    found = only_ways_out(delta.decode, bad, base)
    assert found is None or delta.encode(found, base) == bad


def test_a_delta_on_another_base_is_a_mismatch() -> None:
    base = polarised(1000, 10)
    with pytest.raises(ThetaMismatchError):
        delta.decode(delta.encode(moved(base, 0.1), base), moved(base, 0.2))


def test_a_delta_of_few_changes_costs_a_fraction_of_a_snapshot() -> None:
    base = polarised(200_000, 3)
    theta = moved(base, 0.02)
    assert 5 * len(delta.encode(theta, base)) < len(counts.encode(theta))


def test_too_many_levels_have_no_delta() -> None:
    base, theta = polarised(100, 100), polarised(100, 255)
    assert not delta.possible(theta, base)
    with pytest.raises(ValueError, match="no delta"):
        delta.encode(theta, base)


# --- theta, as the masks that made it ---


def parts_of(base: Theta, codecs: list[int]) -> tuple[list[relay.Part], list[Mask]]:
    """One device per codec, each with a mask of what it learnt, and these masks."""
    parts, masks = [], []
    for number, codec in enumerate(codecs):
        shared = Shared(7, 4, "job", f"d-{number}")
        payload = by_id(codec).draw(learnt(base, seed=number), base, shared, rng(), Plan())
        parts.append(relay.Part(f"d-{number}", 10 * number + 10, codec, (payload,)))
        masks.append(by_id(codec).decode(payload, base, shared))
    return parts, masks


@pytest.mark.parametrize("codecs", [[3], [3, 3, 3], [1, 2, 3]])
@pytest.mark.parametrize("heaviest", [0, 1000, 25])
def test_a_relay_gives_the_theta_of_its_masks_in_any_order(codecs: list[int], heaviest: int) -> None:
    base = polarised(3000, 10)
    parts, masks = parts_of(base, codecs)
    payload = relay.encode(base, 4, Pooling(0, 655, heaviest), parts)
    assert relay.encode(base, 4, Pooling(0, 655, heaviest), parts[::-1]) == payload
    theta = relay.decode(payload, base, 7, "job")
    weights = [min(part.samples, heaviest) if heaviest else 1 for part in parts]
    mean = sum(w * m.astype(float) for w, m in zip(weights, masks, strict=True)) / sum(weights)
    assert np.allclose(theta.level / theta.max_level, mean)


def test_a_relay_rounds_to_levels_when_asked() -> None:
    base = polarised(3000, 10)
    parts, masks = parts_of(base, [3, 3, 3, 3, 3])
    theta = relay.decode(relay.encode(base, 4, Pooling(3, 655, 0), parts), base, 7, "job")
    assert theta.max_level == 3
    assert np.abs(theta.level / 3 - np.mean(masks, axis=0)).max() <= 1 / 6 + 1e-4


def test_weights_without_a_common_divisor_still_give_a_theta() -> None:
    total = np.array([0, 1, (1 << 22) - 1, 2 * (1 << 22) - 1], np.int64)
    theta = pool(total, 2 * (1 << 22) - 1, 1, 2, 0, 655)
    assert theta.max_level == 255
    assert theta.level.tolist() == [0, 0, 128, 255]


@given(data=st.data())
@settings(max_examples=60)
def test_damaged_relays_are_refused_or_are_another_relay(data: st.DataObject) -> None:
    base = polarised(60, 10)
    payload = bytearray(relay.encode(base, 4, Pooling(0, 655, 1000), parts_of(base, [1, 3, 2])[0]))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    found = only_ways_out(relay.decode, bytes(payload), base, 7, "job")
    assert found is None or found.d == base.d
    assert only_ways_out(relay.decode, bytes(payload[:at]), base, 7, "job") is None


def test_a_relay_that_would_keep_its_reader_busy_for_minutes_is_refused_before_any_mask_is_decoded() -> None:
    base = Theta.even(1 << 20)
    many = tuple(relay.Part(f"d-{n:03d}", 1, 3, (b"\1\0",) * 255) for n in range(5))
    with pytest.raises(LimitError, match="more than 1024 masks"):
        relay.decode(relay.encode(base, 1, Pooling(0, 655, 0), many), base, 7, "job")


@given(st.binary(max_size=120))
def test_any_bytes_are_refused_or_are_a_relay(payload: bytes) -> None:
    base = Theta.even(20)
    found = only_ways_out(relay.decode, bytes([18]) + base.digest() + payload, base, 7, "job")
    assert found is None or found.d == 20


@pytest.mark.parametrize(("max_level", "base_max_level"), [(1, 1), (3, 3), (10, 15), (60, 60)])
def test_the_size_of_a_delta_is_known_without_coding_it(max_level: int, base_max_level: int) -> None:
    base = polarised(50_000, base_max_level)
    theta = Theta(np.random.default_rng(2).binomial(max_level, base.probability()).astype(np.uint16), max_level)
    size = len(delta.encode(theta, base))
    assert abs(delta.estimate(theta, base) - size) < 0.02 * size + 100


def test_a_relay_of_ten_devices_costs_less_than_theta() -> None:
    base = polarised(200_000, 10)
    parts, masks = parts_of(base, [3] * 10)
    theta = Theta(np.sum(masks, axis=0, dtype=np.uint16), 10)
    payload = relay.encode(base, 4, Pooling(0, 655, 0), parts)
    assert relay.decode(payload, base, 7, "job").digest() == theta.digest()
    assert 5 * len(payload) < len(delta.encode(theta, base)) < len(counts.encode(theta))


# --- numbers of variable length ---


@given(st.integers(0, (1 << 32) - 1), st.binary(max_size=4))
def test_a_number_comes_back_with_the_place_after_it(value: int, rest: bytes) -> None:
    data = varint.put(value)
    assert varint.get(b"x" + data + rest, 1) == (value, 1 + len(data))


@given(st.binary(max_size=7))
def test_any_bytes_are_refused_or_begin_with_the_one_encoding_of_a_number(data: bytes) -> None:
    found = only_ways_out(varint.get, data, 0)
    assert found is None or varint.put(found[0]) == data[: found[1]]
