"""ONNX nodes, and the operations of `export.ops` in the form that onnxruntime's CPU runs fastest.

Only plain inference operators, so that every onnxruntime can train: opset 18, IR 8, domain ai.onnx, built with
onnx.helper (onnxscript's optimiser deletes Adam's epsilon). The targets decide which graphs are made of them;
`export.spatial` has a memory layout and a convolution that are faster still.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.ops import Ops
from seedmask.layers import EPSILON, Conv2d, GroupNorm, MaxPool2d, Shape

OPSET: Final = 18
IR_VERSION: Final = 8

# A convolution's weight gradient folds the batch into the product's inner dimension for images of at most _TALL rows
# and at least _WIDE pairs of channels (measured, see decision 0048).
_TALL: Final = 20
_WIDE: Final = 64 * 128

Dim: TypeAlias = int | str
Name: TypeAlias = str


class Graph:
    """A graph in the making: `graph("Add", a, b)` adds a node and returns its result's name.

    Equal constants are stored once.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.made = 0
        self.constants: dict[tuple[str, Shape, bytes], onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def __call__(self, op: str, *inputs: Name, **attributes: Any) -> Name:
        """Add a node with one output and return its name."""
        return self.several(op, 1, *inputs, **attributes)[0]

    def several(self, op: str, count: int, *inputs: Name, **attributes: Any) -> list[Name]:
        """Add a node with `count` outputs and return their names."""
        names = [f"v{self.made}_{i}" for i in range(count)]
        self.made += 1
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names

    def branch(self, build: Callable[[], Name]) -> onnx.GraphProto:
        """Return a graph for an If node whose result is the float32 value that `build` returns.

        It may use every name that exists already.
        """
        outside, self.nodes = self.nodes, []
        result = helper.make_tensor_value_info(build(), onnx.TensorProto.FLOAT, None)
        inside, self.nodes = self.nodes, outside
        return helper.make_graph(inside, f"branch{self.made}", [], [result])

    def const(self, value: Any, dtype: Any) -> Name:
        """Return the name of a constant of `dtype`; equal constants share one."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"c{len(self.constants)}")
        return str(self.constants[key].name)

    def ints(self, *values: int) -> Name:
        """Return the name of an int64 vector constant, for shapes, axes and offsets."""
        return self.const(values, np.int64)

    def cast(self, x: Name, dtype: Any) -> Name:
        """Return `x` converted to `dtype`."""
        return self("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def slice(self, x: Name, axis: int, start: int, stop: int, step: int = 1) -> Name:
        """Return x[start:stop:step] along one axis."""
        return self("Slice", x, self.ints(start), self.ints(stop), self.ints(axis), self.ints(step))

    def input(self, name: Name, dtype: Any, shape: Sequence[Dim]) -> Name:
        """Declare an input and return its name."""
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape))
        return name

    def parameter(self, name: Name, value: npt.NDArray[Any]) -> Name:
        """Add an initialiser with a name of its own, which a training runtime may change or people look for."""
        self.constants[name, value.shape, b""] = numpy_helper.from_array(value, name)
        return name

    def output(self, name: Name, value: Name, dtype: Any, shape: Sequence[Dim]) -> None:
        """Declare `value` as the output `name`."""
        maker = next((node for node in self.nodes if list(node.output) == [value]), None)
        if maker is None or any(value in node.input for node in self.nodes):
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        else:
            maker.output[0] = name  # rename the output: an Identity would be one more pass over the vector
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def model(self, name: str, about: Mapping[str, str] | None = None) -> bytes:
        """Return the checked model as bytes, with `about` as its metadata."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.constants.values()))
        made = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="seedmask",
        )
        helper.set_model_props(made, dict(about or {}))
        onnx.checker.check_model(made, full_check=True)
        return bytes(made.SerializeToString(deterministic=True))


class OnnxOps(Ops[Name]):
    """`export.ops.Ops` as ONNX nodes. `batch` is a number, or -1 for whatever batch the input x has."""

    GRAPH: type[Graph] = Graph
    """What nodes are collected in."""

    LABELS: Any = np.int64
    """The type of class numbers, and of how many are right."""

    def __init__(self, graph: Graph, batch: int) -> None:
        self.g = graph
        self.batch = batch
        self._firsts: dict[Name, list[Name]] = {}  # by a pool's result; see `_first_of`

    def parameter(self, value: Name, given: Shape, shape: Shape) -> Name:
        """Return a tensor of the network, of shape `given`, reshaped to the `shape` in which its layer takes it."""
        return value if given == shape else self.g("Reshape", value, self.g.ints(*shape))

    def number(self, value: float) -> Name:
        """Return a scalar constant."""
        return self.g.const(value, np.float32)

    def add(self, a: Name, b: Name) -> Name:
        """Return a + b."""
        return self.g("Add", a, b)

    def sub(self, a: Name, b: Name) -> Name:
        """Return a - b."""
        return self.g("Sub", a, b)

    def mul(self, a: Name, b: Name) -> Name:
        """Return a * b."""
        return self.g("Mul", a, b)

    def div(self, a: Name, b: Name) -> Name:
        """Return a / b."""
        return self.g("Div", a, b)

    def sqrt(self, a: Name) -> Name:
        """Emit Sqrt."""
        return self.g("Sqrt", a)

    def sigmoid(self, a: Name) -> Name:
        """Emit Sigmoid."""
        return self.g("Sigmoid", a)

    def tanh(self, a: Name) -> Name:
        """Emit Tanh."""
        return self.g("Tanh", a)

    def exp(self, a: Name) -> Name:
        """Emit Exp."""
        return self.g("Exp", a)

    def erf(self, a: Name) -> Name:
        """Emit Erf."""
        return self.g("Erf", a)

    def minimum(self, a: Name, b: Name) -> Name:
        """Emit Min."""
        return self.g("Min", a, b)

    def less(self, a: Name, b: Name) -> Name:
        """Return 1.0 where a < b, else 0.0."""
        return self.g.cast(self.g("Less", a, b), np.float32)

    def choose(self, condition: Name, yes: Callable[[], Name], no: Callable[[], Name]) -> Name:
        """Emit If."""
        return self.g("If", condition, then_branch=self.g.branch(yes), else_branch=self.g.branch(no))

    def split(self, flat: Name, shapes: Sequence[Shape]) -> list[Name]:
        """Emit one Split; slices of a flat vector would each become a scatter in the gradient."""
        if len(shapes) == 1:
            return [self.g("Reshape", flat, self.g.ints(*shapes[0]))]
        sizes = self.g.ints(*(math.prod(shape) for shape in shapes))
        parts = self.g.several("Split", len(shapes), flat, sizes, axis=0)
        return [self.g("Reshape", p, self.g.ints(*s)) for p, s in zip(parts, shapes, strict=True)]

    def join(self, parts: Sequence[Name]) -> Name:
        """Emit one Concat of all parts, each flattened."""
        return self.g("Concat", *(self.g("Reshape", part, self.g.ints(-1)) for part in parts), axis=0)

    def reshape(self, x: Name, shape: Shape) -> Name:
        """Return x as [batch, *shape]."""
        return self.g("Reshape", x, self.g.ints(self.batch, *shape))

    def rows(self, x: Name, width: int) -> Name:
        """Return x as [batch * ..., width]."""
        return self.g("Reshape", x, self.g.ints(-1, width))

    def unrows(self, x: Name, shape: Shape) -> Name:
        """Return x as [batch, *shape]."""
        return self.reshape(x, shape)

    def mean(self, x: Name, axes: Sequence[int]) -> Name:
        """Emit ReduceMean."""
        return self.g("ReduceMean", x, self.g.ints(*(axis + 1 for axis in axes)), keepdims=1)

    def spread(self, x: Name, shape: Shape) -> Name:
        """Emit Expand."""
        return self.g("Expand", x, self._sizes(*shape))

    def _sizes(self, *shape: int) -> Name:
        """Return the shape [batch, *shape] as a value, for nodes that cannot infer the batch by -1."""
        if self.batch > 0:
            return self.g.ints(self.batch, *shape)
        return self.g("Concat", self.g("Shape", "x", start=0, end=1), self.g.ints(*shape), axis=0)

    def transpose(self, x: Name, order: Sequence[int]) -> Name:
        """Emit Transpose."""
        return self.g("Transpose", x, perm=[0, *(axis + 1 for axis in order)])

    def concat(self, parts: Sequence[Name], axis: int) -> Name:
        """Emit Concat."""
        return self.g("Concat", *parts, axis=axis + 1)

    def slice(self, x: Name, axis: int, start: int, stop: int) -> Name:
        """Emit Slice."""
        return self.g.slice(x, axis + 1, start, stop)

    def linear(self, x: Name, weight: Name, bias: Name | None) -> Name:
        """Emit Gemm: x W^T + bias."""
        return self.g("Gemm", x, weight, *([bias] if bias else []), transB=1)

    def linear_dx(self, dy: Name, weight: Name) -> Name:
        """Emit Gemm: dy W."""
        return self.g("Gemm", dy, weight)

    def linear_dw(self, dy: Name, x: Name) -> Name:
        """Emit Gemm: dy^T x."""
        return self.g("Gemm", dy, x, transA=1)

    def conv(self, x: Name, weight: Name, bias: Name | None, layer: Conv2d, before: Shape, after: Shape) -> Name:
        """Emit Conv."""
        return self.g("Conv", x, weight, *([bias] if bias else []), **_attributes(layer))

    def conv_dx(self, dy: Name, weight: Name, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> Name:
        """Emit ConvTranspose, with output_padding for input rows and columns that the stride never reached.

        A plain 1x1 convolution becomes a Conv with the transposed weight, which takes half the time.
        """
        if kernel[2:] == (1, 1) and layer == Conv2d(layer.weight, layer.bias, (1, 1), (0, 0), source=layer.source):
            return self.g("Conv", dy, self.g("Transpose", weight, perm=[1, 0, 2, 3]))
        sides = zip(before[1:], layer.padding, kernel[2:], after[1:], layer.stride, layer.dilation, strict=True)
        over = [h + 2 * p - d * (k - 1) - 1 - (q - 1) * s for h, p, k, q, s, d in sides]
        return self.g("ConvTranspose", dy, weight, **_attributes(layer), output_padding=over)

    def conv_dw(self, dy: Name, x: Name, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> Name:
        """Emit matrix products over all positions; with stride 1, `kh` kernel rows at a time.

        Most of a training step's time is spent here.
        """
        if (layer.stride, layer.dilation) == ((1, 1), (1, 1)):
            return self._dw_rows(dy, x, layer, kernel, before, after)
        return self.dw_taps(dy, x, layer, kernel, after)

    def _dw_rows(self, dy: Name, x: Name, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> Name:
        """Return a weight's gradient for stride 1: dy, stacked once per kernel row, times x, shifted per kernel column.

        Each copy of dy in the stack is shifted one row further down. With rows flattened, shifting is concatenation:
        dy, gap, dy, gap, ... cut every `high` rows gives copy i starting at row i. One row of padding is saved at
        either end by cutting the first and the last copy instead.
        """
        g, (out, channels, kh, kw), (_, rows, columns) = self.g, kernel, after
        apart = self._apart(layer)
        saved = 1 if layer.padding[0] >= 1 and kh >= 2 else 0
        pad = layer.padding[0] - saved
        high = before[1] + 2 * pad
        if kh == 1:
            stacked = g("Reshape", dy, g.ints(*apart, -1, rows * columns))
        else:
            flat = self.reshape(dy, (out, rows * columns))
            # A node, not a constant: the zeros of a large batch would be most of the file.
            gap = self.spread(self.number(0.0), (out, (high + 1 - rows) * columns))
            parts = [flat, *[part for _ in range(kh - 1) for part in (gap, flat)]]
            if saved:
                parts[0] = g.slice(flat, 2, columns, rows * columns)
                parts[-1] = g.slice(flat, 2, 0, (rows - 1) * columns)
            if high + 1 == rows:
                parts = [part for part in parts if part != gap]
            stacked = g("Concat", *parts, axis=2)
            stacked = g("Reshape", stacked, g.ints(*apart, -1, high * columns))
        fold = rows <= _TALL and out * channels >= _WIDE and layer.groups == 1
        if fold:
            stacked = g("Reshape", g("Transpose", stacked, perm=[1, 0, 2]), g.ints(out * kh, -1))
        padded = self._pad(x, pad, layer.padding[1])
        products = []
        for j in range(kw):
            shifted = padded if kw == 1 else g.slice(padded, 3, j, j + columns)
            if fold:
                shifted = g("Reshape", g("Transpose", shifted, perm=[1, 0, 2, 3]), g.ints(channels, -1))
                products.append(g("Gemm", stacked, shifted, transB=1))
            else:
                shifted = g("Reshape", shifted, g.ints(*apart, channels, high * columns))
                # Depthwise, a single row comes first: the other order measured four times slower.
                pair = (shifted, stacked) if channels == 1 else (stacked, shifted)
                products.append(self._sum_of_products(*pair, layer.groups))
        # kw times [out * kh, channels] -> [out, channels, kh, kw]
        taps = [g("Reshape", product, g.ints(out, kh, channels, 1)) for product in products]
        return g("Transpose", g("Concat", *taps, axis=3) if kw > 1 else taps[0], perm=[0, 2, 1, 3])

    def dw_taps(self, dy: Name, x: Name, layer: Conv2d, kernel: Shape, after: Shape) -> Name:
        """Return any convolution's weight gradient by one product per kernel element.

        Each multiplies dy by every stride-th position of x, beginning at that kernel element.
        """
        g, (out, channels, kh, kw), (_, rows, columns) = self.g, kernel, after
        (sv, sh), (dv, dh), groups, apart = layer.stride, layer.dilation, layer.groups, self._apart(layer)
        flat = g("Reshape", dy, g.ints(*apart, out // groups, rows * columns))
        padded = self._pad(x, *layer.padding)
        taps = []
        for i in range(kh):
            line = g.slice(padded, 2, i * dv, i * dv + (rows - 1) * sv + 1, sv)
            for j in range(kw):
                tap = g.slice(line, 3, j * dh, j * dh + (columns - 1) * sh + 1, sh)
                tap = g("Reshape", tap, g.ints(*apart, channels, rows * columns))
                taps.append(g("Reshape", self._sum_of_products(flat, tap, groups), g.ints(out, channels, 1)))
        together = g("Concat", *taps, axis=2) if len(taps) > 1 else taps[0]
        return g("Reshape", together, g.ints(out, channels, kh, kw))

    def _apart(self, layer: Conv2d) -> tuple[int, ...]:
        """Return the dimensions that a product of channels by channels leaves alone; to Reshape, 0 means the batch."""
        return (0,) if layer.groups == 1 else (0, layer.groups)

    def _sum_of_products(self, a: Name, b: Name, groups: int = 1) -> Name:
        """Return the sum over n of a[n] b[n]^T, [A, B], for a [batch, A, K] and b [batch, B, K].

        With groups, all three have the group as a dimension after the batch (or first).
        """
        perm = [0, 2, 1] if groups == 1 else [0, 1, 3, 2]
        products = self.g("MatMul", a, self.g("Transpose", b, perm=perm))
        return self.g("ReduceSum", products, self.g.ints(0), keepdims=0)

    def _pad(self, x: Name, vertical: int, horizontal: int) -> Name:
        if vertical == horizontal == 0:
            return x
        return self.g("Pad", x, self.g.ints(0, 0, vertical, horizontal, 0, 0, vertical, horizontal))

    def bias_grad(self, dy: Name, shape: Shape) -> Name:
        """Emit ReduceSum."""
        axes = [0, *range(2, len(shape) + 1)]
        return self.g("ReduceSum", dy, self.g.ints(*axes), keepdims=0)

    def relu(self, x: Name) -> Name:
        """Emit Relu."""
        return self.g("Relu", x)

    def relu_dx(self, dy: Name, y: Name) -> Name:
        """Multiply by 0 or 1; Where took 1.4 times as long."""
        return self.g("Mul", dy, self.g.cast(self.g("Greater", y, self.number(0.0)), np.float32))

    def pool(self, x: Name, layer: MaxPool2d, before: Shape) -> tuple[Name, Name]:
        """Compare along rows, then along columns, so that the first of equal elements in a window wins.

        MaxPool with its indices takes four times as long on onnxruntime's CPU, and few other runtimes have MaxUnpool.
        """
        g, (channels, *sides) = self.g, before
        whole = [side // size * size for side, size in zip(sides, layer.size, strict=True)]
        for axis, side, kept in zip((2, 3), sides, whole, strict=True):
            x = g.slice(x, axis, 0, kept) if side != kept else x
        (high, wide), (kh, kw) = whole, layer.size
        firsts: list[Name] = []
        x = self._first_of(self.reshape(x, (channels, high, wide // kw, kw)), 4, kw, firsts)
        x = self._first_of(self.reshape(x, (channels, high // kh, kh, wide // kw)), 3, kh, firsts)
        y = self.reshape(x, (channels, high // kh, wide // kw))
        self._firsts[y] = firsts
        return y, y

    def _first_of(self, x: Name, axis: int, size: int, firsts: list[Name]) -> Name:
        """Return the maximum along `axis`, which has `size` elements.

        Append to `firsts`, for every element but the first, where the maximum of those before it is at least as large.
        """
        if size == 1:
            return x
        best, *others = self.g.several("Split", size, x, axis=axis, num_outputs=size)
        for other in others:
            firsts.append(self.g("GreaterOrEqual", best, other))
            best = self.larger(best, other, firsts[-1])
        return best

    def larger(self, a: Name, b: Name, first: Name) -> Name:
        """Return the larger of a and b; `first` is true where that is a."""
        return self.g("Max", a, b)

    def pool_dx(self, dy: Name, winners: Name, layer: MaxPool2d, before: Shape) -> Name:
        """Undo the comparisons of `pool` in reverse order, then add zeros where it dropped incomplete windows."""
        g, (channels, *sides), firsts = self.g, before, [*self._firsts[winners]]
        high, wide = (side // size for side, size in zip(sides, layer.size, strict=True))
        (kh, kw) = layer.size
        dx = self._to_first(self.reshape(dy, (channels, high, 1, wide)), 3, kh, firsts)
        dx = self._to_first(self.reshape(dx, (channels, high * kh, wide, 1)), 4, kw, firsts)
        dx = self.reshape(dx, (channels, high * kh, wide * kw))
        rest = [side % size for side, size in zip(sides, layer.size, strict=True)]
        return g("Pad", dx, g.ints(0, 0, 0, 0, 0, 0, *rest)) if any(rest) else dx

    def _to_first(self, dy: Name, axis: int, size: int, firsts: list[Name]) -> Name:
        """Return the gradient of `_first_of`; remove from `firsts` what that appended."""
        parts = [dy]
        for _ in range(size - 1):
            before = self.mul(parts[0], self.g.cast(firsts.pop(), np.float32))
            parts[:1] = [before, self.sub(parts[0], before)]
        return self.g("Concat", *parts, axis=axis) if size > 1 else dy

    def normalise(self, x: Name, layer: GroupNorm, shape: Shape) -> tuple[Name, Name]:
        """Compute mean and variance in two passes; InstanceNormalization would not return the deviation."""
        g = self.g
        apart = self._by_group(x, layer, shape)
        centred = g("Sub", apart, self._mean(apart))
        variance = self._mean_of_product(centred, centred, layer, shape)
        deviation = g("Sqrt", g("Add", variance, self.number(EPSILON)))
        return self.reshape(g("Mul", centred, g("Reciprocal", deviation)), shape), deviation

    def normalise_dx(self, dy: Name, y: Name, deviation: Name, layer: GroupNorm, shape: Shape) -> Name:
        """Return the gradient of `normalise` with respect to x, by the formula in `Ops`."""
        g = self.g
        dy, y = self._by_group(dy, layer, shape), self._by_group(y, layer, shape)
        along = g("Mul", y, self._mean_of_product(y, dy, layer, shape))
        centred = g("Sub", g("Sub", dy, self._mean(dy)), along)
        return self.reshape(g("Mul", centred, g("Reciprocal", deviation)), shape)

    def _mean_of_product(self, a: Name, b: Name, layer: GroupNorm, shape: Shape) -> Name:
        """Return each group's mean of a * b, without storing the product."""
        g, size = self.g, math.prod(shape) // layer.groups
        one, other = (g("Reshape", v, g.ints(self.batch, layer.groups, 1, size)) for v in (a, b))
        # onnxruntime fuses the Transpose into MatMul; a column made by Reshape would be twenty times slower.
        total = g("MatMul", one, g("Transpose", other, perm=[0, 1, 3, 2]))
        return g("Mul", g("Reshape", total, g.ints(self.batch, layer.groups, 1)), self.number(1 / size))

    def _by_group(self, x: Name, layer: GroupNorm, shape: Shape) -> Name:
        return self.reshape(x, (layer.groups, math.prod(shape) // layer.groups))

    def _mean(self, x: Name) -> Name:
        return self.g("ReduceMean", x, self.g.ints(2), keepdims=1)

    def cross_entropy(self, logits: Name, y: Name, weight: Name) -> tuple[Name, Name, Name]:
        """Return loss, correct predictions and gradient, as in `Ops`.

        LogSoftmax subtracts the largest logit first, so that no exponential overflows.
        """
        g, whole = self.g, self.LABELS
        logp = self.log_softmax(logits)
        count = g.cast(g("Gather", g("Shape", logits), g.const(1, np.int64)), whole)
        classes = g("Range", g.const(0, whole), count, g.const(1, whole))
        column = g("Unsqueeze", weight, g.ints(1))
        truth = g.cast(g("Equal", g("Unsqueeze", y, g.ints(1)), classes), np.float32)
        loss = g("Neg", g("ReduceSum", g("Mul", g("Mul", truth, logp), column), keepdims=0))
        right = g("Equal", g.cast(g("ArgMax", logits, axis=1, keepdims=0), whole), y)
        counted = g("Mul", g.cast(right, np.float32), g.cast(g("Greater", weight, self.number(0.0)), np.float32))
        correct = g.cast(g("ReduceSum", counted, keepdims=0), whole)
        return loss, correct, g("Mul", g("Sub", g("Exp", logp), truth), column)

    def log_softmax(self, logits: Name) -> Name:
        """Emit LogSoftmax."""
        return self.g("LogSoftmax", logits, axis=1)

    def squared_error(self, outputs: Name, y: Name, weight: Name) -> tuple[Name, Name, Name]:
        """Return loss, correct predictions (0) and gradient, as in `Ops`."""
        g = self.g
        wrong, column = g("Sub", outputs, y), g("Unsqueeze", weight, g.ints(1))
        each = g("ReduceMean", g("Mul", wrong, wrong), g.ints(1), keepdims=1)
        loss = g("ReduceSum", g("Mul", each, column), keepdims=0)
        # The share of one output, 1 / outputs, is the mean's gradient by it.
        share = g("Reciprocal", g.cast(g("Gather", g("Shape", outputs), g.const(1, np.int64)), np.float32))
        slope = g("Mul", self.number(2.0), g("Mul", share, column))
        return loss, g.const(0, self.LABELS), g("Mul", wrong, slope)


class InferenceOps(OnnxOps):
    """`OnnxOps` without gradients, where MaxPool need not say which element won."""

    def pool(self, x: Name, layer: MaxPool2d, before: Shape) -> tuple[Name, Name]:
        """Emit MaxPool, which drops incomplete windows."""
        y = self.g("MaxPool", x, kernel_shape=layer.size, strides=layer.size)
        return y, y


def _attributes(layer: Conv2d) -> dict[str, Any]:
    """Return the attributes of a Conv or ConvTranspose, without those that have their default value."""
    more: dict[str, Any] = {"group": layer.groups} if layer.groups > 1 else {}
    if layer.dilation != (1, 1):
        more["dilations"] = layer.dilation
    return {"strides": layer.stride, "pads": [*layer.padding, *layer.padding], **more}
