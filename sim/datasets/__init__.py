"""Real images for a simulated fleet, from the files that their authors publish.

Fashion-MNIST: Xiao, Rasul, Vollgraf, arXiv 1708.07747. Looked for in --data, then where Debian's package
dataset-fashion-mnist puts it, then downloaded with the checksums that its authors publish. Digits: Alpaydin and
Kaynak, UCI; 1,797 images of 8x8, enlarged to 28x28 so that every network here takes them. All others only from --data:
MNIST (LeCun, Cortes, Burges), EMNIST (Cohen, Afshar, Tapson, van Schaik, arXiv 1702.05373), CIFAR (`cifar.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_client.data import Dataset
from edge_client.data.idx import read
from seedmask.errors import UserError
from sim.datasets import cifar

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
EMNIST = {"balanced": 47, "byclass": 62, "bymerge": 47, "digits": 10, "letters": 26, "mnist": 10}
"""EMNIST's six splits of one collection, and their classes."""
NAMES = ("auto", "fashion-mnist", "mnist", *(f"emnist-{split}" for split in EMNIST), *cifar.LAYOUTS, "digits")

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


@dataclass(frozen=True, eq=False)
class Images:
    """A training and a test set, uint8 [n, channels, height, width] with labels from 0; `name`, `origin` for people."""

    name: str
    origin: str
    train: Dataset
    test: Dataset


def load(name: str, folder: Path | None) -> Images:
    """`name` one of NAMES; `folder` holds its files. Raises UserError: what was found, what was expected."""
    if name not in NAMES:
        raise UserError(f"no data set called {name!r}; there are {', '.join(NAMES)}")
    if name == "digits":
        return _digits()
    if name not in ("auto", "fashion-mnist"):
        if folder is None:
            raise UserError(f"{name} is not downloaded for you; put its files into a folder and pass --data FOLDER")
        if name in cifar.LAYOUTS:
            return Images(name, str(folder), *cifar.load(name, folder))
        return _mnist(name, folder, str(folder))
    if folder is not None:
        return _mnist("fashion-mnist", folder, str(folder))
    if all(_find(DEBIAN, file) for file in _FILES):
        return _mnist("fashion-mnist", DEBIAN, "Debian package dataset-fashion-mnist")
    fetched = _fetch()
    if fetched is not None:
        return _mnist("fashion-mnist", fetched, "downloaded")
    if name == "auto":
        return _digits()
    raise UserError(
        "Fashion-MNIST is not here and cannot be downloaded. Install Debian's package dataset-fashion-mnist, or put "
        f"its four files into a folder and pass --data FOLDER: {', '.join(_FILES)} (plain or .gz)"
    )


def fashion_mnist() -> Dataset:
    """Its test set, for `seedmask predict --data fashion-mnist`. Raises UserError."""
    return load("fashion-mnist", None).test


def digits() -> Dataset:
    """Its test set, for `seedmask predict --data digits`."""
    return load("digits", None).test


def _find(folder: Path, file: str) -> Path | None:
    """`file`, plain or gzipped, also under the name some archives give it (train-images.idx3-ubyte)."""
    names = (file, file.replace("-idx", ".idx"))
    return next((path for name in names for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def _mnist(name: str, folder: Path, origin: str) -> Images:
    """The four IDX files of MNIST and all that came after it in its format."""
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
    return Images(name, origin, sets[0], sets[1])


def _fetch() -> Path | None:
    """The folder of the downloaded files, None where there is no network."""
    import pooch

    store = pooch.create(path=pooch.os_cache("seedmask"), base_url=_SOURCE, registry=_MD5)
    try:
        return [Path(store.fetch(file)).parent for file in _MD5].pop()
    except (OSError, ValueError):  # no network; or something else answered, with other bytes
        return None


def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    large = np.kron(digits.images * (255 / 16), np.ones((3, 3)))
    x = np.pad(large, ((0, 0), (2, 2), (2, 2))).round().astype(np.uint8)[:, None]
    y = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))  # the file is sorted by writer
    train, test = order[:1437], order[1437:]
    return Images("digits", "scikit-learn", Dataset(x[train], y[train]), Dataset(x[test], y[test]))


def subset(data: Dataset, pick: npt.NDArray[np.int64]) -> Dataset:
    """Only the examples at `pick`."""
    return Dataset(data.x[pick], data.y[pick])
