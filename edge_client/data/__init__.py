"""A device's own examples: one file per format, its name is the `format` in the configuration.

A format module has `load(settings) -> Dataset`. Inputs stay as they are stored (bytes for images); the model's spec
says how they are scaled, batch by batch.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seedmask.errors import UserError
from seedmask.knobs import knob
from seedmask.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs `x` [n, ...] as stored (uint8 or float); labels `y` int64 [n], or float32 [n, outputs] for an "mse"."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.x.nbytes + self.y.nbytes


@dataclass(frozen=True)
class DataSettings:
    """Table [data]: where this device's examples are, `path` for npz; `images` and `labels` for idx."""

    format: str = knob("npz", "how the data are stored: npz, idx")
    path: Path | None = knob(None, "npz: arrays x [n, ...] and y [n]")
    images: Path | None = knob(None, "idx: the images")
    labels: Path | None = knob(None, "idx: their classes")


def formats() -> list[str]:
    """Every format there is a file for."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(settings: DataSettings, spec: ModelSpec) -> Dataset:
    """Read the data and hold it against the model. Raises UserError: what was found, what was expected."""
    if settings.format not in formats():
        raise UserError(f"[data] format {settings.format!r} is unknown; there are {', '.join(formats())}")
    module: Any = importlib.import_module(f"{__name__}.{settings.format}")
    return check(module.load(settings), spec)


def doubtful_range(data: Dataset, spec: ModelSpec) -> str | None:
    """A sentence if the inputs do not look like the range that the model was exported for, None if they do."""
    low, high = spec.range
    found_low, found_high = float(data.x.min()), float(data.x.max())
    span = high - low
    if low - 0.5 * span <= found_low and found_high <= high + 0.5 * span and found_high - found_low >= span / 20:
        return None
    return f"inputs are {found_low:g} .. {found_high:g}, the model was exported for {low} .. {high} (export --range)"


def check(data: Dataset, spec: ModelSpec) -> Dataset:
    """`data` in the model's shape. Raises UserError where it cannot train `spec`."""
    y = check_targets(data.y, len(data.x), spec)
    return Dataset(check_inputs(data.x, spec), y)


def check_targets(y: npt.NDArray[Any], n: int, spec: ModelSpec) -> npt.NDArray[Any]:
    """`y` for `n` inputs as `spec` takes it: int64 [n], or float32 [n, outputs] for "mse". Raises UserError."""
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
    """Targets [n, outputs], or [n] where there is one output."""
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
    """`x` in the model's shape, [n, *input]. Raises UserError where it does not fit `spec`."""
    if x.dtype.kind not in "uif" or x.ndim == 0 or len(x) == 0:
        raise UserError(f"data: inputs are numbers [n, ...], found {x.dtype} {list(x.shape)}")
    if int(np.prod(x.shape[1:])) != int(np.prod(spec.input)):
        raise UserError(f"data: inputs are {list(x.shape[1:])}, model {spec.name} takes {list(spec.input)}")
    largest = float(np.finfo(np.float32).max)  # what the network takes; NaN fails both comparisons
    if x.dtype.kind == "f" and not (-largest <= float(x.min()) and float(x.max()) <= largest):
        raise UserError("data: an input is not a finite number, or too large for float32")
    return x.reshape(len(x), *spec.input)
