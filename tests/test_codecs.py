"""Codecs: exact, canonical, total on any bytes, and as small as the probabilities allow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedmask.codec import CODECS, NAMES, MaskCodec, ans, by_id, counts, packed, rans
from seedmask.errors import CodecError, KindError, LimitError, ProtocolError
from seedmask.mask import Mask, Theta, sample

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

EACH = pytest.mark.parametrize("codec", CODECS.values(), ids=list(NAMES))
TOPS = st.sampled_from([1, 2, 3, 10, 100, 255, 256, 300, 65535])
CLAMPS = st.sampled_from([1, 655, 20_000, 32767])


@st.composite
def thetas(draw: Any, d: int | None = None) -> Theta:
    """Levels that are all alike, all over the place, at the ends, or in one bucket."""
    size = draw(st.integers(1, 400)) if d is None else d
    top, rng = draw(TOPS), np.random.default_rng(draw(st.integers(0, 1 << 32)))
    choices = {
        "spread": rng.integers(0, top + 1, size),
        "ends": rng.integers(0, 2, size) * top,
        "one": np.full(size, rng.integers(0, top + 1)),
    }
    return Theta(choices[draw(st.sampled_from(sorted(choices)))].astype(np.uint16), top, draw(CLAMPS))


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
def test_what_was_coded_comes_back(codec: MaskCodec, pair: tuple[Theta, Mask]) -> None:
    theta, mask = pair
    back = codec.decode(codec.encode(mask, theta), theta)
    assert back.dtype == np.uint8
    assert np.array_equal(back, mask)


@EACH
@given(pair=pairs())
@settings(max_examples=25)
def test_every_truncation_of_a_mask_is_rejected(codec: MaskCodec, pair: tuple[Theta, Mask]) -> None:
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
    codec: MaskCodec, pair: tuple[Theta, Mask], data: st.DataObject
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
def test_any_bytes_are_refused_or_are_the_one_encoding_of_a_mask(
    codec: MaskCodec, theta: Theta, payload: bytes
) -> None:
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
    lying = other.astype("<u2").tobytes() + ans.encode(symbols, context, rans._frequencies(other))
    assert len(lying) == len(honest)
    with pytest.raises(CodecError, match="share"):
        rans.decode(lying, theta)


@pytest.mark.parametrize("share", [1, 2047, 2048, 2049, 4095])
def test_frequencies_sum_to_the_total_and_leave_no_symbol_out(share: int) -> None:
    row = rans._frequencies(np.array([share]))[0]
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


def polarised(d: int, top: int, seed: int = 0) -> Theta:
    """Theta as it looks after some rounds: most weights near an end."""
    p = np.random.default_rng(seed).beta(0.3, 0.3, d)
    return Theta(np.rint(p * top).astype(np.uint16), top)


def drawn(theta: Theta, seed: int = 1) -> Mask:
    return sample(theta.probability(), np.random.default_rng(seed))


def ideal_bytes(mask: Mask, theta: Theta) -> float:
    """Cross-entropy of the mask under theta."""
    p = theta.q16().astype(np.float64) / 65536
    return float(-np.log2(np.where(mask == 1, p, 1 - p)).sum() / 8)


@pytest.mark.parametrize("top", [2, 10, 100, 300])
def test_a_large_rans_mask_is_within_two_percent_of_the_ideal(top: int) -> None:
    theta = polarised(500_000, top)
    mask = drawn(theta)
    assert len(rans.encode(mask, theta)) <= 1.02 * ideal_bytes(mask, theta) + 1500


@pytest.mark.parametrize("top", [2, 10, 100, 300])
def test_large_counts_are_within_two_percent_of_their_entropy(top: int) -> None:
    theta = polarised(500_000, top)
    share = np.bincount(theta.level, minlength=top + 1) / theta.d
    ideal = float(-(share[share > 0] * np.log2(share[share > 0])).sum() * theta.d / 8)
    assert len(counts.encode(theta)) <= 1.02 * ideal + 2500


def test_a_mask_that_contradicts_theta_still_fits_in_little_more_than_packed() -> None:
    theta = polarised(100_000, 10)
    noise = np.random.default_rng(3).integers(0, 2, theta.d).astype(np.uint8)
    assert len(rans.encode(noise, theta)) <= 1.01 * len(packed.encode(noise, theta)) + 500


def test_an_unknown_codec_id_says_which_ones_are_known() -> None:
    for number in (0, 3, 4, 16, 255):
        with pytest.raises(KindError, match="1 packed, 2 rans"):
            by_id(number)


@EACH
def test_a_wrong_mask_is_a_bug_at_home(codec: MaskCodec) -> None:
    with pytest.raises(ValueError, match="mask"):
        codec.encode(np.array([0, 2], np.uint8), Theta.even(2))
