"""The generator: the numbers themselves, and that nothing but key and position can change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedmask import seed

U64 = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("counter", "key", "result"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_random123s_known_answers(
    counter: tuple[int, int], key: seed.Key, result: tuple[int, int]
) -> None:
    x0, x1 = seed.threefry2x32(key, np.array([counter[0]], np.uint32), np.array([counter[1]], np.uint32))
    assert (int(x0[0]), int(x1[0])) == result


def test_the_counters_of_the_caller_are_left_alone() -> None:
    counter = np.arange(4, dtype=np.uint32)
    seed.threefry2x32((1, 2), counter, counter)
    assert counter.tolist() == [0, 1, 2, 3]


@given(U64, st.integers(0, 300), st.integers(0, 300))
def test_a_shorter_stream_is_the_beginning_of_a_longer_one(number: int, n: int, m: int) -> None:
    key = seed.key_of(number)
    n, m = sorted((n, m))
    assert np.array_equal(seed.words(key, n), seed.words(key, m)[:n])
    assert np.array_equal(seed.uniforms16(key, n), seed.uniforms16(key, m)[:n])
    assert np.array_equal(seed.sign_bits(number, n), seed.sign_bits(number, m)[:n])


@given(U64, st.integers(1, 200))
def test_sign_bits_are_the_bits_of_the_weights_stream_in_order(number: int, d: int) -> None:
    stream = seed.words(seed.fold(seed.key_of(number), seed.WEIGHTS), (d + 31) // 32)
    wanted = [int(stream[j // 32]) >> (j % 32) & 1 for j in range(d)]
    assert seed.sign_bits(number, d).tolist() == wanted


@given(U64, st.integers(1, 50))
def test_uniforms_are_low_then_high_halves(number: int, n: int) -> None:
    key = seed.key_of(number)
    stream = seed.words(key, n)
    assert seed.uniforms16(key, 2 * n).tolist() == [h for w in stream.tolist() for h in (w & 0xFFFF, w >> 16)]


def test_no_two_uses_share_a_key() -> None:
    keys = [seed.key_of(5), seed.weights_key(5), seed.weights_key(6)]
    keys += [seed.uniforms_key(5, round_, slot) for round_ in range(10) for slot in range(10)]
    assert len(set(keys)) == len(keys)


def test_signs_and_uniforms_are_balanced() -> None:
    signs, uniforms = seed.sign_bits(11, 1 << 18), seed.uniforms16(seed.uniforms_key(11, 0, 0), 1 << 18)
    assert abs(float(signs.mean()) - 0.5) < 0.005
    assert abs(float(uniforms.mean()) / 65535 - 0.5) < 0.005


@pytest.mark.parametrize("number", [-1, 1 << 64])
def test_a_seed_outside_64_bits_is_a_bug_at_home(number: int) -> None:
    with pytest.raises(ValueError, match="2\\*\\*64"):
        seed.key_of(number)
