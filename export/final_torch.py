"""A finished network in torch: its parameters, and a module that runs it."""

from __future__ import annotations

import torch

from export import masked
from seedmask.model import FinishedModel


def state_dict(model: FinishedModel) -> dict[str, torch.Tensor]:
    """Return every parameter, float32, under its name in torch, for `load_state_dict` of the module that was exported.

    A Conv1d's weight is [out, in, 1, k] here, as a spec has it: drop that dimension first.
    """
    return {name: torch.from_numpy(values.copy()) for name, values in model.parameters().items()}


def network(model: FinishedModel) -> torch.nn.Module:
    """Return the network as a torch module: raw inputs [n, *input] in, logits float32 [n, classes] out."""
    spec = model.spec

    class Network(torch.nn.Module):
        """A module that reads its layers from the spec, with a buffer per tensor, as XNNPACK wants constants."""

        def __init__(self) -> None:
            super().__init__()
            for number, part in enumerate(model.parameters().values()):
                self.register_buffer(f"w{number}", torch.from_numpy(part.copy()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return logits float32 [n, classes] of raw x [n, *input]."""
            low, high = spec.range
            weights = {tensor.name: self.get_buffer(f"w{i}") for i, tensor in enumerate(spec.tensors)}
            return masked.network(spec, (x.float() - low) * (2.0 / (high - low)) - 1, weights)

    return Network()
