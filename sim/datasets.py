"""Real images for a simulated fleet: Fashion-MNIST where it can be had, scikit-learn's bundled digits otherwise.

Fashion-MNIST: Xiao, Rasul, Vollgraf, arXiv 1708.07747. Looked for in --data, then where Debian's package
dataset-fashion-mnist puts it, then downloaded with the checksums that its authors publish. Digits: Alpaydin and
Kaynak, UCI; 1,797 images of 8x8, enlarged to 28x28 so that every network here takes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_client.data import Dataset
from edge_client.data.idx import read
from seedmask.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NAMES = ("auto", "fashion-mnist", "digits")

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
    """A training and a test set, uint8 [n, 1, 28, 28] with labels 0 .. 9; `name` and `origin` for the report."""

    name: str
    origin: str
    train: Dataset
    test: Dataset


def load(name: str, folder: Path | None) -> Images:
    """`name` one of NAMES; `folder` holds the four IDX files, plain or .gz. Raises UserError."""
    if name == "digits":
        return _digits()
    if folder is not None:
        return _fashion(folder, str(folder))
    if all(_find(DEBIAN, file) for file in _FILES):
        return _fashion(DEBIAN, "Debian package dataset-fashion-mnist")
    fetched = _fetch()
    if fetched is not None:
        return _fashion(fetched, "downloaded")
    if name == "auto":
        return _digits()
    raise UserError(
        "Fashion-MNIST is not here and cannot be downloaded. Install Debian's package dataset-fashion-mnist, or put "
        f"its four files into a folder and pass --data FOLDER: {', '.join(_FILES)} (plain or .gz)"
    )


def _find(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.exists()), None)


def _fashion(folder: Path, origin: str) -> Images:
    absent = [file for file in _FILES if _find(folder, file) is None]
    if absent:
        raise UserError(f"{folder} lacks {', '.join(absent)} (plain or .gz)")
    train_x, train_y, test_x, test_y = (read(path) for file in _FILES if (path := _find(folder, file)))
    for x, y in ((train_x, train_y), (test_x, test_y)):
        if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or int(y.max(initial=0)) > 9:
            raise UserError(f"{folder}: 28x28 images with labels 0 .. 9 expected, found {x.shape} and {y.shape}")
    return Images(
        "fashion-mnist",
        origin,
        Dataset(train_x[:, None], train_y.astype(np.int64)),
        Dataset(test_x[:, None], test_y.astype(np.int64)),
    )


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
