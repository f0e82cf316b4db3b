"""The ExecuTorch program of a masked network: weights, train_step, grads and logits in one file, no weight inside.

What the step computes stands in `export.graph`; here each operation is said in torch, followed by torch.export and
lowered to XNNPACK. Three things are not as one would write them for torch. Images are [batch, height, width, channels]
between layers and a convolution is one gather of rows and one product, because XNNPACK's own convolution takes no
weights that change from step to step. There are no comparisons, which it lacks: 1[x > 0] is ceil(clamp(x, 0, 1)). And
backward is the hand-written one: what ExecuTorch differentiates by itself has wrong gradients below a pooling layer
(`tests/test_executorch.py` says when that ends) and runs thirty times slower.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from export import masked
from export.graph import Adam, Knobs, Ops, Sgd, Step, forward, train_step, unpack
from seedmask.errors import MissingPackageError
from seedmask.model import FinishedModel
from seedmask.spec import GROUPNORM_EPSILON, Conv2d, GroupNorm, MaxPool2d, ModelSpec, Shape

if TYPE_CHECKING:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

V = torch.Tensor

# Those of seedmask.seed.
_THREEFRY_ROTATIONS: Final = (13, 15, 26, 6, 17, 29, 16, 24)
_THREEFRY_PARITY: Final = 0x1BD11BDA

NEEDS: Final = ("executorch", "torchao")
INSTALL: Final = "pip install 'seedmask[executorch]' (in a clone: '.[executorch]')"

_IMAGES: Final = 32  # at most in one run of a convolutional program

# Products over more rows than this are summed in pieces: XNNPACK does not cut its inner loop to fit a cache.
_ROWS: Final = 1024


class TorchOps(Ops[V]):
    """`export.graph.Ops` as torch calls to be traced. Images are [batch, height, width, channels]."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.yes = torch.ones(1)  # a condition known when the program is made
        self._gathered: tuple[V, V] | None = None

    def number(self, value: float) -> V:
        """A scalar constant, [1]."""
        return torch.full((1,), value)

    def add(self, a: V, b: V) -> V:
        """a + b."""
        return a + b

    def sub(self, a: V, b: V) -> V:
        """a - b."""
        return a - b

    def mul(self, a: V, b: V) -> V:
        """a * b."""
        return a * b

    def div(self, a: V, b: V) -> V:
        """a / b."""
        return a / b

    def sqrt(self, a: V) -> V:
        """The square root."""
        return torch.sqrt(a)

    def sigmoid(self, a: V) -> V:
        """The logistic function."""
        return torch.sigmoid(a)

    def less(self, a: V, b: V) -> V:
        """1.0 where a < b, else 0.0."""
        return _positive(b - a)

    def choose(self, condition: V, yes: Callable[[], V], no: Callable[[], V]) -> V:
        """Both, one of them times zero: a program has no branches. `condition` is 1.0 or 0.0, [1]."""
        if condition is self.yes:
            return yes()
        return condition * yes() + (1 - condition) * no()

    def split(self, flat: V, shapes: Sequence[Shape]) -> list[V]:
        """Slices."""
        parts = torch.split(flat, [math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def join(self, parts: Sequence[V]) -> V:
        """One after the other."""
        return torch.cat([part.reshape(-1) for part in parts])

    def reshape(self, x: V, shape: Shape) -> V:
        """By way of the order that weights are written for, channels first."""
        if x.dim() == 4:
            x = torch.permute_copy(x, (0, 3, 1, 2))
        x = x.reshape(self.batch, *shape)
        return torch.permute_copy(x, (0, 2, 3, 1)) if len(shape) == 3 else x

    def linear(self, x: V, weight: V, bias: V | None) -> V:
        """(W x^T)^T: of the two, the batch is cheaper to turn around."""
        y = torch.permute_copy(_product(weight, torch.permute_copy(x, (1, 0))), (1, 0))
        return y if bias is None else y + bias

    def linear_dx(self, dy: V, weight: V) -> V:
        """dy W."""
        return _product(dy, weight)

    def linear_dw(self, dy: V, x: V) -> V:
        """dy^T x."""
        return _product(torch.permute_copy(dy, (1, 0)), x)

    def conv(self, x: V, weight: V, bias: V | None, layer: Conv2d) -> V:
        """Rows of patches times the kernels."""
        out, _, kh, kw = weight.shape
        after = _sides(x, (kh, kw), layer)
        patches = _patches(x, (kh, kw), layer.stride, layer.padding)
        y = _product(patches, torch.permute_copy(weight, (2, 3, 1, 0)).reshape(-1, out))
        return (y if bias is None else y + bias).view(self.batch, *after, out)

    def conv_dx(self, dy: V, weight: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """With stride 1, a convolution of dy; else the sum of what each patch passes back, found by a gather."""
        out, channels = kernel[:2]
        if layer.stride == (1, 1):
            patches = self._patches_of(dy, layer, kernel)
            dx = _product(patches, torch.permute_copy(weight, (2, 3, 0, 1)).reshape(-1, channels))
        else:
            rows = F.pad(dy.reshape(self.batch, -1, out), (0, 0, 0, 1))  # the last row, zeros, is 'no such patch'
            back = _product(rows.view(-1, out), torch.permute_copy(weight, (0, 2, 3, 1)).reshape(out, -1))
            back = back.view(self.batch, -1, channels)
            slots = [_gather(back, places) for places in _contributors(layer, kernel, before, after)]
            dx = functools.reduce(torch.add, slots)
        return dx.view(self.batch, *before[1:], channels)

    def conv_dw(self, dy: V, x: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """x^T times the patches of dy, which `conv_dx` needs as well; or, if those are fewer, the patches of x times dy."""
        out, channels, kh, kw = kernel
        if layer.stride == (1, 1) and channels * 4 > out:
            patches = self._patches_of(dy, layer, kernel)
            dw = self._over_rows(x.reshape(-1, channels), patches)
            return torch.permute_copy(dw.view(channels, kh, kw, out), (3, 0, 1, 2))
        patches = _patches(x, (kh, kw), layer.stride, layer.padding)
        dw = self._over_rows(patches, dy.reshape(-1, out))
        return torch.permute_copy(dw.view(kh, kw, channels, out), (3, 2, 0, 1))

    def _patches_of(self, dy: V, layer: Conv2d, kernel: Shape) -> V:
        """What dy's convolution back to x sees at every place of x, kernel entries in the order of the kernel."""
        if self._gathered is None or self._gathered[0] is not dy:
            pad = tuple(side - 1 - given for side, given in zip(kernel[2:], layer.padding, strict=True))
            self._gathered = (dy, _patches(dy, kernel[2:], (1, 1), pad, backwards=True))
        return self._gathered[1]

    def _over_rows(self, a: V, b: V) -> V:
        """a^T b for [rows, A] and [rows, B], rows a multiple of the batch: [A, B]."""
        rows = len(a)
        pieces = next(
            n for n in range(1, self.batch + 1) if self.batch % n == 0 and (rows // n <= _ROWS or n == self.batch)
        )
        products = torch.bmm(
            torch.permute_copy(a.view(pieces, rows // pieces, -1), (0, 2, 1)), b.view(pieces, rows // pieces, -1)
        )
        return products[0] if pieces == 1 else _sum(products.view(pieces, -1)).view(a.shape[1], b.shape[1])

    def bias_grad(self, dy: V, shape: Shape) -> V:
        """First over each image, then over the batch, so that sums stay short."""
        if dy.dim() == 2:
            return _sum(dy)
        channels = shape[0]
        image = dy.reshape(self.batch, -1, channels)
        return _sum(torch.bmm(torch.ones(self.batch, 1, image.shape[1]), image).view(self.batch, channels))

    def relu(self, x: V) -> V:
        """torch's."""
        return F.relu(x)

    def relu_dx(self, dy: V, y: V) -> V:
        """A product."""
        return dy * _positive(y)

    def pool(self, x: V, layer: MaxPool2d, before: Shape) -> tuple[V, V]:
        """Along rows, then along columns: then the first of equals is the one that reading order meets first.

        The winners are 1.0 and 0.0 [batch * rows, size, columns, size, channels].
        """
        (down, right), channels = layer.size, before[0]
        rows, columns = before[1] // down, before[2] // right
        if (rows * down, columns * right) != before[1:]:
            x = x[:, : rows * down, : columns * right]
        x, across = _first_largest(x.reshape(-1, right, channels))
        x, along = _first_largest(x.reshape(self.batch * rows, down, columns * channels))
        winners = across.view(-1, down, columns, right, channels) * along.view(-1, down, columns, 1, channels)
        return x.view(self.batch, rows, columns, channels), winners

    def pool_dx(self, dy: V, winners: V, layer: MaxPool2d, before: Shape) -> V:
        """A product, then zeros where `pool` dropped incomplete windows."""
        (down, right), (channels, high, wide) = layer.size, before
        rows, columns = high // down, wide // right
        dx = winners * dy.reshape(self.batch * rows, 1, columns, 1, channels)
        dx = dx.view(self.batch, rows * down, columns * right, channels)
        rest = (high - rows * down, wide - columns * right)
        return F.pad(dx, (0, 0, 0, rest[1], 0, rest[0])) if any(rest) else dx

    def normalise(self, x: V, layer: GroupNorm, shape: Shape) -> tuple[V, V]:
        """Mean and variance in two passes."""
        apart = self._by_group(x, layer)
        centred = apart - _mean(apart)
        deviation = torch.sqrt(_mean(centred * centred) + GROUPNORM_EPSILON)
        return self._together(centred / deviation, x, layer), deviation

    def normalise_dx(self, dy: V, y: V, deviation: V, layer: GroupNorm, shape: Shape) -> V:
        """As it stands in `Ops`."""
        by, normal = self._by_group(dy, layer), self._by_group(y, layer)
        dx = (by - _mean(by) - normal * _mean(normal * by)) / deviation
        return self._together(dx, dy, layer)

    def _by_group(self, x: V, layer: GroupNorm) -> V:
        """[batch * groups, what a group has]."""
        if x.dim() == 4 and layer.groups > 1:
            x = torch.permute_copy(x, (0, 3, 1, 2))
        return x.reshape(self.batch * layer.groups, -1)

    def _together(self, groups: V, like: V, layer: GroupNorm) -> V:
        """The inverse of `_by_group`, for a value of the shape of `like`."""
        if like.dim() == 4 and layer.groups > 1:
            _, high, wide, channels = like.shape
            return torch.permute_copy(groups.reshape(self.batch, channels, high, wide), (0, 2, 3, 1))
        return groups.reshape(like.shape)

    def cross_entropy(self, logits: V, y: V, weight: V) -> tuple[V, V, V]:
        """Few numbers, so whatever kernel there is will do; log_softmax subtracts the maximum first."""
        logp, column = F.log_softmax(logits, 1), weight.view(-1, 1)
        truth = (y.view(-1, 1) == torch.arange(logits.shape[1])).to(torch.float32)
        loss = -(truth * logp * column).sum()
        correct = ((logits.argmax(1) == y) & (weight > 0)).sum()
        return loss, correct, (logp.exp() - truth) * column


def _positive(x: V) -> V:
    """1.0 where x > 0, else 0.0."""
    return torch.ceil(torch.clamp(x, 0.0, 1.0))


def _product(a: V, b: V) -> V:
    """a b for matrices; as a batch of one, the form in which XNNPACK takes two operands that change."""
    return torch.bmm(a.reshape(1, *a.shape), b.reshape(1, *b.shape)).view(a.shape[0], b.shape[1])


def _sum(x: V) -> V:
    """The sum over the rows of a matrix [n, k], [k]."""
    return _product(torch.ones(1, len(x)), x).view(-1)


def _mean(x: V) -> V:
    """The mean of each row of a matrix, [n, 1]."""
    return _product(x, torch.full((x.shape[1], 1), 1 / x.shape[1]))


def _first_largest(x: V) -> tuple[V, V]:
    """The maximum of x [n, size, k] over its middle, [n, 1, k], and 1.0 at the first place that has it, [n, size, k]."""
    parts = torch.split(x, 1, 1)
    largest, later = parts[0], []
    for part in parts[1:]:
        later.append(_positive(part - largest))
        largest = torch.maximum(largest, part)
    if not later:
        return largest, torch.ones_like(x)
    # Of those that were larger than all before them, the last one has it.
    ones, rest = [later[-1]], 1 - later[-1]
    for larger in reversed(later[:-1]):
        ones.append(rest * larger)
        rest = rest - ones[-1]
    return largest, torch.cat([rest, *reversed(ones)], 1)


def _sides(x: V, kernel: Shape, layer: Conv2d) -> tuple[int, ...]:
    """Height and width that a convolution of x gives."""
    return tuple((x.shape[1 + i] + 2 * layer.padding[i] - kernel[i]) // layer.stride[i] + 1 for i in range(2))


def _patches(x: V, kernel: Shape, stride: Shape, padding: Shape, backwards: bool = False) -> V:
    """What every place of a convolution's output sees of x: [batch * places, kh * kw * channels].

    Negative padding crops; `backwards` lists a patch from its last place to its first. One gather of x's rows of
    channels by a constant index: slices and a concatenation measured a third slower.
    """
    _, _, _, channels = x.shape
    (kh, kw), crop = kernel, [max(0, -pad) for pad in padding]
    if any(crop):
        x = x[:, crop[0] : x.shape[1] - crop[0], crop[1] : x.shape[2] - crop[1]]
    vertical, horizontal = (max(0, pad) for pad in padding)
    if vertical or horizontal:
        x = F.pad(x, (0, 0, horizontal, horizontal, vertical, vertical))
    if kh == kw == 1 and stride == (1, 1):
        return x.reshape(-1, channels)
    high, wide = x.shape[1:3]
    seen = np.lib.stride_tricks.sliding_window_view(np.arange(high * wide).reshape(high, wide), (kh, kw))
    seen = seen[:: stride[0], :: stride[1], :: -1 if backwards else 1, :: -1 if backwards else 1]
    return _gather(x.reshape(len(x), -1, channels), seen).view(-1, kh * kw * channels)


def _gather(rows: V, places: npt.NDArray[np.int64]) -> V:
    """Rows of each image, [batch, n, channels] -> [batch, len(places), channels]; places count within an image."""
    batch, n, channels = rows.shape
    image = torch.from_numpy(places.reshape(1, -1).astype(np.int32))
    # Added up at run time: an index for the whole batch would be most of the file.
    index = image + torch.arange(0, batch * n, n, dtype=torch.int32).view(-1, 1)
    return F.embedding(index, rows.reshape(-1, channels))


def _contributors(layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> list[npt.NDArray[np.int64]]:
    """Where each place of x, [places], finds one of the things that patches pass back to it; as many as it needs.

    They count rows of (patch, entry of the kernel); the first row after all of them where there is none.
    """
    (_, _, kh, kw), (_, rows, columns), (_, high, wide) = kernel, after, before
    (up, left), (sv, sh) = layer.padding, layer.stride
    patch = np.arange(rows * columns).reshape(rows, columns) * kh * kw
    none, found = rows * columns * kh * kw, []
    for i in range(kh):
        for j in range(kw):
            at = np.full((high + 2 * up + sv, wide + 2 * left + sh), none)
            at[i : i + rows * sv : sv, j : j + columns * sh : sh][:rows, :columns] = patch + i * kw + j
            found.append(at[up : up + high, left : left + wide].reshape(-1))
    # The real ones first: with stride s only one entry of the kernel in s x s meets a place.
    ordered = np.sort(np.stack(found), 0)
    return list(ordered[: max(1, int((ordered != none).sum(0).max()))])


class Weights(torch.nn.Module):
    """key int64 [2], from `seedmask.seed.weights_key` -> w float32 [d], bit for bit spec.weights()."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, key: V) -> V:
        """In lanes of int32, whose sums wrap; a mask after the arithmetic shift makes it a logical one."""
        spec = self.spec
        k0, k1 = key[0:1].to(torch.int32), key[1:2].to(torch.int32)
        ks = (k0, k1, (k0 ^ k1) ^ _THREEFRY_PARITY)
        x0, x1 = torch.arange((spec.d + 63) // 64, dtype=torch.int32) + k0, k1
        for r in range(20):
            x0 = x0 + x1
            turn = _THREEFRY_ROTATIONS[r % 8]
            low = torch.bitwise_right_shift(x1, 32 - turn) & ((1 << turn) - 1)
            x1 = (torch.bitwise_left_shift(x1, turn) | low) ^ x0
            if r % 4 == 3:
                s = r // 4 + 1
                x0, x1 = x0 + ks[s % 3], x1 + (ks[(s + 1) % 3] + s)
        words = torch.stack([x0, x1], 1).view(-1, 1)
        bits = torch.bitwise_right_shift(words, torch.arange(32, dtype=torch.int32)) & 1
        signs = (1.0 - 2.0 * bits.to(torch.float32)).view(-1)[: spec.d]
        parts = torch.split(signs, [tensor.size for tensor in spec.tensors])
        return torch.cat([part * tensor.constant for part, tensor in zip(parts, spec.tensors, strict=True)])


class _Network(torch.nn.Module):
    def __init__(self, spec: ModelSpec, batch: int) -> None:
        super().__init__()
        self.spec, self.batch = spec, batch

    def image(self, x: V) -> V:
        return torch.permute_copy(x, (0, 2, 3, 1)) if x.dim() == 4 else x

    def step(self, x: V, y: V, weight: V, scores: V, w: V, u: V, mean: V, rate: V, by: Any) -> Step[V]:
        ops, zero = TorchOps(self.batch), torch.zeros(1)
        knobs = Knobs(rate, mean, ops.yes, zero, zero, zero, zero, zero)
        return train_step(
            ops, self.spec, x=self.image(x), y=y, weight=weight, scores=scores, w=w, u=u, knobs=knobs, optimizer=by
        )


class TrainStep(_Network):
    """One step of Adam whose gradient is that of the loss alone, by the identity estimator.

    x float32 [batch, *input]; y int64 [batch]; weight float32 [batch], 1/n for a real example and 0 for padding;
    scores, w (weights), u (noise) float32 [d]; mean float32 [1], 1.0 to run w * theta; m, v float32 [d]; rate, epsilon
    float32 [1] with their step's bias correction (`export.graph.Adam`)
    -> scores, m, v float32 [d]; loss float32 []; correct int64 [].
    """

    def forward(
        self, x: V, y: V, weight: V, scores: V, w: V, u: V, mean: V, m: V, v: V, rate: V, epsilon: V
    ) -> tuple[V, ...]:
        """See the class."""
        after = self.step(x, y, weight, scores, w, u, mean, rate, Adam(m, v, epsilon))
        assert after.v is not None
        return after.scores, after.m, after.v, after.loss, after.correct


class Grads(_Network):
    """The gradient of the loss by the scores, straight through; over micro-batches of one batch they add up.

    Inputs as TrainStep's up to `mean` -> gradient float32 [d]; loss float32 []; correct int64 [].
    """

    def forward(self, x: V, y: V, weight: V, scores: V, w: V, u: V, mean: V) -> tuple[V, ...]:
        """By SGD without momentum, whose first moment is the gradient; nobody asks for its scores."""
        zero = torch.zeros(1)
        after = self.step(x, y, weight, scores, w, u, mean, zero, Sgd(zero, zero))
        return after.m, after.loss, after.correct


class Logits(_Network):
    """x float32 [batch, *input], w and mask float32 [d] -> float32 [batch, classes]."""

    def forward(self, x: V, w: V, mask: V) -> V:
        """See the class."""
        ops = TorchOps(self.batch)
        return forward(ops, self.spec, self.image(x), unpack(ops, self.spec, w * mask))[0]


def files(spec: ModelSpec, batch: int) -> dict[str, bytes]:
    """The bundle's member; a step of `batch` examples is a few of the program's. Raises MissingPackageError."""
    _require()
    return {"executorch/model.pte": program(spec, micro_batch(spec, batch))}


def micro_batch(spec: ModelSpec, batch: int) -> int:
    """How many examples the program takes at once for steps of `batch`.

    Patches make a convolution's memory nine times its image's, and more than 32 of CONV-4's run no faster.
    """
    if not any(isinstance(layer, Conv2d) for layer in spec.layers):
        return batch
    return -(-batch // -(-batch // _IMAGES))


def program(spec: ModelSpec, batch: int) -> bytes:
    """The program of `spec` for steps of `batch` examples: methods weights, train_step, grads and logits."""

    def flat() -> V:  # another one each time: torch.export takes one tensor given twice for one input
        return torch.zeros(spec.d)

    def one() -> V:
        return torch.zeros(1)

    x, y, weight = torch.zeros(batch, *spec.input), torch.zeros(batch, dtype=torch.int64), torch.zeros(batch)
    step = (x, y, weight, flat(), flat(), flat(), one())
    methods: dict[str, tuple[torch.nn.Module, tuple[V, ...]]] = {
        "weights": (Weights(spec), (torch.zeros(2, dtype=torch.int64),)),
        "train_step": (TrainStep(spec, batch), (*step, flat(), flat(), one(), one())),
        "grads": (Grads(spec, batch), step),
        "logits": (Logits(spec, batch), (x, flat(), flat())),
    }
    with torch.no_grad():
        exported = {name: torch.export.export(*method) for name, method in methods.items()}
    # Weights are made of integers, which XNNPACK has no use for.
    return _lower(exported, {name: _training_partitioner() for name in methods if name != "weights"})


def finished_pte(
    model: FinishedModel, int8: bool = False, calibration: npt.NDArray[Any] | None = None, batch: int = 1
) -> bytes:
    """A finished network for inference: method forward, raw x float32 [batch, *input] -> logits float32 [batch, classes].

    Its weights are in the file. `int8`: weights, which have three values a tensor, stay exact; what flows between the
    layers is rounded to 256 levels, over the ranges that `calibration`, raw inputs [n, *input], shows. Raises
    ValueError if it is needed and not there, MissingPackageError.
    """
    _require()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    x = torch.zeros(batch, *model.spec.input)
    network: torch.nn.Module = _Finished(model)
    if int8:
        if calibration is None or calibration.shape[1:] != model.spec.input or len(calibration) < batch:
            found = None if calibration is None else list(calibration.shape)
            raise ValueError(f"int8 takes calibration [n >= {batch}, {model.spec.input}], found {found}")
        network = _quantised(network, x, torch.from_numpy(np.asarray(calibration, np.float32)))
    with torch.no_grad():
        return _lower({"forward": torch.export.export(network, (x,))}, {"forward": XnnpackPartitioner()})


class _Finished(torch.nn.Module):
    """The network under its own weights, which are masked for good, from raw inputs."""

    def __init__(self, model: FinishedModel) -> None:
        super().__init__()
        self.spec = model.spec
        # One buffer a tensor: XNNPACK packs what is constant by itself, not what is cut out of something constant.
        for number, part in enumerate(masked.parts(model.spec, torch.from_numpy(model.weights())).values()):
            self.register_buffer(f"w{number}", part.clone())

    def forward(self, x: V) -> V:
        """Logits."""
        low, high = self.spec.range
        weights = {tensor.name: self.get_buffer(f"w{i}") for i, tensor in enumerate(self.spec.tensors)}
        return masked.network(self.spec, (x - low) * (2.0 / (high - low)) - 1, weights)


def _quantised(network: torch.nn.Module, x: V, calibration: V) -> torch.nn.Module:
    """`network` with every product in int8, by torchao's post-training quantisation."""
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


def _require() -> None:
    if lacking := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise MissingPackageError(f"graphs for executorch need {', '.join(lacking)}: {INSTALL}")


def _training_partitioner() -> XnnpackPartitioner:
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    # XNNPACK copies to change a shape; ExecuTorch itself looks at the same memory in another way.
    views = {"ViewCopyConfig", "UnsqueezeCopyConfig"}
    configs = [config for config in ALL_PARTITIONER_CONFIGS if config.__name__ not in views]
    return XnnpackPartitioner(configs=configs, force_non_static_weights_for_f32_linear=True)


def _lower(exported: dict[str, Any], partitioners: dict[str, XnnpackPartitioner]) -> bytes:
    """The file of these programs by method; those without a partitioner run on ExecuTorch's own kernels."""
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    edge = to_edge_transform_and_lower(
        exported,
        partitioner={name: [partitioner] for name, partitioner in partitioners.items()},
        # Integer shifts are not in the core operator set; their kernels exist.
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    # What comes in and goes out lies in the caller's memory, not in a copy of it.
    planning = MemoryPlanningPass(alloc_graph_input=False, alloc_graph_output=False)
    return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning)).buffer)
