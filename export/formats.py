"""File formats of a finished model: for each a function from a FinishedModel and a Wish to the file's bytes.

The packages that a format needs are imported only when a file is made.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt

from seedmask.model import FinishedModel


@dataclass(frozen=True)
class Wish:
    """Options of a file: `batch` examples at a time, and raw inputs for `calibration` (None for formats without).

    A batch of 0 means any number, or one where a format has a fixed batch.
    """

    batch: int = 0
    calibration: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class Format:
    """One format: `what` describes it to people, `needs` is a package, `write` returns a file's bytes.

    `calibrated`: True if the format needs calibration inputs.
    """

    what: str
    needs: str
    write: Callable[[FinishedModel, Wish], bytes]
    calibrated: bool = False


def _onnx(holding: str) -> Callable[[FinishedModel, Wish], bytes]:
    def write(model: FinishedModel, wish: Wish) -> bytes:
        from export.final_onnx import final_graph

        return final_graph(model, holding, wish.batch)

    return write


def _executorch(int8: bool) -> Callable[[FinishedModel, Wish], bytes]:
    def write(model: FinishedModel, wish: Wish) -> bytes:
        from export.targets.executorch.final import finished_pte

        return finished_pte(model, int8, wish.calibration, wish.batch or 1)

    return write


def _torch(model: FinishedModel, wish: Wish) -> bytes:
    import torch

    from export.final_torch import state_dict

    out = io.BytesIO()
    torch.save(state_dict(model), out)
    return out.getvalue()


FORMATS: Final = {
    "onnx": Format("ONNX, float32 weights", "onnx", _onnx("float32")),
    "onnx-int8": Format("ONNX, weights -1, 0 and 1 in int8 and a scale per tensor", "onnx", _onnx("ternary")),
    "onnx-seed": Format("ONNX, mask and seed; the weights are made while it loads", "onnx", _onnx("seed")),
    "torch": Format("torch state_dict, float32", "torch", _torch),
    "executorch": Format("ExecuTorch for XNNPACK, float32", "executorch", _executorch(int8=False)),
    "executorch-int8": Format("ExecuTorch, int8 products", "executorch", _executorch(int8=True), calibrated=True),
}
