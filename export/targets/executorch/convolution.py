"""Convolutions as one gather of rows and one product: XNNPACK's own need weights that never change.

Images are [batch, height, width, channels], weights as torch has them, [out, in / groups, kh, kw].
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from export.targets.executorch.products import LANES, over_rows, product, total_by_image
from seedmask.layers import Conv2d, Shape

V = torch.Tensor


class Convolutions:
    """Convolutions of one program, with what one gradient has computed and another needs."""

    def __init__(self) -> None:
        self._gathered: tuple[V, tuple[Shape, ...], V] | None = None
        self._index: dict[tuple[int, int, bytes], V] = {}

    def forward(self, x: V, weight: V, layer: Conv2d) -> V:
        """Return the output of the layer without its bias, [batch, height, width, out]."""
        if _depthwise(weight.shape, layer):
            taps = self._taps(x, weight.shape[2:], layer)
            y = functools.reduce(torch.add, [tap * w for tap, w in zip(taps, _by_tap(weight), strict=True)])
        elif layer.groups > 1:
            parts = zip(_cut(x, 3, layer), _cut(weight, 0, layer), strict=True)
            return torch.cat([self.forward(*part, _one_group(layer)) for part in parts], 3)
        else:
            n = _abreast(len(weight), weight.shape[2:], layer, _sides(x, weight.shape[2:], layer)[1])
            by_place = torch.permute_copy(weight, (2, 3, 1, 0))
            y = product(self._patches_of_x(x, weight.shape, layer, n), _wide(by_place, n))
        return y.view(len(x), *_sides(x, weight.shape[2:], layer), len(weight))

    def dx(self, dy: V, weight: V, layer: Conv2d, before: Shape, after: Shape) -> V:
        """Return the gradient with respect to x.

        With stride 1, it is a convolution of dy; otherwise the sum of what each patch passes back, collected by a
        gather.
        """
        batch, (out, channels) = len(dy), weight.shape[:2]
        if _depthwise(weight.shape, layer):
            rows = _with_nothing(dy)
            taps = [(rows * w).view(-1, 1, out) for w in _by_tap(weight)]
            dx = self._passed_back(torch.cat(taps, 1).view(batch, -1, out), layer, weight.shape, before, after)
        elif layer.groups > 1:
            parts = zip(_cut(dy, 3, layer), _cut(weight, 0, layer), strict=True)
            return torch.cat([self.dx(*part, _one_group(layer), before, after) for part in parts], 3)
        elif layer.stride == (1, 1):
            n = _abreast(channels, weight.shape[2:], layer, before[2])
            back = _wide(torch.permute_copy(weight, (2, 3, 0, 1)), n, backwards=True)
            dx = product(self._patches_of(dy, layer, weight.shape, n), back)
        else:
            rows = _with_nothing(dy).view(-1, out)
            back = product(rows, torch.permute_copy(weight, (0, 2, 3, 1)).reshape(out, -1))
            dx = self._passed_back(back.view(batch, -1, channels), layer, weight.shape, before, after)
        return dx.view(batch, *before[1:], -1)

    def dw(self, dy: V, x: V, layer: Conv2d, kernel: Shape) -> V:
        """Return the gradient with respect to the weight.

        It is x^T times dy's patches, which `dx` needs too; or x's patches times dy, if x has few channels or there is a
        stride.
        """
        out, channels, kh, kw = kernel
        if _depthwise(kernel, layer):
            rows = dy.reshape(len(dy), -1, out)
            dw = torch.cat([total_by_image(tap * rows).view(1, -1) for tap in self._taps(x, kernel[2:], layer)])
            return torch.permute_copy(dw, (1, 0)).reshape(kernel)
        if layer.groups > 1:
            parts, own = zip(_cut(dy, 3, layer), _cut(x, 3, layer), strict=True), (out // layer.groups, *kernel[1:])
            return torch.cat([self.dw(*part, _one_group(layer), own) for part in parts])
        if layer.stride == (1, 1) and channels * 4 > out:
            n = _abreast(channels, (kh, kw), layer, x.shape[2])
            dw = over_rows(x.reshape(-1, n * channels), self._patches_of(dy, layer, kernel, n), len(x))
            dw = dw.view(n, channels, kh, kw + n - 1, out)
            shifted = [torch.slice_copy(dw[i], 2, n - 1 - i, n - 1 - i + kw) for i in range(n)]
            return torch.permute_copy(sum(shifted[1:], shifted[0]), (3, 0, 1, 2))
        n = _abreast(out, (kh, kw), layer, dy.shape[2])
        dw = over_rows(self._patches_of_x(x, kernel, layer, n), dy.reshape(-1, n * out), len(x))
        dw = dw.view(kh, kw + n - 1, channels, n * out)
        shifted = [torch.slice_copy(torch.slice_copy(dw, 1, i, i + kw), 3, i * out, (i + 1) * out) for i in range(n)]
        return torch.permute_copy(sum(shifted[1:], shifted[0]), (3, 2, 0, 1))

    def _patches_of_x(self, x: V, kernel: Shape, layer: Conv2d, n: int) -> V:
        """Return the patches of x that `n` neighbouring outputs see together; kernel is [out, in, kh, kw]."""
        (kh, kw), (down, right) = kernel[2:], layer.stride
        return self._patches(x, (kh, kw + n - 1), (down, right * n), layer.padding, layer.dilation)

    def _patches_of(self, dy: V, layer: Conv2d, kernel: Shape, n: int) -> V:
        """Return the patches of dy from which `n` neighbours in x receive gradients, in the kernel's order."""
        sides = zip(kernel[2:], layer.padding, layer.dilation, strict=True)
        pad = tuple((side - 1) * apart - given for side, given, apart in sides)
        window = kernel[2], kernel[3] + n - 1
        seen = (window, (1, n), pad, layer.dilation)
        # Two convolutions that are added up have the same dy, but may have different patches of it.
        if self._gathered is None or self._gathered[0] is not dy or self._gathered[1] != seen:
            self._gathered = (dy, seen, self._patches(dy, *seen, backwards=True))
        return self._gathered[2]

    def _patches(
        self, x: V, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape, backwards: bool = False
    ) -> V:
        """Return the patch of x that every output of a convolution sees, [batch * places, kh * kw * channels].

        Negative padding crops; `backwards` lists a patch from its last element to its first. It is one gather of x's
        rows of channels by a constant index: slices and a concatenation measured a third slower.
        """
        channels = x.shape[3]
        if tuple(kernel) == stride == (1, 1) and not any(padding):
            return x.reshape(-1, channels)
        seen = _seen(x, kernel, stride, padding, dilation)
        seen = seen[:, :, ::-1, ::-1] if backwards else seen
        return self._gather(_rows(x, padding), seen).view(-1, kernel[0] * kernel[1] * channels)

    def _taps(self, x: V, kernel: Shape, layer: Conv2d) -> list[V]:
        """Return the patches of x cut by kernel element: for each of these [batch, places, channels]."""
        seen = _seen(x, kernel, layer.stride, layer.padding, layer.dilation).reshape(-1, kernel[0] * kernel[1])
        rows = _rows(x, layer.padding)
        return [self._gather(rows, seen[:, tap]) for tap in range(seen.shape[1])]

    def _gather(self, rows: V, places: npt.NDArray[np.int64]) -> V:
        """Return the rows of each image at `places`: [batch, n, channels] -> [batch, len(places), channels].

        Places count within an image.
        """
        batch, n, channels = rows.shape
        image = places.reshape(1, -1).astype(np.int32)
        key = batch, n, image.tobytes()
        if key not in self._index:
            # Added at run time: an index for the whole batch would be most of the file.
            starts = torch.arange(0, batch * n, n, dtype=torch.int32).view(-1, 1)
            self._index[key] = torch.from_numpy(image) + starts
        return F.embedding(self._index[key], rows.reshape(-1, channels))

    def _passed_back(self, back: V, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> V:
        """Return what every place of x receives, [batch, places, channels].

        `back`, [batch, (patches + 1) * kh * kw, channels], has what every patch passes back.
        """
        slots = [self._gather(back, places) for places in _contributors(layer, kernel, before, after)]
        return functools.reduce(torch.add, slots)


def _depthwise(kernel: Shape, layer: Conv2d) -> bool:
    """True if every channel has one kernel of its own, so that there is no matrix product."""
    return layer.groups > 1 and kernel[0] == layer.groups and kernel[1] == 1


def _by_tap(weight: V) -> list[V]:
    """Return a depthwise weight [channels, 1, kh, kw] as rows [1, channels], one for each kernel element."""
    return list(torch.split(torch.permute_copy(weight, (2, 3, 1, 0)).reshape(-1, len(weight)), 1))


def _cut(x: V, axis: int, layer: Conv2d) -> list[V]:
    """Return x cut along `axis` into one piece for each group."""
    size = x.shape[axis] // layer.groups
    return [torch.slice_copy(x, axis, at, at + size) for at in range(0, x.shape[axis], size)]


def _one_group(layer: Conv2d) -> Conv2d:
    return Conv2d(layer.weight, None, layer.stride, layer.padding, 1, layer.dilation)


def _abreast(out: int, kernel: Shape, layer: Conv2d, columns: int) -> int:
    """Return how many neighbouring outputs, `out` numbers each, one row of a product computes: 1 or 2.

    `columns` is the number of outputs in a row of the image. XNNPACK computes a product's row LANES numbers at a time,
    so two narrow rows cost as much as one. Neighbours also share most of their patches, so that two take a third less
    memory. That outweighs the products with zeros, (kw + 1) / kw as many, where rows have that many lanes. Where they
    have fewer, it should be about even (not measured), which is why it is never more than two.
    """
    plain = kernel[1] > 1 == layer.stride[1] == layer.dilation[1]
    return 2 if plain and 2 * out <= LANES and columns % 2 == 0 else 1


def _wide(weight: V, n: int, backwards: bool = False) -> V:
    """Return a weight [kh, kw, in, out] that computes `n` neighbouring outputs: [kh * (kw + n - 1) * in, n * out].

    The second output's weights are shifted by a column to the right, or if `backwards` to the left.
    """
    if n == 2:
        nothing = torch.zeros(len(weight), 1, *weight.shape[2:])
        left, right = torch.cat([weight, nothing], 1), torch.cat([nothing, weight], 1)
        weight = torch.cat([right, left] if backwards else [left, right], 3)
    return weight.reshape(-1, weight.shape[3])


def _sides(x: V, kernel: Shape, layer: Conv2d) -> tuple[int, ...]:
    """Return height and width of the output of a convolution of x."""
    sides = zip(x.shape[1:3], kernel, layer.stride, layer.padding, layer.dilation, strict=True)
    return tuple((side + 2 * pad - apart * (k - 1) - 1) // step + 1 for side, k, step, pad, apart in sides)


def _seen(x: V, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> npt.NDArray[np.int64]:
    """Return the index in `_rows` of each element that each output sees: [rows, columns, kh, kw].

    Negative padding crops.
    """
    high, wide = x.shape[1:3]
    places = np.arange(high * wide).reshape(high, wide)
    places = np.pad(places, [(max(0, pad),) * 2 for pad in padding], constant_values=high * wide)
    up, left = (max(0, -pad) for pad in padding)
    places = places[up : len(places) - up, left : places.shape[1] - left]
    window = tuple((k - 1) * apart + 1 for k, apart in zip(kernel, dilation, strict=True))
    seen = np.lib.stride_tricks.sliding_window_view(places, window)
    return seen[:: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _rows(x: V, padding: Shape) -> V:
    """Return images as [batch, places, channels], followed by a place of zeros if there is padding."""
    return _with_nothing(x) if max(padding) > 0 else x.reshape(len(x), -1, x.shape[3])


def _with_nothing(dy: V) -> V:
    """Return images as [batch, places + 1, channels]; the last place is zeros, which stand for padding.

    `_seen` and `_contributors` point there. It is a concatenation, which costs next to nothing: XNNPACK's padding takes
    twice as long as a ReLU.
    """
    rows = dy.reshape(len(dy), -1, dy.shape[-1])
    return torch.cat([rows, torch.zeros(len(dy), 1, rows.shape[2])], 1)


def _contributors(layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> list[npt.NDArray[np.int64]]:
    """Return index vectors [places]: together they list, for each place of x, all that patches pass back to it.

    An index counts rows of (patch, kernel element). A place that receives less than others has the row after the last
    one, which is zeros. There are as many vectors as the place that receives most needs.
    """
    (_, _, kh, kw), (_, rows, columns), (_, high, wide) = kernel, after, before
    (up, left), (sv, sh), (dv, dh) = layer.padding, layer.stride, layer.dilation
    patch = np.arange(rows * columns).reshape(rows, columns) * kh * kw
    none, found = rows * columns * kh * kw, []
    for i in range(kh):
        for j in range(kw):
            at = np.full((high + 2 * up + sv, wide + 2 * left + sh), none)
            at[i * dv : i * dv + rows * sv : sv, j * dh : j * dh + columns * sh : sh][:rows, :columns] = (
                patch + i * kw + j
            )
            found.append(at[up : up + high, left : left + wide].reshape(-1))
    # Existing ones first: with stride s, one kernel element in s x s meets a place.
    ordered = np.sort(np.stack(found), 0)
    return list(ordered[: max(1, int((ordered != none).sum(0).max()))])
