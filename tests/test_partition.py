"""Who holds which examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedmask.errors import UserError
from sim.partition import split

LABELS = np.repeat(np.arange(10), 100)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_iid_deals_out_everything_once() -> None:
    parts = split("iid", LABELS, 8, 0, rng())
    everything = np.concatenate(parts)
    assert [len(part) for part in parts] == [125] * 8
    assert len(set(everything.tolist())) == 1000


def test_iid_devices_have_about_every_class_alike() -> None:
    for part in split("iid", LABELS, 4, 0, rng()):
        assert np.bincount(LABELS[part], minlength=10).min() > 10


def test_per_device_limits_what_each_one_gets() -> None:
    assert [len(part) for part in split("iid", LABELS, 8, 20, rng())] == [20] * 8
    assert [len(part) for part in split("iid", LABELS, 8, 999, rng())] == [125] * 8


@pytest.mark.parametrize("c", [1, 2, 4, 10])
def test_c_max_gives_no_device_more_classes_than_that(c: int) -> None:
    parts = split(f"c_max:{c}", LABELS, 20, 40, rng())
    assert len(parts) == 20
    for part in parts:
        assert 1 <= len(np.unique(LABELS[part])) <= c
        assert len(set(part.tolist())) == len(part) >= 1


@pytest.mark.parametrize("devices", [2, 8, 20])
def test_c_max_sizes_are_ten_times_apart_and_their_mean_is_kept(devices: int) -> None:
    sizes = [len(part) for part in split("c_max:2", LABELS, devices, 40, rng())]
    assert 9 < max(sizes) / min(sizes) < 11
    assert sum(sizes) == 40 * devices


def test_c_max_leaves_no_class_out() -> None:
    parts = split("c_max:2", LABELS, 20, 40, rng())
    assert set(LABELS[np.concatenate(parts)].tolist()) == set(range(10))


def test_c_max_shares_examples_only_when_a_class_has_run_out() -> None:
    few = np.concatenate(split("c_max:2", LABELS, 10, 20, rng()))
    assert len(set(few.tolist())) == len(few)


@pytest.mark.parametrize("how", ["iid", "c_max:3", "classes:2", "dirichlet:0.3", "sizes:10"])
def test_the_same_seed_gives_the_same_split(how: str) -> None:
    one, two = (split(how, LABELS, 7, 30, rng()) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    other = split(how, LABELS, 7, 30, np.random.default_rng(6))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("how", "devices", "per_device", "says"),
    [
        ("iid", 0, 0, "0 devices cannot share 1000 examples"),
        ("iid", 1001, 0, "1001 devices cannot share"),
        ("iid", 5, -1, "cannot share"),
        ("sorted", 5, 0, "split 'sorted' is unknown; there are iid, c_max"),
        ("c_max", 5, 0, "is unknown"),
        ("c_max:0", 5, 0, "is unknown"),
        ("c_max:x", 5, 0, "is unknown"),
        ("c_max:²", 5, 0, "is unknown"),
        ("c_max:11", 5, 0, "c_max:11, but there are 10 classes"),
        ("classes:11", 5, 0, "classes:11, but there are 10 classes"),
        ("classes:4", 5, 3, "classes:4 needs at least 4 examples per device, found 3"),
        ("classes:1", 3, 150, "classes:1 with 150 examples for each of 3 devices needs 150 of class ., there are 100"),
        ("dirichlet:0", 5, 0, "is unknown"),
        ("dirichlet:nan", 5, 0, "is unknown"),
        ("sizes:0.5", 5, 0, "is unknown; there are iid, c_max:<c>, classes:<c>, dirichlet:<alpha>, sizes:<ratio>"),
    ],
)
def test_a_split_that_cannot_be_made_says_what_can(how: str, devices: int, per_device: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        split(how, LABELS, devices, per_device, rng())


@given(
    how=st.sampled_from(
        ["iid", "classes:1", "classes:2", "classes:5", "dirichlet:0.01", "dirichlet:0.3", "dirichlet:90"]
    ),
    devices=st.integers(1, 20),
    per_device=st.integers(5, 50),
    seed=st.integers(0, 99),
)
def test_nobody_is_left_out_nothing_is_shared_and_sizes_are_what_was_asked(
    how: str, devices: int, per_device: int, seed: int
) -> None:
    try:
        parts = split(how, LABELS, devices, per_device, np.random.default_rng(seed))
    except UserError as error:
        if "needs" not in str(error) or not how.startswith("classes"):
            raise
        return
    everything = np.concatenate(parts)
    assert [len(part) for part in parts] == [per_device] * devices
    assert len(set(everything.tolist())) == len(everything)


@given(devices=st.integers(1, 40), mean=st.integers(1, 25), ratio=st.floats(1, 50), seed=st.integers(0, 99))
def test_sizes_keep_their_sum_and_give_everybody_one(devices: int, mean: int, ratio: float, seed: int) -> None:
    parts = split(f"sizes:{ratio}", LABELS, devices, mean, np.random.default_rng(seed))
    sizes = sorted(len(part) for part in parts)
    assert sum(sizes) == devices * mean
    assert sizes[0] >= 1
    assert sizes[-1] / sizes[0] <= max(2 * ratio, 2)
    assert len(set(np.concatenate(parts).tolist())) == sum(sizes)


def test_sizes_are_that_ratio_apart() -> None:
    sizes = [len(part) for part in split("sizes:16", LABELS, 5, 100, rng())]
    assert 15 < max(sizes) / min(sizes) < 17


@pytest.mark.parametrize("c", [1, 2, 5])
def test_classes_gives_every_device_that_many_in_equal_parts(c: int) -> None:
    for part in split(f"classes:{c}", LABELS, 10, 20, rng()):
        counts = np.bincount(LABELS[part], minlength=10)
        assert (counts > 0).sum() == c
        assert set(counts[counts > 0].tolist()) == {20 // c}


def test_dirichlet_mixes_are_even_for_a_large_alpha_and_lopsided_for_a_small_one() -> None:
    def largest(alpha: float) -> float:
        parts = split(f"dirichlet:{alpha}", LABELS, 10, 50, rng())
        return float(np.mean([np.bincount(LABELS[part], minlength=10).max() / 50 for part in parts]))

    assert largest(1000) < 0.3
    assert largest(0.05) > 0.6
