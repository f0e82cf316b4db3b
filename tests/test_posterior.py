"""Counts of ones: integers, so that neither order nor grouping can change what comes of a round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.posterior import Posterior
from seedmask.mask import CLAMP, Theta

D = 40


def masks_of(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(3).integers(0, 2, (n, D)).astype(np.uint8))


def folded(masks: list[np.ndarray]) -> Posterior:
    posterior = Posterior.empty(D)
    for mask in masks:
        posterior = posterior.fold(mask)
    return posterior


def test_theta_is_the_count_of_ones_over_the_number_of_masks() -> None:
    masks = masks_of(7)
    theta = folded(masks).theta()
    assert (theta.top, theta.clamp) == (7, CLAMP)
    assert np.array_equal(theta.level, np.sum(masks, axis=0))


@given(st.permutations(range(6)))
def test_order_does_not_matter(order: list[int]) -> None:
    masks = masks_of(6)
    assert folded([masks[i] for i in order]).theta().digest() == folded(masks).theta().digest()


def test_folding_leaves_what_was_folded_alone() -> None:
    before = folded(masks_of(2))
    ones = before.ones.copy()
    before.fold(np.ones(D, np.uint8))
    assert np.array_equal(before.ones, ones)
    assert before.n == 2


def test_unanimous_weights_stay_off_certainty() -> None:
    mask = np.zeros(D, np.uint8)
    mask[::2] = 1
    q16 = folded([mask] * 5).theta().q16()
    assert set(q16[::2].tolist()) == {65536 - CLAMP}
    assert set(q16[1::2].tolist()) == {CLAMP}


def test_more_masks_than_a_byte_can_count_are_counted() -> None:
    theta = folded([np.ones(D, np.uint8)] * 300).theta()
    assert (theta.top, set(theta.level.tolist())) == (300, {300})


def test_no_mask_gives_no_probabilities() -> None:
    with pytest.raises(ValueError, match=r"top is 1 \.\."):
        Posterior.empty(D).theta()


def test_the_first_round_starts_even() -> None:
    assert set(Theta.even(D).q16().tolist()) == {32768}
