"""Where a simulated fleet's images come from. Nothing here uses the network."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from capabilities import requires

from edge_client.data import Dataset, TrainTest
from seedmask.errors import MissingPackageError, UserError
from sim import datasets
from sim.datasets import cifar, load, subset


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


def holds(images: TrainTest) -> None:
    for data in (images.train, images.test):
        assert (data.x.dtype, data.x.shape[1:]) == (np.uint8, (1, 28, 28))
        assert (data.y.dtype, data.y.shape) == (np.int64, data.x.shape[:1])
        assert (int(data.y.min()), int(data.y.max())) == (0, 9)


def test_digits_are_images_of_28x28_bytes_and_the_same_every_time() -> None:
    requires("sim")
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
    requires("sim")
    assert load("auto", None).name == "digits"
    with pytest.raises(UserError, match="Install Debian's package dataset-fashion-mnist, or put its four files"):
        load("fashion-mnist", None)


@pytest.mark.requires("fashion-mnist")
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


def emnist(folder: Path, split: str, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (high - low + 1, 28, 28)).astype(np.uint8)
    y = np.arange(low, high + 1).astype(np.uint8)
    for kind in ("train", "test"):
        (folder / f"emnist-{split}-{kind}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
        (folder / f"emnist-{split}-{kind}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(y)))
    return x, y


@pytest.mark.parametrize(
    ("split", "low", "high"), [("balanced", 0, 46), ("byclass", 0, 61), ("digits", 0, 9), ("letters", 1, 26)]
)
def test_emnist_is_turned_upright_and_counted_from_zero(nowhere: Path, split: str, low: int, high: int) -> None:
    x, y = emnist(nowhere, split, low, high)
    images = load(f"emnist-{split}", nowhere)
    assert np.array_equal(images.train.x[2, 0], x[2].T)
    assert images.test.y.tolist() == (y - low).tolist()


def test_labels_of_another_emnist_split_are_refused(nowhere: Path) -> None:
    emnist(nowhere, "letters", 0, 9)
    with pytest.raises(UserError, match=r"labels 1 \.\. 26 expected, found .*labels 0 \.\. 9"):
        load("emnist-letters", nowhere)
    with pytest.raises(UserError, match=r"lacks emnist-digits-train-images-idx3-ubyte, .*emnist-digits-test-labels"):
        load("emnist-digits", nowhere)


def test_mnist_is_read_under_both_names_of_its_files(nowhere: Path) -> None:
    fill(nowhere)
    (nowhere / "train-images-idx3-ubyte").rename(nowhere / "train-images.idx3-ubyte")
    images = load("mnist", nowhere)
    holds(images)
    assert images.name == "mnist"


def test_a_data_set_that_nobody_knows_or_that_needs_a_folder_says_so() -> None:
    with pytest.raises(UserError, match="no data set called 'imagenet'; there are auto, cifar-10, cifar-100, digits"):
        load("imagenet", None)
    with pytest.raises(UserError, match="put its files into a folder and pass --data-dir"):
        load("cifar-10", None)


def colours(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.integers(0, 256, (n, 3072)).astype(np.uint8), rng.permutation(np.resize(np.arange(classes), n))


def cifar_files(name: str, folder: Path, version: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """The published files with few images in them; what is in them, the test set last."""
    layout = cifar.LAYOUTS[name]
    files = (*getattr(layout, f"{version}_train"), getattr(layout, f"{version}_test"))
    folder = folder / getattr(layout, version)
    folder.mkdir()
    out = []
    for i, file in enumerate(files):
        x, y = colours(layout.classes + i, layout.classes)
        if version == "binary":
            coarse = np.full((len(y), layout.label_bytes - 1), 19)
            (folder / file).write_bytes(np.hstack([coarse, y[:, None], x]).astype(np.uint8).tobytes())
        else:
            batch = {b"batch_label": b"testing", layout.key: y.tolist(), b"data": x, b"filenames": [b"a.png"] * len(y)}
            (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
        out.append((x, y))
    return out


@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("name", ["cifar-10", "cifar-100"])
def test_cifar_is_read_in_both_versions(tmp_path: Path, name: str, version: str) -> None:
    parts = cifar_files(name, tmp_path, version)
    images = load(name, tmp_path)
    assert images.train.x.shape == (sum(len(y) for _, y in parts[:-1]), 3, 32, 32)
    assert np.array_equal(images.train.y, np.concatenate([y for _, y in parts[:-1]]))
    assert np.array_equal(images.test.x.reshape(-1, 3072), parts[-1][0])
    # Red comes first, and rows before columns.
    assert images.test.x[1, 2, 3, 4] == parts[-1][0][1, 2 * 1024 + 3 * 32 + 4]


class _Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/seedmask-was-here",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps(_Attack(), protocol=2), r"this pickle calls (posix|nt)\.system; only arrays of numbers are read"),
        (pickle.dumps([1], protocol=2), "a dict expected, found list"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}, protocol=2), "b'labels' expected, found b'data'"),
        (pickle.dumps({b"data": np.zeros((1, 9)), b"labels": [1]}, protocol=2), r"found float64 \[1, 9\]"),
        (pickle.dumps({b"data": np.zeros((1, 9), np.uint8), b"labels": [1]}, protocol=2), "images of 3072 bytes"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, protocol=2), r"found 10 \.\. 10"),
        (b"\x80\x02}", "is not a pickle of the python version"),
        (b"", "is not a pickle of the python version"),
    ],
)
def test_a_python_batch_that_is_something_else_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        cifar.read_python(path, cifar.LAYOUTS["cifar-10"])


def test_a_binary_batch_of_another_length_is_refused_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(bytes(3073))
    with pytest.raises(UserError, match="whole records of 3074 bytes expected, found 3073"):
        cifar.read_binary(path, cifar.LAYOUTS["cifar-100"])
    with pytest.raises(UserError, match=r"neither version of cifar-100: expected train\.bin, test\.bin, or train, "):
        load("cifar-100", tmp_path)


class _Entry:
    """What an installed package announces."""

    name = "ring"

    def __init__(self, load: object) -> None:
        self.load = lambda: load


def test_a_set_that_a_package_brings_is_one_of_the_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = Dataset(np.zeros((3, 4)), np.zeros(3, np.int64))
    seen: list[Path | None] = []

    def ring(folder: Path | None) -> TrainTest:
        seen.append(folder)
        return TrainTest("ring", "made up", few, few)

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [_Entry(ring)])
    assert datasets.names() == ["auto", "ring"]
    assert load("ring", tmp_path).train is few
    assert seen == [tmp_path]

    def lacking(folder: Path | None) -> TrainTest:
        raise ModuleNotFoundError("no", name="tables")

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [_Entry(lacking)])
    with pytest.raises(MissingPackageError, match="data set ring needs tables: pip install tables"):
        load("ring")


def test_our_own_sets_are_announced_like_anybodys() -> None:
    ours = {"fashion-mnist", "mnist", "digits", *cifar.LAYOUTS, *(f"emnist-{split}" for split in datasets.EMNIST)}
    assert ours <= set(datasets.names())
    with pytest.raises(UserError, match="emnist-letters is not downloaded for you"):
        load("emnist-letters")
