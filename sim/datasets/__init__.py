"""Named data sets for a simulated fleet, read from the files that their authors publish.

Every name is an entry point of the group `seedmask.datasets`; packages that you install can add more
(`edge_client.data.TrainTest` documents how). This package has

- fashion-mnist (Xiao, Rasul, Vollgraf, arXiv 1708.07747), taken from --data-dir, or else from Debian's package
  dataset-fashion-mnist, or else downloaded and checked against its authors' checksums;
- digits (Alpaydin and Kaynak, UCI), which scikit-learn contains: 1,797 images of 8x8, enlarged to 28x28, so that every
  network of the zoo can be trained on them;
- from --data-dir only: mnist (LeCun, Cortes, Burges), emnist-* (Cohen, Afshar, Tapson, van Schaik, arXiv 1702.05373),
  cifar-10 and cifar-100 (`cifar.py`).

`own.py` reads arrays and files of your own.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_client.data import Dataset, TrainTest
from edge_client.data.idx import read
from seedmask.errors import MissingPackageError, UserError
from sim.datasets import cifar

GROUP: Final = "seedmask.datasets"
AUTO: Final = "auto"
"""Stands for Fashion-MNIST if its files are found or can be downloaded, otherwise for digits."""
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
EMNIST = {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "letters": 26, "mnist": 10}
"""Number of classes of each of EMNIST's six splits."""
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_SOURCE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_MD5 = {
    "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
}


def names() -> list[str]:
    """Return the names that `load` takes: "auto", then the data sets of all installed packages."""
    return [AUTO, *sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})]


def load(name: str, folder: Path | None = None) -> TrainTest:
    """Return the data set `name`, one of `names()`; `folder` has its files, if it needs any.

    Raises UserError if the name is unknown or a file is missing, MissingPackageError if a package is.
    """
    if name == AUTO:
        return _fashion_mnist(folder) or digits(folder)
    entries = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name not in entries:
        raise UserError(f"no data set called {name!r}; there are {', '.join(names())}")
    try:
        bring: Callable[[Path | None], TrainTest] = entries[name].load()
        return bring(folder)
    except ImportError as error:
        raise MissingPackageError(f"data set {name} needs {error.name}: pip install {error.name}") from None


def fashion_mnist(folder: Path | None) -> TrainTest:
    """Return Fashion-MNIST: 60,000 and 10,000 images of 1x28x28 bytes, 10 classes. Raises UserError."""
    found = _fashion_mnist(folder)
    if found is None:
        raise UserError(
            "Fashion-MNIST is not here and cannot be downloaded. Install Debian's package dataset-fashion-mnist, or "
            f"put its four files into a folder and pass --data-dir FOLDER: {', '.join(_FILES)} (plain or .gz)"
        )
    return found


def _fashion_mnist(folder: Path | None) -> TrainTest | None:
    """Return it from `folder`, or from wherever it can be had; None where there is none."""
    if folder is not None:
        return _mnist("fashion-mnist", folder, str(folder))
    if all(_find(DEBIAN, file) for file in _FILES):
        return _mnist("fashion-mnist", DEBIAN, "Debian package dataset-fashion-mnist")
    fetched = _fetch()
    return None if fetched is None else _mnist("fashion-mnist", fetched, "downloaded")


def _from_folder(name: str, folder: Path | None) -> TrainTest:
    """Return a data set that is read from a folder and never downloaded. Raises UserError."""
    if folder is None:
        raise UserError(f"{name} is not downloaded for you; put its files into a folder and pass --data-dir FOLDER")
    if name in cifar.LAYOUTS:
        return TrainTest(name, str(folder), *cifar.load(name, folder))
    return _mnist(name, folder, str(folder))


# The functions that the entry points of this package name.
mnist = partial(_from_folder, "mnist")
emnist_balanced = partial(_from_folder, "emnist-balanced")
emnist_byclass = partial(_from_folder, "emnist-byclass")
emnist_bymerge = partial(_from_folder, "emnist-bymerge")
emnist_digits = partial(_from_folder, "emnist-digits")
emnist_letters = partial(_from_folder, "emnist-letters")
emnist_mnist = partial(_from_folder, "emnist-mnist")
cifar_10 = partial(_from_folder, "cifar-10")
cifar_100 = partial(_from_folder, "cifar-100")


def _find(folder: Path, file: str) -> Path | None:
    """Return the path of `file`, plain or gzipped, also as some archives call it (train-images.idx3-ubyte), or None."""
    names = (file, file.replace("-idx", ".idx"))
    return next((path for name in names for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def _mnist(name: str, folder: Path, origin: str) -> TrainTest:
    """Return MNIST, or another data set in its format, from four IDX files in `folder`. Raises UserError."""
    split = name.removeprefix("emnist-") if name.startswith("emnist-") else ""
    files: tuple[str, ...] = _FILES
    if split:
        files = tuple(f"emnist-{split}-{file}".replace("t10k", "test") for file in _FILES)
    absent = [file for file in files if _find(folder, file) is None]
    if absent:
        raise UserError(f"{folder} lacks {', '.join(absent)} (plain or .gz)")
    classes = EMNIST.get(split, 10)
    first = int(split == "letters")  # its labels are 1 .. 26
    arrays = [read(path) for file in files if (path := _find(folder, file))]
    sets = []
    for x, y in (arrays[:2], arrays[2:]):
        inside = first <= int(y.min(initial=first)) and int(y.max(initial=first)) < first + classes
        if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or not inside:
            found = f"{x.shape} and {y.shape}, labels {int(y.min(initial=0))} .. {int(y.max(initial=0))}"
            raise UserError(
                f"{folder}: 28x28 images with labels {first} .. {first + classes - 1} expected, found {found}"
            )
        if split:  # EMNIST stores its images column by column
            x = np.ascontiguousarray(x.transpose(0, 2, 1))
        sets.append(Dataset(x[:, None], y.astype(np.int64) - first))
    return TrainTest(name, origin, sets[0], sets[1])


def _fetch() -> Path | None:
    """Download Fashion-MNIST's files, if they are not cached, and return their folder; None without a network."""
    import pooch

    store = pooch.create(path=pooch.os_cache("seedmask"), base_url=_SOURCE, registry=_MD5)
    try:
        return [Path(store.fetch(file)).parent for file in _MD5].pop()
    except (OSError, ValueError):  # no network, or a file with another checksum
        return None


def digits(folder: Path | None = None) -> TrainTest:
    """Return scikit-learn's digits: 1,437 and 360 images of 1x28x28 bytes, 10 classes; `folder` is not needed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    large = np.kron(found.images * (255 / 16), np.ones((3, 3)))
    x = np.pad(large, ((0, 0), (2, 2), (2, 2))).round().astype(np.uint8)[:, None]
    y = found.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))  # the file is sorted by writer
    train, test = order[:1437], order[1437:]
    return TrainTest("digits", "scikit-learn", Dataset(x[train], y[train]), Dataset(x[test], y[test]))


def subset(data: Dataset, pick: npt.NDArray[np.int64]) -> Dataset:
    """Return the examples at the positions `pick`."""
    return Dataset(data.x[pick], data.y[pick])
