"""A finished network as an ExecuTorch file for inference, float32 or int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export import final_torch
from export.targets.executorch.lowering import lower, quiet, require
from seedmask.model import FinishedModel

V = torch.Tensor


@quiet()
def finished_pte(
    model: FinishedModel, int8: bool = False, calibration: npt.NDArray[Any] | None = None, batch: int = 1
) -> bytes:
    """Return an ExecuTorch file with one method, `forward`: raw x float32 [batch, *input] -> logits [batch, classes].

    The file contains the weights. With `int8`, weights stay exact, since a tensor has only three values; activations
    are rounded to 256 levels over the ranges seen with `calibration`, raw inputs [n >= batch, *input]. Raises
    ValueError if `int8` lacks such inputs, MissingPackageError if ExecuTorch is not installed.
    """
    require()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    x = torch.zeros(batch, *model.spec.input)
    network = final_torch.network(model)
    if int8:
        if calibration is None or calibration.shape[1:] != model.spec.input or len(calibration) < batch:
            found = None if calibration is None else list(calibration.shape)
            raise ValueError(f"int8 takes calibration [n >= {batch}, {model.spec.input}], found {found}")
        network = _quantised(network, x, torch.from_numpy(np.asarray(calibration, np.float32)))
    with torch.no_grad():
        return lower({"forward": torch.export.export(network, (x,))}, {"forward": XnnpackPartitioner()})


def _quantised(network: torch.nn.Module, x: V, calibration: V) -> torch.nn.Module:
    """Return `network` with every product in int8, by torchao's post-training quantisation."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(network, (x,)).module(), quantizer)
        for at in range(0, len(calibration) - len(x) + 1, len(x)):
            prepared(calibration[at : at + len(x)])
        made: torch.nn.Module = convert_pt2e(prepared)
    return made
