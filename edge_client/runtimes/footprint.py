"""Estimate of the memory that a training step takes, from the shapes in the spec.

    peak = base + graphs + 4 d vectors + max(4 d spare, examples * (activations + tiles))

base         bytes of the process with its packages
graphs       bytes of the opened training graph: a multiple of its size in the bundle
vectors      float32 numbers per weight that are held at once: weights, scores, moments, gradient, noise, ...
activations  bytes per example that the forward pass keeps, plus those of the worst layer of the backward pass
tiles        bytes per example that Winograd convolutions keep transformed (`export.winograd`)

Each runtime states its constants (FOOTPRINT); they were fitted to peaks measured in fresh processes, and
`make bench-step` prints the estimate beside the measured peak. The estimate is rather too large than too small. It does
not contain the data. The system decides how much of the libraries' files is mapped, which also counts: 42 to 55 MB with
onnxruntime, depending on the page cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from edge_client.runtimes.contract import MicroBatchPlan
from seedmask.bundle import Bundle
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
    Shape,
    Sigmoid,
    SiLU,
    Tanh,
)
from seedmask.spec import ModelSpec

MB: Final = 1_000_000
FEW: Final = 32  # im2col: at most so many inputs per output of a convolution, and at least so many output channels


@dataclass(frozen=True)
class Footprint:
    """Constants of one runtime in this module's formula.

    base: bytes.
    vectors, spare: number of float32 vectors [d].
    slack: factor on activations, for everything else that the runtime allocates.
    per_graph_byte: bytes per byte of the bundle's member `graph`.
    stacks: variants whose graphs stack kernel rows for the gradient of a convolution's weight, or use Winograd tiles.
    fixed: True if the graphs were exported for one micro-batch, so that the runtime's `usual` plan is the only one.
    """

    base: int
    vectors: float
    slack: float
    per_graph_byte: float = 0.0
    spare: float = 0.0
    graph: str = ""
    stacks: frozenset[str] = frozenset()
    fixed: bool = False

    def bytes_of(self, bundle: Bundle, fit: MicroBatchPlan) -> int:
        """Return the estimated peak, in bytes, of a process that trains `bundle` by the plan `fit`."""
        vector = 4 * bundle.spec.d
        stacks = fit.variant in self.stacks
        examples = fit.micro * (self.slack * activations(bundle.spec, stacks) + (tiles(bundle.spec) if stacks else 0))
        graph = len(bundle.files.get(self.graph, b""))
        held = self.base + self.per_graph_byte * graph + vector * self.vectors
        return int(held + max(vector * self.spare, examples))


def activations(spec: ModelSpec, stacks: bool = False) -> int:
    """Return the bytes per example at the peak of a step, in float32.

    The forward pass keeps what the backward pass needs: inputs of layers with weights, outputs of activations and
    norms, and the comparisons of MaxPool, 3/4 of a byte per input. The gradient of one layer comes on top. It is
    largest for convolutions: padded and shifted inputs, and with `stacks` one copy of the gradient per kernel row.
    """
    size = [math.prod(shape) for shape in spec.shapes()]
    kept = [0.0] * len(size)
    for i in range(len(spec.layers) - 1, -1, -1):
        layer, takes = spec.layers[i], spec.layers[i].takes(i)
        match layer:
            case ReLU() | ReLU6() | Tanh() | Sigmoid() | GroupNorm() | LayerNorm() | RMSNorm():
                kept[i + 1] = max(kept[i + 1], size[i + 1])
            case SiLU():
                kept[i + 1] = 2 * size[i + 1]
            case Linear() | Conv2d():
                kept[takes[0]] = max(kept[takes[0]], size[takes[0]])
            case GELU():
                kept[i + 1] += size[i + 1]
                kept[takes[0]] = max(kept[takes[0]], size[takes[0]])
            case MaxPool2d():
                kept[i + 1] += size[takes[0]] * 3 / 16
            case Flatten() | Reshape():  # a view of the same memory
                kept[takes[0]], kept[i + 1] = max(kept[takes[0]], kept[i + 1]), 0.0
            case _:
                pass
    so_far, worst = kept[0], 0.0
    for i in range(len(spec.layers)):
        so_far += kept[i + 1]
        worst = max(worst, so_far + _at_once(spec, i, size, stacks))
    return math.ceil(4 * worst)


def tiles(spec: ModelSpec) -> int:
    """Return the bytes per example that 3x3 Winograd convolutions keep as tiles, in float32; an upper bound.

    Tiles are 6 x 6 for 4 x 4 outputs, or 6 x 4 for 4 x 2 outputs with more than 64 channels. The exporter computes some
    of these convolutions directly, which keeps nothing.
    """
    total, shapes = 0, spec.shapes()
    for i, layer in enumerate(spec.layers):
        if isinstance(layer, Conv2d) and (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1):
            out, channels, *kernel = spec.offsets[layer.weight][0].shape
            _, high, wide = shapes[i + 1]
            across = 6 * -(-wide // 4) if max(out, channels) <= 64 else 4 * -(-wide // 2)
            total += channels * 6 * -(-high // 4) * across if kernel == [3, 3] else 0
    return 4 * total


def _at_once(spec: ModelSpec, i: int, size: list[int], stacks: bool) -> float:
    """Return how many numbers layer i holds while its gradients are computed, besides what was kept."""
    layer, after = spec.layers[i], size[i + 1]
    before = sum(size[value] for value in layer.takes(i))
    if isinstance(layer, Linear):
        return before + after
    if not isinstance(layer, Conv2d):
        return before + 3 * after
    channels, high, wide = spec.shapes()[layer.takes(i)[0]]
    padded = channels * (high + 2 * layer.padding[0]) * (wide + 2 * layer.padding[1])
    kernel = spec.offsets[layer.weight][0].shape
    if stacks and is_of_few(layer, kernel):
        return after + 2 * math.prod(kernel[1:]) * after / kernel[0]  # im2col's matrix and a copy of it
    if stacks and (layer.stride, layer.dilation) == ((1, 1), (1, 1)):
        copies = 3 if layer.groups > 1 else 2
        return after * (1 + copies * kernel[2]) + padded + 2 * before
    return 3 * after + 2 * padded


def is_of_few(layer: Conv2d, kernel: Shape) -> bool:
    """True if the exporter lowers this convolution to im2col and GEMM; repeated here because devices lack `export`."""
    few = math.prod(kernel[2:]) > 1 and math.prod(kernel[1:]) <= FEW
    return few and kernel[0] >= FEW and layer.groups == 1
