"""How much memory a training step takes, estimated from the spec's shapes, and what fits a device's ceiling.

    peak = base + graphs + 4 d vectors + max(4 d spare, examples * activations)

`base` is the process with its packages, `graphs` what sessions make of the bundle's bytes, `vectors` how many numbers
for every weight are held at once (weights, scores, moments, gradient, noise, ...), and `activations` what one example
leaves behind on its way forward, or needs at the worst layer on its way back. Each runtime states its own constants
(FOOTPRINT), which were fitted to peaks measured in fresh processes; `make bench-step` prints estimate against measured
peak. It is an estimate, on the large side: data, and what the system does with memory, come on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edge_client import runtimes
from edge_client.runtimes import Fit
from seedmask.bundle import Bundle
from seedmask.errors import UserError
from seedmask.layers import (
    GELU,
    Conv2d,
    Flatten,
    GroupNorm,
    LayerNorm,
    Linear,
    MaxPool2d,
    ReLU,
    ReLU6,
    Reshape,
    RMSNorm,
    Sigmoid,
    SiLU,
    Tanh,
)
from seedmask.spec import ModelSpec

MB = 1_000_000


@dataclass(frozen=True)
class Footprint:
    """A runtime's constants in the formula above.

    `base`, bytes; `per_graph_byte`; `vectors` and `spare`, float32 [d] each; `slack`, what activations are multiplied
    by for all that a runtime does besides. `stacks`: its convolutions' weight gradients stack kernel rows.
    """

    base: int
    vectors: float
    slack: float
    per_graph_byte: float = 0.0
    spare: float = 0.0
    stacks: Mapping[str, bool] | None = None

    def bytes_of(self, bundle: Bundle, fit: Fit) -> int:
        """Peak bytes of a process that trains `bundle` with `fit`, an estimate."""
        graphs = sum(len(bundle.files.get(name, b"")) for name in runtimes.variant_graphs(fit.variant))
        stacks = (self.stacks or {}).get(fit.variant, False)
        examples = self.slack * fit.micro * activations(bundle.spec, stacks)
        vector = 4 * bundle.spec.d
        return int(self.base + self.per_graph_byte * graphs + vector * self.vectors + max(vector * self.spare, examples))
