"""Shared uniforms: the same on both sides, fresh for every mask, uniform; stratified ones also together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seedmask.shared import Shared

ONE = Shared(1, 2, "job", "pi-1")


def test_every_part_of_the_name_gives_other_uniforms() -> None:
    others = [
        replace(ONE, seed=2),
        replace(ONE, round=3),
        replace(ONE, job="jo"),
        replace(ONE, device="pi-2"),
        replace(ONE, index=1),
        replace(ONE, stratum=(0, 2)),
    ]
    drawn = [who.uniforms(64).tolist() for who in (ONE, *others)]
    assert len({tuple(values) for values in drawn}) == len(drawn)
    assert replace(ONE).uniforms(64).tolist() == drawn[0]


def test_job_and_device_cannot_be_confused() -> None:
    assert Shared(1, 1, "a", "b-c").uniforms(8).tolist() != Shared(1, 1, "a-b", "c").uniforms(8).tolist()


def test_a_prefix_is_a_prefix() -> None:
    assert np.array_equal(ONE.uniforms(10), ONE.uniforms(40_000)[:10])


@pytest.mark.parametrize("of", [1, 2, 7, 10])
def test_stratified_uniforms_hit_every_stratum_once(of: int) -> None:
    together = np.stack([replace(ONE, device=f"d-{k}", stratum=(k, of)).uniforms(500) for k in range(of)])
    strata = np.sort(together.astype(np.int64) * of // 65536, axis=0)
    # Rounding down may put a uniform on the last number of the stratum below.
    edges = np.sort((together.astype(np.int64) * of + of - 1) // 65536, axis=0)
    assert ((strata == np.arange(of)[:, None]) | (edges == np.arange(of)[:, None])).all()


@pytest.mark.parametrize("stratum", [None, (0, 10), (9, 10)])
def test_each_device_alone_is_uniform(stratum: tuple[int, int] | None) -> None:
    values = replace(ONE, stratum=stratum).uniforms(200_000)
    counts = np.bincount(values >> 12, minlength=16)
    assert np.abs(counts / 12_500 - 1).max() < 0.05


@pytest.mark.parametrize("stratum", [(-1, 2), (2, 2), (0, 0), (0, 65536)])
def test_a_stratum_outside_its_number_is_a_bug_at_home(stratum: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="stratum"):
        replace(ONE, stratum=stratum)
