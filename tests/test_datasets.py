"""Where a simulated fleet's images come from. Nothing here uses the network."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from seedmask.errors import UserError
from sim import datasets
from sim.datasets import Images, load, subset


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fill(folder: Path, side: int = 28, top: int = 9) -> None:
    rng = np.random.default_rng(2)
    for kind, n in (("train", 20), ("t10k", 11)):
        x = rng.integers(0, 256, (n, side, side)).astype(np.uint8)
        y = np.resize(np.arange(top + 1), n).astype(np.uint8)
        (folder / f"{kind}-images-idx3-ubyte").write_bytes(idx(x))
        (folder / f"{kind}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(y)))


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without the Debian package and without a network."""
    monkeypatch.setattr(datasets, "DEBIAN", tmp_path / "no-debian")
    monkeypatch.setattr(datasets, "_fetch", lambda: None)
    return tmp_path


def holds(images: Images) -> None:
    for data in (images.train, images.test):
        assert (data.x.dtype, data.x.shape[1:]) == (np.uint8, (1, 28, 28))
        assert (data.y.dtype, data.y.shape) == (np.int64, data.x.shape[:1])
        assert (int(data.y.min()), int(data.y.max())) == (0, 9)


def test_digits_are_images_of_28x28_bytes_and_the_same_every_time() -> None:
    pytest.importorskip("sklearn")
    images, again = load("digits", None), load("digits", None)
    holds(images)
    assert (images.name, len(images.train.y), len(images.test.y)) == ("digits", 1437, 360)
    assert int(images.train.x.max()) == 255
    assert np.array_equal(images.train.x, again.train.x)


def test_a_folder_is_read_plain_or_gzipped(nowhere: Path) -> None:
    fill(nowhere)
    images = load("fashion-mnist", nowhere)
    holds(images)
    assert (images.name, images.origin) == ("fashion-mnist", str(nowhere))
    assert (len(images.train.y), len(images.test.y)) == (20, 11)


def test_files_that_are_missing_are_named(nowhere: Path) -> None:
    fill(nowhere)
    (nowhere / "t10k-labels-idx1-ubyte.gz").unlink()
    (nowhere / "train-images-idx3-ubyte").unlink()
    with pytest.raises(UserError, match=r"lacks train-images-idx3-ubyte, t10k-labels-idx1-ubyte \(plain or \.gz\)"):
        load("auto", nowhere)


@pytest.mark.parametrize(("side", "top"), [(27, 9), (28, 10)])
def test_images_of_another_kind_are_refused(nowhere: Path, side: int, top: int) -> None:
    fill(nowhere, side, top)
    with pytest.raises(UserError, match=r"28x28 images with labels 0 \.\. 9 expected"):
        load("fashion-mnist", nowhere)


def test_auto_falls_back_to_digits_and_a_wish_says_how_to_fulfil_it(nowhere: Path) -> None:
    pytest.importorskip("sklearn")
    assert load("auto", None).name == "digits"
    with pytest.raises(UserError, match="Install Debian's package dataset-fashion-mnist, or put its four files"):
        load("fashion-mnist", None)


@pytest.mark.skipif(not datasets.DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_debian_package_is_found() -> None:
    images = load("auto", None)
    holds(images)
    assert (images.name, len(images.train.y), len(images.test.y)) == ("fashion-mnist", 60000, 10000)


def test_a_subset_is_those_examples(nowhere: Path) -> None:
    fill(nowhere)
    data = load("fashion-mnist", nowhere).train
    part = subset(data, np.array([3, 1]))
    assert np.array_equal(part.x, data.x[[3, 1]])
    assert part.y.tolist() == data.y[[3, 1]].tolist()
