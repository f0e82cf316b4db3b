"""Shared uniforms: the same on both sides, fresh for every mask, uniform."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from seedmask.shared import Shared

ONE = Shared(1, 2, "job", "pi-1")


def test_every_part_of_the_name_gives_other_uniforms() -> None:
    others = [
        replace(ONE, seed=2),
        replace(ONE, round=3),
        replace(ONE, job="jo"),
        replace(ONE, device="pi-2"),
        replace(ONE, index=1),
    ]
    drawn = [who.uniforms(64).tolist() for who in (ONE, *others)]
    assert len({tuple(values) for values in drawn}) == len(drawn)
    assert replace(ONE).uniforms(64).tolist() == drawn[0]


def test_job_and_device_cannot_be_confused() -> None:
    assert Shared(1, 1, "a", "b-c").uniforms(8).tolist() != Shared(1, 1, "a-b", "c").uniforms(8).tolist()


def test_a_prefix_is_a_prefix() -> None:
    assert np.array_equal(ONE.uniforms(10), ONE.uniforms(40_000)[:10])


def test_each_device_alone_is_uniform() -> None:
    counts = np.bincount(ONE.uniforms(200_000) >> 12, minlength=16)
    assert np.abs(counts / 12_500 - 1).max() < 0.05
