"""What several test files need: one network small enough for NumPy, its bundle, and data that it can learn.

Nothing here needs torch, onnx or onnxruntime, so that a device's own environment can run the tests of its parts.
"""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest

from edge_client.data import Dataset
from seedmask import wire
from seedmask.bundle import Bundle
from seedmask.spec import Flatten, Linear, ModelSpec, ReLU, Tensor, scale_bits

with contextlib.suppress(ImportError):
    from hypothesis import settings

    # No wall clock, and the same examples every time: a test that fails here fails on every machine.
    settings.register_profile("seedmask", deadline=None, derandomize=True)
    settings.load_profile("seedmask")


wire.CHECK = True  # every frame that a test's own process makes is read again


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    """16-16-4 with one bias, 324 weights; inputs are bytes."""
    return ModelSpec(
        "tiny",
        0x7E57,
        (1, 4, 4),
        (0, 255),
        4,
        (Flatten(), Linear("a.weight", None), ReLU(), Linear("b.weight", "b.bias")),
        (
            Tensor("a.weight", (16, 16), scale_bits(0.5)),
            Tensor("b.weight", (4, 16), scale_bits(0.5)),
            Tensor("b.bias", (4,), scale_bits(0.5)),
        ),
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny_spec: ModelSpec) -> Bundle:
    """For the reference runtime, which needs no graph."""
    return Bundle(tiny_spec, 8, {})


@pytest.fixture(scope="session")
def tiny_data() -> Dataset:
    """96 images of 4x4 bytes; the class is the quadrant that is bright."""
    rng = np.random.default_rng(7)
    y = np.arange(96) % 4
    x = rng.integers(0, 90, (96, 1, 4, 4))
    for image, k in zip(x, y, strict=True):
        image[0, 2 * (k // 2) : 2 * (k // 2) + 2, 2 * (k % 2) : 2 * (k % 2) + 2] += 160
    return Dataset(x.astype(np.uint8), y.astype(np.int64))


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk where a test is about order, not about power cuts."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
