"""Mask and theta: the table is exact and symmetric, the digest names probabilities and nothing else."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedmask import mask
from seedmask.mask import ONE, Theta

TOPS = st.integers(1, mask.MAX_LEVEL)
CLAMPS = st.integers(1, ONE // 2 - 1)


@given(TOPS, CLAMPS)
def test_the_table_is_the_exact_probability_rounded_half_up(max_level: int, clamp: int) -> None:
    found = mask.table(max_level, clamp)
    for level in {0, 1, max_level // 3, max_level // 2, max_level - 1, max_level}:
        exact = clamp + Fraction((ONE - 2 * clamp) * level, max_level)
        assert int(found[level]) == (exact + Fraction(1, 2)).__floor__()


@given(TOPS, CLAMPS)
def test_the_table_runs_from_clamp_to_one_minus_clamp_and_never_falls(max_level: int, clamp: int) -> None:
    found = mask.table(max_level, clamp).astype(np.int64)
    assert (found[0], found[-1]) == (clamp, ONE - clamp)
    assert np.all(np.diff(found) >= 0)


def test_every_job_starts_at_one_half() -> None:
    even = Theta.even(5)
    assert even.q16().tolist() == [ONE // 2] * 5
    assert even.logit().tolist() == [0.0] * 5
    assert even.threshold().tolist() == [1] * 5


def test_logit_is_the_inverse_of_sigmoid() -> None:
    theta = Theta(np.arange(11, dtype=np.uint16), 10)
    assert np.allclose(1 / (1 + np.exp(-theta.logit())), theta.probability(), atol=1e-6)


def test_the_digest_tells_levels_top_clamp_and_length_apart() -> None:
    level = np.array([1, 2, 1], np.uint16)
    others = [
        Theta(level, 2),
        Theta(np.array([2, 1, 1], np.uint16), 2),
        Theta(level, 4),
        Theta(level, 2, 656),
        Theta(level[:2].copy(), 2),
    ]
    names = {theta.digest() for theta in others}
    assert len(names) == len(others)
    assert {len(name) for name in names} == {16}
    assert Theta(level.copy(), 2).digest() in names


@pytest.mark.parametrize(
    ("level", "max_level", "clamp"),
    [
        (np.array([3], np.uint16), 2, 655),
        (np.array([0], np.uint16), 0, 655),
        (np.array([0], np.uint16), 65536, 655),
        (np.array([0], np.uint16), 2, 0),
        (np.array([0], np.uint16), 2, ONE // 2),
        (np.array([0], np.int64), 2, 655),
        (np.zeros((1, 1), np.uint16), 2, 655),
        (np.zeros(0, np.uint16), 2, 655),
    ],
)
def test_a_theta_that_cannot_be_is_a_bug_at_home(level: np.ndarray, max_level: int, clamp: int) -> None:
    with pytest.raises(ValueError, match="found"):
        Theta(level, max_level, clamp)


def test_a_sample_follows_its_probabilities() -> None:
    p = np.repeat(np.array([0.01, 0.5, 0.99], np.float32), 20_000)
    drawn = mask.sample(p, np.random.default_rng(0)).reshape(3, -1).mean(axis=1)
    assert np.allclose(drawn, [0.01, 0.5, 0.99], atol=0.012)


@pytest.mark.parametrize("wrong", [np.zeros(4, np.uint8), np.zeros(3, np.int64), np.array([0, 1, 2], np.uint8)])
def test_a_mask_that_cannot_be_is_a_bug_at_home(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="found"):
        mask.check_mask(wrong, 3)
