"""Who holds which examples."""

from __future__ import annotations

import numpy as np
import pytest

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


@pytest.mark.parametrize("how", ["iid", "c_max:3"])
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
        ("sorted", 5, 0, "split 'sorted' is unknown; there are iid and c_max"),
        ("c_max", 5, 0, "is unknown"),
        ("c_max:0", 5, 0, "is unknown"),
        ("c_max:x", 5, 0, "is unknown"),
        ("c_max:²", 5, 0, "is unknown"),
        ("c_max:11", 5, 0, "c_max:11, but there are 10 classes"),
    ],
)
def test_a_split_that_cannot_be_made_says_what_can(how: str, devices: int, per_device: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        split(how, LABELS, devices, per_device, rng())
