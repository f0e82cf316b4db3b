"""How much memory a training step takes, estimated from the spec's shapes, and what fits a device's ceiling.

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

import contextlib
import ctypes
import math
from dataclasses import dataclass
from typing import Final

from edge_client import runtimes
from edge_client.config import EdgeConfig
from edge_client.runtimes import Fit
from seedmask.bundle import Bundle
from seedmask.errors import ProtocolError, UserError
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
EIGHT: Final = 8  # fewer examples at a time are slower, each by its share of a pass over all weights
FEW: Final = 32  # a first convolution's result is of this many numbers at most, and of that many channels or more
THREE: Final = 3  # and still faster than many more with direct convolutions, where the usual variant filters them
_M_MMAP_THRESHOLD: Final = -3  # of malloc.h


@dataclass(frozen=True)
class Footprint:
    """A runtime's constants in the formula above.

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

    def bytes_of(self, bundle: Bundle, fit: Fit) -> int:
        """Peak bytes of a process that trains `bundle` with `fit`, an estimate."""
        vector = 4 * bundle.spec.d
        stacks = fit.variant in self.stacks
        examples = fit.micro * (self.slack * activations(bundle.spec, stacks) + (tiles(bundle.spec) if stacks else 0))
        graph = len(bundle.files.get(self.graph, b""))
        held = self.base + self.per_graph_byte * graph + vector * self.vectors
        return int(held + max(vector * self.spare, examples))


def activations(spec: ModelSpec, stacks: bool = False) -> int:
    """Bytes of one example at the worst moment of a step, float32; see the formula of this module.

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
    """Bytes of one example that its 3x3 convolutions keep of their inputs as tiles of 6 x 6 for 4 x 4 results, float32.

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
    """Whether a convolution is a product with what every result takes, as in `export.spatial`, which no device has."""
    few = math.prod(kernel[2:]) > 1 and math.prod(kernel[1:]) <= FEW
    return few and kernel[0] >= FEW and layer.groups == 1


def for_device(config: EdgeConfig, bundle: Bundle, data: int) -> tuple[Fit, int] | None:
    """`fit` for a device's settings, None where they set no ceiling. `data`: bytes of its examples.

    To them comes a batch, as it is stored and as the network takes it.
    """
    if not config.memory_mb:
        return None
    batch = 2 * 4 * bundle.batch * math.prod(bundle.spec.input)
    return fit(config.runtime, bundle, config.memory_mb, data + batch)


def give_back_at_once() -> None:
    """From now on, let glibc give memory of a megabyte or more back to the system when it is freed; elsewhere nothing.

    Left alone it raises that bound to the size of what was freed (mallopt(3), M_MMAP_THRESHOLD), up to 32 MB. Vectors
    of a round then lie in the heap in holes that the next does not fit: CONV-4's rounds peaked at 180, 194, 202 MB.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def fit(name: str, bundle: Bundle, memory_mb: int, data: int = 0) -> tuple[Fit, int]:
    """The micro-batch and variant with which runtime `name` trains `bundle` below `memory_mb`, and the estimate, bytes.

    `data`: bytes of the examples that the process holds besides.
    The usual variant as long as a micro-batch of EIGHT fits, or of THREE where it keeps `tiles`, the largest that does;
    below that, whichever takes more. Where graphs were made for one micro-batch, that one or none.
    Raises UserError, with numbers and with what would help.
    """
    footprint: Footprint | None = runtimes.footprint(name)
    if footprint is None:
        able = ", ".join(each for each in runtimes.names() if runtimes.footprint(each))
        raise UserError(f"runtime {name} keeps to no memory_mb; these do: {able}")
    best, enough = Fit(0), THREE if tiles(bundle.spec) else EIGHT
    if footprint.fixed:
        only = runtimes.usual(name, bundle)
        best = only if footprint.bytes_of(bundle, only) + data <= memory_mb * MB else best
    else:
        for variant in runtimes.variants(name, bundle):
            micro = _largest(footprint, bundle, variant, memory_mb * MB - data)
            if micro > best.micro and best.micro < min(enough, bundle.batch):
                best = Fit(micro, variant)
    if best.micro:
        return best, footprint.bytes_of(bundle, best) + data
    raise UserError(_refusal(name, footprint, bundle, memory_mb, data))


def _largest(footprint: Footprint, bundle: Bundle, variant: str, ceiling: int) -> int:
    """The most examples at a time that stay below `ceiling` bytes; 0 if a single one does not."""
    low, high = 0, bundle.batch
    while low < high:
        middle = (low + high + 1) // 2
        if footprint.bytes_of(bundle, Fit(middle, variant)) <= ceiling:
            low = middle
        else:
            high = middle - 1
    return low


def _refusal(name: str, footprint: Footprint, bundle: Bundle, memory_mb: int, data: int) -> str:
    def fewest(which: str) -> list[Fit]:
        if runtimes.footprint(which).fixed:
            return [runtimes.usual(which, bundle)]
        return [Fit(1, variant) for variant in runtimes.variants(which, bundle)]

    def least(which: str) -> int:
        used: Footprint = runtimes.footprint(which)
        return data + min(used.bytes_of(bundle, each) for each in fewest(which))

    def fits(which: str) -> bool:
        try:
            return least(which) <= memory_mb * MB
        except (UserError, ProtocolError):  # it is here, but cannot be opened
            return False

    spec, vector = bundle.spec, 4 * bundle.spec.d
    taken, helps = "one example at a time takes", "a smaller batch does not"
    if footprint.fixed:
        micro = fewest(name)[0].micro
        taken = f"the {micro} examples at a time of its graphs take"
        helps = f"an export with a --batch below {micro} helps"
    text = (
        f"memory_mb = {memory_mb} is too little for {spec.name} on runtime {name}: {taken} about "
        f"{math.ceil(least(name) / MB)} MB, of which {footprint.base / MB:.0f} are the program, "
        f"{footprint.vectors * vector / MB:.0f} vectors of {spec.d:,} weights and {data / MB:.0f} the examples"
    )
    able = [
        each for each in runtimes.names() if each != name and runtimes.footprint(each) and not runtimes.missing(each)
    ]
    fitting = [each for each in able if not runtimes.lacking(each, bundle) and fits(each)]
    if fitting:
        return f"{text}; runtime {' or '.join(fitting)} would fit"
    return f"{text}; a higher ceiling or a network with fewer weights helps, {helps}"
