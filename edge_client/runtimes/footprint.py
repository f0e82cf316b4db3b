"""How much memory a training step takes, estimated from the spec's shapes.

    peak = base + graphs + 4 d vectors + max(4 d spare, examples * (activations + tiles))

`base` is the process with its packages, `graphs` what sessions make of the training graph's bytes, `vectors` how many
numbers for every weight are held at once (weights, scores, moments, gradient, noise, ...), and `activations` what one
example leaves behind on its way forward, or needs at the worst layer on its way back; `tiles` is what of it
convolutions keep transformed (`export.winograd`), where they do. Each runtime states its own constants (FOOTPRINT),
which were fitted to peaks measured in fresh processes; `make bench-step` prints estimate against measured peak. It is
an estimate, on the large side: data, and what the system does with memory, come on top. How much of the libraries'
files is mapped is the system's choice, too, and counts: 42 to 55 MB with onnxruntime, by what the page cache has.
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
FEW: Final = 32  # a first convolution's result is of this many numbers at most, and of that many channels or more


@dataclass(frozen=True)
class Footprint:
    """State a runtime's constants in the formula above.

    `base`, bytes; `per_graph_byte` of the member `graph`; `vectors` and `spare`, float32 [d] each; `slack`, what
    activations are multiplied by for all that a runtime does besides. `stacks`: variants in which the gradient of a
    convolution's weight stacks kernel rows, or 3x3 ones are filtered tile by tile. `fixed`: the graphs leave no choice
    but the runtime's `usual`.
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
        """Return the peak in bytes of a process that trains `bundle` with `fit`, an estimate."""
        vector = 4 * bundle.spec.d
        stacks = fit.variant in self.stacks
        examples = fit.micro * (self.slack * activations(bundle.spec, stacks) + (tiles(bundle.spec) if stacks else 0))
        graph = len(bundle.files.get(self.graph, b""))
        held = self.base + self.per_graph_byte * graph + vector * self.vectors
        return int(held + max(vector * self.spare, examples))


def activations(spec: ModelSpec, stacks: bool = False) -> int:
    """Return the bytes of one example at the worst moment of a step, float32; see the formula of this module.

    What the way back needs is kept: what a layer with weights took in, what an activation or a norm gave, a quarter of
    a byte for every bit of MaxPool's comparisons. To it comes what one layer's gradient needs, which is most in
    convolutions: padded and shifted inputs, and with `stacks` one copy of the gradient for every kernel row.
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
            case Flatten() | Reshape():  # the same memory under another shape
                kept[takes[0]], kept[i + 1] = max(kept[takes[0]], kept[i + 1]), 0.0
            case _:
                pass
    so_far, worst = kept[0], 0.0
    for i in range(len(spec.layers)):
        so_far += kept[i + 1]
        worst = max(worst, so_far + _at_once(spec, i, size, stacks))
    return math.ceil(4 * worst)


def tiles(spec: ModelSpec) -> int:
    """Return the bytes of one example that 3x3 convolutions keep as tiles of 6 x 6 for 4 x 4 results, float32.

    Of many channels tiles are 6 x 4 for 4 x 2. At most: some convolutions are left to the direct way.
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
    """Numbers that layer i holds while its gradients are computed, besides what was kept."""
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
        return after + 2 * math.prod(kernel[1:]) * after / kernel[0]  # what results take, side by side, and a copy
    if stacks and (layer.stride, layer.dilation) == ((1, 1), (1, 1)):
        copies = 3 if layer.groups > 1 else 2
        return after * (1 + copies * kernel[2]) + padded + 2 * before
    return 3 * after + 2 * padded


def is_of_few(layer: Conv2d, kernel: Shape) -> bool:
    """True if the exporter lowers this convolution to im2col and GEMM; repeated here as devices have no `export`."""
    few = math.prod(kernel[2:]) > 1 and math.prod(kernel[1:]) <= FEW
    return few and kernel[0] >= FEW and layer.groups == 1
