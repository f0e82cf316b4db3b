"""Data sources: each is one module that loads a device's examples, found by entry point.

Its name stands as `format` in table [data] of edge.toml. Your own package adds one by a line in its pyproject.toml:

    [project.entry-points."seedmask.data"]
    camera = "seedmask_camera.data"

and a module with a frozen dataclass `Settings`, which holds the keys of [data] beside `format`, and `load`:

    @dataclass(frozen=True)
    class Settings:                      # fields are int, float, str, bool, Path or such dataclasses
        folder: Path                     # a relative path is relative to edge.toml
        size: int = 32

        def __post_init__(self):         # the user reads the text of its ValueError
            if self.size < 1:
                raise ValueError(f"size is 1 or more, found {self.size}")

    def load(settings: Settings) -> Dataset:
        ...                              # the user reads the text of its UserError

A key that `Settings` does not have is refused with the nearest known one. Return inputs as they are stored (bytes for
images): training scales them batch by batch, as the model's spec says. `load` runs in the training process, never in
the process that talks to the network. This contract is provisional: it may change until it is declared stable.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seedmask.errors import MissingPackageError, UserError
from seedmask.io import plugins, settings
from seedmask.io.plugins import PluginError
from seedmask.knobs import knob, unlisted
from seedmask.spec import ModelSpec

GROUP: Final = "seedmask.data"
DATASETS: Final = "seedmask.datasets"

__all__ = [
    "DataSettings",
    "DataSummary",
    "Dataset",
    "TrainTest",
    "check",
    "check_inputs",
    "check_targets",
    "doubtful_range",
    "formats",
    "load",
    "load_named",
    "summary",
]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples: inputs `x` [n, ...] as stored, uint8 or float, and labels `y`, int64 [n].

    Where the model's loss is "mse", `y` has targets, float32 [n, outputs].
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Return the bytes of both arrays."""
        return self.x.nbytes + self.y.nbytes


@dataclass(frozen=True, eq=False)
class TrainTest:
    """Data set for simulations: `train` is divided among the devices, `test` measures the model and no device sees it.

    An entry point of the group `seedmask.datasets` is a function `load(folder: Path | None) -> TrainTest`; `folder` has
    the files of the set, if the user named one. `name` and `origin` are for people: "digits", "scikit-learn".
    """

    name: str
    origin: str
    train: Dataset
    test: Dataset


@dataclass(frozen=True)
class DataSummary:
    """Summary of a data set, for the process that does not hold the data itself.

    `examples`: their number; `nbytes`: their bytes; `doubt`: a warning if their range is not the model's, or None.
    """

    examples: int
    nbytes: int
    doubt: str | None = None


@dataclass(frozen=True)
class DataSettings:
    """Table [data] of edge.toml: where this device's examples are. Its other keys depend on `format`.

    `keys`: those other keys, not checked yet; `where`: name of the table in errors; `base`: folder that relative paths
    start from.
    """

    format: str = knob("npz", "how the examples are stored: the name of an installed data source")
    keys: Mapping[str, Any] = field(default_factory=dict, metadata=unlisted())
    where: str = field(default="[data]", metadata=unlisted())
    base: Path = field(default=Path(), metadata=unlisted())

    @classmethod
    def variants(cls, table: Mapping[str, Any] | None = None) -> tuple[str, Mapping[str, type]]:
        """Return the key `format` and the settings of each source of data that loads here.

        `table`: values of a table; then only the source that it names is imported, and its settings alone are returned.
        """
        found: dict[str, type] = {}
        for name in formats() if table is None else [table.get("format", "npz")]:
            with contextlib.suppress(UserError):
                kind: type = plugins.load(GROUP, name, ("Settings", "load")).Settings
                if hasattr(kind, "__dataclass_fields__"):
                    found[name] = kind
        return "format", found

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str, base: Path) -> DataSettings:
        """Take `format` out of a table of a TOML file. Raises UserError."""
        keys = dict(table)
        name = keys.pop("format", "npz")
        if not isinstance(name, str):
            raise UserError(f"{where}: format is a text, found {name!r}")
        return cls(name, keys, where, base)


def formats() -> list[str]:
    """Return the names of all data sources that installed packages offer. Imports none of them."""
    return plugins.names(GROUP)


def load(given: DataSettings, spec: ModelSpec) -> Dataset:
    """Return the data that table [data] names, checked and in the shape of `spec`. Raises UserError, PluginError."""
    if given.format not in formats():
        raise UserError(f"{given.where} format {given.format!r} is unknown; there are {', '.join(formats())}")
    source = plugins.load(GROUP, given.format, ("Settings", "load"))
    where = f"{given.format} of {GROUP} (package {plugins.distribution(GROUP, given.format)})"
    kind: Any = source.Settings
    if not is_dataclass(kind):
        raise PluginError(f"{where}: Settings is a dataclass, found {kind!r}")
    known = ["format", *(each.name for each in fields(kind))]
    for key in given.keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"format {given.format} has {', '.join(known[1:])}"
            raise UserError(f"{given.where}: unknown key {key!r}; {hint}")
    built = settings.build(source.Settings, given.keys, f"{given.where}, format {given.format}", given.base)
    try:
        data = source.load(built)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # any error is possible, because the source may be somebody else's code
        raise PluginError(f"{where} failed to load: {type(error).__name__}: {error}") from error
    if not (isinstance(data, Dataset) and isinstance(data.x, np.ndarray) and isinstance(data.y, np.ndarray)):
        raise PluginError(f"{where} has to return a Dataset of two arrays, found {type(data).__name__}")
    return check(data, spec)


def load_named(name: str, folder: Path | None = None) -> TrainTest:
    """Return the data set that an installed package offers as `name`; `folder` has its files, if it needs any.

    Raises UserError: which name was unknown, which file was missing; MissingPackageError where a package is missing;
    PluginError where what the package offers is broken.
    """
    if name not in (known := plugins.names(DATASETS)):
        raise UserError(f"no data set called {name!r}; there are {', '.join(known) or 'none'}")
    package = plugins.distribution(DATASETS, name)
    where = f"{name} of {DATASETS} (package {package})"
    try:
        found = plugins.load(DATASETS, name)(folder)
    except ImportError as error:
        install = "'seedmask[sim]'" if package == "seedmask" else error.name
        raise MissingPackageError(f"data set {name} needs {error.name}: pip install {install}") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # anything: it may be somebody else's program
        raise PluginError(f"{where} failed to load: {type(error).__name__}: {error}") from error
    if not isinstance(found, TrainTest):
        raise PluginError(f"{where} has to return a TrainTest, found {type(found).__name__}")
    return found


def summary(data: Dataset, spec: ModelSpec) -> DataSummary:
    """Return the summary of `data` for a process that does not hold it."""
    return DataSummary(len(data.y), data.nbytes, doubtful_range(data, spec))


def doubtful_range(data: Dataset, spec: ModelSpec) -> str | None:
    """Return a warning if the inputs are not in the range that the model was exported for, otherwise None."""
    low, high = spec.range
    found_low, found_high = float(data.x.min()), float(data.x.max())
    span = high - low
    # A tenth: digits of 0 .. 16 in a model of 0 .. 255 learn nothing.
    if low - 0.5 * span <= found_low and found_high <= high + 0.5 * span and found_high - found_low >= span / 10:
        return None
    return f"inputs are {found_low:g} .. {found_high:g}, the model was exported for {low} .. {high} (export --range)"


def check(data: Dataset, spec: ModelSpec) -> Dataset:
    """Return `data` in the shape of `spec`. Raises UserError if a model of `spec` cannot be trained on it."""
    y = check_targets(data.y, len(data.x), spec)
    return Dataset(check_inputs(data.x, spec), y)


def check_targets(y: npt.NDArray[Any], n: int, spec: ModelSpec) -> npt.NDArray[Any]:
    """Return the targets `y` of `n` inputs as int64 [n], or float32 [n, outputs] for "mse". Raises UserError."""
    if y.ndim == 0 or len(y) == 0 or len(y) != n:
        raise UserError(f"data: {n} inputs and {f'{len(y)} labels' if y.ndim else 'a single label'}")
    return _numbers(y, spec) if spec.loss == "mse" else _labels(y, spec)


def _labels(y: npt.NDArray[Any], spec: ModelSpec) -> npt.NDArray[np.int64]:
    if y.ndim != 1 or y.dtype.kind not in "ui":
        raise UserError(f"data: model {spec.name} takes one class number each, found {y.dtype} {list(y.shape)}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= spec.classes:
        raise UserError(f"data: labels {low} .. {high}, model {spec.name} has classes 0 .. {spec.classes - 1}")
    return y.astype(np.int64)


def _numbers(y: npt.NDArray[Any], spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Return targets [n, outputs], or [n] for a single output, as float32 [n, outputs]. Raises UserError."""
    wanted = (len(y), spec.classes)
    if y.shape != wanted and not (spec.classes == 1 and y.ndim == 1):
        raise UserError(f"data: targets are {list(y.shape)}, model {spec.name} gives {list(wanted)}")
    if y.dtype.kind not in "uif":
        raise UserError(f"data: targets are numbers, found {y.dtype}")
    targets = y.reshape(wanted).astype(np.float32)
    if not np.isfinite(targets).all():
        raise UserError("data: a target is not a finite number")
    return targets


def check_inputs(x: npt.NDArray[Any], spec: ModelSpec) -> npt.NDArray[Any]:
    """Return inputs `x` [n, ...] in the model's shape, [n, *input]. Raises UserError if they do not fit `spec`."""
    if x.dtype.kind not in "uif" or x.ndim == 0 or len(x) == 0:
        raise UserError(f"data: inputs are numbers [n, ...], found {x.dtype} {list(x.shape)}")
    if int(np.prod(x.shape[1:])) != int(np.prod(spec.input)):
        hint = "; pass one example as x[None]" if x.size == int(np.prod(spec.input)) else ""
        raise UserError(f"data: inputs are {list(x.shape[1:])}, model {spec.name} takes {list(spec.input)}{hint}")
    largest = float(np.finfo(np.float32).max)  # networks compute in float32; NaN fails both comparisons
    if x.dtype.kind == "f" and not (-largest <= float(x.min()) and float(x.max()) <= largest):
        raise UserError("data: an input is not a finite number, or too large for float32")
    return x.reshape(len(x), *spec.input)
