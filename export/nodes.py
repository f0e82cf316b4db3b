"""From one node of a torch.fx graph to layers of a ModelSpec, to nothing at all, or to an error that names the node.

Every shape here is the shape of one example. The graph has been run on a batch of PROBE examples, so that sizes which
the module computes are known, and a reshape that mixes examples is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn import functional as F

from export.parameter_kinds import NORM, Kinds
from seedmask.errors import SpecError, UserError
from seedmask.layers import (
    EPSILON,
    GELU,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    GroupNorm,
    Layer,
    LayerNorm,
    Linear,
    MaxPool2d,
    Mean,
    Permute,
    ReLU,
    ReLU6,
    Reshape,
    RMSNorm,
    Shape,
    Sigmoid,
    SiLU,
    Tanh,
    Unary,
)

PROBE: Final = 3  # examples in the batch of the trial run

SUPPORTED: Final = (
    "Linear, Conv1d and Conv2d (stride, zero padding, groups, dilation), ReLU, ReLU6, GELU, SiLU, Tanh, Sigmoid, "
    "MaxPool and AvgPool (kernel = stride), AdaptiveAvgPool, mean, Flatten, view, reshape, permute, transpose, + and "
    "cat of branches, GroupNorm, LayerNorm and RMSNorm (what they train is exact or left out), Dropout (left out), "
    "Identity"
)

_BATCH_NORM: Final = (
    "it has trained scales and running means; take GroupNorm(affine=False), leave it out, or export with "
    "`replace_batchnorm` group"
)
_COMPUTED: Final = "take weight_norm, spectral_norm or pruning off the layer first"
_SOFTMAX: Final = "end with the logits, the loss applies softmax itself"
_SCALING: Final = "raw inputs are brought to -1 .. 1 before the model, see the value range; layers do no arithmetic"
_WEIGHTS: Final = "weights belong to a layer, nn."
_PRODUCTS: Final = "values are not multiplied by one another, as attention and gates do; an MLP-Mixer does without"
_PARTS: Final = "parts of a tensor cannot be taken; nor can it be padded"
# Why things that many models have are not supported, and what to do instead.
_ADVICE: Final[dict[str, str]] = {
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "SyncBatchNorm"), _BATCH_NORM),
    **dict.fromkeys(("Softmax", "LogSoftmax", "softmax", "log_softmax"), _SOFTMAX),
    **dict.fromkeys(("sub", "mul", "truediv", "div"), _SCALING),
    **{name: _WEIGHTS + kind for name, kind in (("linear", "Linear"), ("conv1d", "Conv1d"), ("conv2d", "Conv2d"))},
    **dict.fromkeys(("getitem", "chunk", "split", "pad"), _PARTS),
    **dict.fromkeys(("LeakyReLU", "ELU", "Hardswish", "Hardsigmoid", "Softplus"), "take ReLU, SiLU or GELU"),
    "MultiheadAttention": _PRODUCTS,
}
_ELEMENTWISE: Final[dict[str, type[ReLU | ReLU6 | SiLU | Tanh | Sigmoid]]] = {
    **dict.fromkeys(("ReLU", "relu", "relu_"), ReLU),
    **dict.fromkeys(("ReLU6", "relu6"), ReLU6),
    **dict.fromkeys(("SiLU", "silu"), SiLU),
    **dict.fromkeys(("Tanh", "tanh", "tanh_"), Tanh),
    **dict.fromkeys(("Sigmoid", "sigmoid", "sigmoid_"), Sigmoid),
}
_NOTHING: Final = ("Identity", "contiguous", "clone")
_DROPOUTS: Final = ("Dropout", "Dropout1d", "Dropout2d", "dropout", "dropout1d", "dropout2d")
_RESHAPES: Final = ("Flatten", "Unflatten", "flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze")
_TRANSPOSES: Final = ("transpose", "swapaxes", "swapdims")
_ADDITIONS: Final = ("add", "add_", "iadd")
_CONCATENATIONS: Final = ("cat", "concat", "concatenate")


@dataclass(frozen=True)
class Value:
    """Value `number` of the spec in the `shape` in which the module sees it: the same elements in row-major order."""

    number: int
    shape: Shape


class Builder:
    """A spec's layers while they are collected.

    `nodes` has the node that each layer comes from; `shapes` has the shape of every value, the input's first; `kinds`
    says which parameters of normalisations are kept.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        input_shape: Shape,
        replace_batchnorm: bool,
        announce: Callable[[str], None],
        kinds: Kinds,
    ) -> None:
        self.graph = graph
        self.layers: list[Layer] = []
        self.nodes: list[fx.Node] = []
        self.shapes: list[Shape] = [input_shape]
        self._replace, self._announce, self.kinds = replace_batchnorm, announce, kinds
        self._values = {node: Value(0, input_shape) for node in graph.graph.nodes if node.op == "placeholder"}
        self._results: dict[fx.Node, Any] = {}
        self._tensors: dict[str, Shape] = {}
        self._forms: dict[tuple[int, Shape], int] = {}  # values that a layer has reshaped already

    def has(self, node: fx.Node) -> bool:
        """True if a node's result is a tensor of the network, not a size or another plain number."""
        return node in self._values

    def shape_of(self, node: fx.Node) -> Shape:
        """Return the shape of a node's result, for one example."""
        return self._values[node].shape

    def end(self, node: fx.Node) -> None:
        """Make the result of `node` the logits. Raises UserError if layers follow that nothing uses."""
        value = self._flat(node)
        if value != len(self.layers):
            raise UserError(f"{place(self.graph, self.nodes[-1])} comes after the logits and is not used")

    def take(self, node: fx.Node, results: dict[fx.Node, Any], failure: str) -> None:
        """Convert `node` to layers.

        `results` has what each node gave in a trial run; `failure` says why that ended early, if it did. Raises
        UserError if the node is not supported or its input does not fit.
        """
        self._results = results
        if node in results and _is_plain(results[node]):
            return  # a size
        what, where = what_of(self.graph, node), place(self.graph, node)
        lower = self._lowering(node, what)
        feeds = [feed for feed in node.all_input_nodes if feed in self._values]
        if lower is None:
            product = len(feeds) > 1 and what in ("mul", "matmul", "bmm", "einsum", "scaled_dot_product_attention")
            raise refusal(where, _PRODUCTS if product else _ADVICE.get(what, ""))
        misfit = self._misfit(node, what, self._values[feeds[0]].shape)
        if misfit or node not in results:
            whole = list(self.shapes[0])
            raise UserError(f"an input of {whole} does not fit: {where}{' ' + misfit if misfit else ': ' + failure}")
        shape = tuple(results[node].shape)
        if shape[:1] != (PROBE,):
            turn = f"{example((PROBE, *self._values[feeds[0]].shape))} becomes {example(shape)}"
            raise refusal(where, f"{turn}; examples stay apart")
        try:
            self._values[node] = lower(node, shape[1:])
        except SpecError as error:
            raise refusal(where, str(error)) from None

    # ------------------------------------------------------------------------------------------ values and layers

    def _add(self, node: fx.Node, layer: Layer, source: int | None = None) -> int:
        """Append a layer that reads value `source`, unless it names its own inputs; return the number of its output."""
        number = len(self.layers)
        if isinstance(layer, Unary) and source is not None and source != number:
            layer = replace(layer, source=source)
        shape = layer.after([self.shapes[value] for value in layer.takes(number)], self._tensors)
        self.layers.append(layer)
        self.nodes.append(node)
        self.shapes.append(shape)
        return number + 1

    def _flat(self, node: fx.Node) -> int:
        """Return the number of the result of `node`, in the shape in which the module sees it."""
        return self._shaped(node, self._values[node], self._values[node].shape)

    def _shaped(self, node: fx.Node, value: Value, shape: Shape) -> int:
        if self.shapes[value.number] == shape:
            return value.number
        if (value.number, shape) not in self._forms:
            layer = Flatten() if len(shape) == 1 else Reshape(shape)
            self._forms[value.number, shape] = self._add(node, layer, value.number)
        return self._forms[value.number, shape]

    def _in(self, node: fx.Node) -> fx.Node:
        return next(feed for feed in node.all_input_nodes if feed in self._values)

    def _image(self, node: fx.Node) -> int:
        """Return the number of the input of `node` as an image; a sequence [c, l] becomes an image of height one."""
        value = self._values[self._in(node)]
        shape = value.shape if len(value.shape) == 3 else (value.shape[0], 1, *value.shape[1:])
        return self._shaped(node, value, shape)

    def _module(self, node: fx.Node) -> Any:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _given(self, node: fx.Node, *names: str) -> dict[str, Any]:
        """Return a call's arguments after its input by name, sizes as numbers; a module's attributes of these names."""
        if node.op == "call_module":
            module = self._module(node)
            return {name: getattr(module, name) for name in names if hasattr(module, name)}
        given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        return {name: self._known(value) for name, value in given.items() if name != "input"}

    def _known(self, value: Any) -> Any:
        def number(node: fx.Node) -> Any:
            return self._results[node] if node not in self._values else node

        return fx.node.map_arg(value, number)

    # -------------------------------------------------------------------------------------------------- what it is

    def _lowering(self, node: fx.Node, what: str) -> Callable[[fx.Node, Shape], Value] | None:
        """Return the method that converts a node to layers, None if the node is not supported."""
        if node.op == "call_module" and not type(self._module(node)).__module__.startswith("torch.nn.modules"):
            return None
        if node.op == "call_function" and not _of_torch(node.target):
            return None
        if what in ("Linear", "Conv1d", "Conv2d"):
            return (self._linear if what == "Linear" else self._conv) if node.op == "call_module" else None
        table: list[tuple[Iterable[str], Callable[[fx.Node, Shape], Value]]] = [
            (_ELEMENTWISE, self._elementwise),
            (("GELU", "gelu"), self._gelu),
            (("MaxPool1d", "MaxPool2d", "max_pool1d", "max_pool2d"), self._max_pool),
            (("AvgPool1d", "AvgPool2d", "avg_pool1d", "avg_pool2d"), self._avg_pool),
            (
                ("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
                self._adaptive,
            ),
            (("mean",), self._mean),
            (_RESHAPES, self._reshape),
            (("permute", *_TRANSPOSES), self._permute),
            (_ADDITIONS, self._sum),
            (_CONCATENATIONS, self._concat),
            (("GroupNorm", "group_norm"), self._group_norm),
            (("LayerNorm", "layer_norm"), self._trailing_norm),
            (("RMSNorm", "rms_norm"), self._trailing_norm),
            (_NOTHING, self._nothing),
            (_DROPOUTS, self._dropout),
        ]
        if self._replace:
            table.append((("BatchNorm1d", "BatchNorm2d", "SyncBatchNorm"), self._batch_norm))
        return next((lower for names, lower in table if what in names), None)

    def _misfit(self, node: fx.Node, what: str, shape: Shape) -> str:
        """Return what a layer expects if an example of `shape` does not fit, else ""."""
        module = self._module(node)
        # torch would read an example without channels as a batch of another shape.
        flat = what.lower().replace("_", "")
        if flat in ("conv2d", "maxpool2d", "avgpool2d", "adaptiveavgpool2d") and len(shape) != 3:
            return f"takes channels,height,width, like 1,28,28, and gets {list(shape)}"
        if flat in ("conv1d", "maxpool1d", "avgpool1d", "adaptiveavgpool1d") and len(shape) != 2:
            return f"takes channels,length, like 9,128, and gets {list(shape)}"
        if isinstance(module, nn.Conv1d | nn.Conv2d) and shape[0] != module.in_channels:
            return f"takes {module.in_channels} channel(s) and gets {list(shape)}, which has {shape[0]}"
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            over = tuple(module.normalized_shape)
            if over != shape[-len(over) :]:
                return f"takes {list(over)} and gets {list(shape)}"
        if isinstance(module, nn.GroupNorm):
            groups = module.num_groups
            if shape[0] % groups or math.prod(shape) == groups:
                return f"gets {list(shape)}, which makes no {groups} equal groups of more than one value"
        if isinstance(module, nn.Linear) and shape[-1] != module.in_features:
            return f"takes {module.in_features:,} numbers and gets {list(shape)}"
        return ""

    # --------------------------------------------------------------------------------------------- what it becomes

    def _nothing(self, node: fx.Node, shape: Shape) -> Value:
        return self._values[self._in(node)]

    def _dropout(self, node: fx.Node, shape: Shape) -> Value:
        self._announce(f"{place(self.graph, node)} is left out: every step already draws a random mask")
        return self._values[self._in(node)]

    def _same(self, node: fx.Node, layer: Layer) -> Value:
        """Append a layer that works in any shape."""
        value = self._values[self._in(node)]
        return Value(self._add(node, layer, value.number), value.shape)

    def _elementwise(self, node: fx.Node, shape: Shape) -> Value:
        return self._same(node, _ELEMENTWISE[what_of(self.graph, node)]())

    def _gelu(self, node: fx.Node, shape: Shape) -> Value:
        return self._same(node, GELU(str(self._given(node, "approximate").get("approximate", "none"))))

    def _linear(self, node: fx.Node, shape: Shape) -> Value:
        weight, bias = self._weights(node, 2)
        return Value(self._add(node, Linear(weight, bias), self._flat(self._in(node))), shape)

    def _weights(self, node: fx.Node, dimensions: int) -> tuple[str, str | None]:
        """Return the names of a layer's weight and bias, and note their shapes, which the spec's layers ask for."""
        module, names = self._module(node), (f"{node.target}.weight", f"{node.target}.bias")
        for part in ("weight", "bias"):
            if getattr(module, part) is not None and getattr(module, part) is not module._parameters.get(part):
                raise refusal(place(self.graph, node), f"its {part} is computed from other numbers; {_COMPUTED}")
        weight = tuple(module.weight.shape)
        self._tensors[names[0]] = weight if len(weight) == dimensions else (*weight[:2], 1, *weight[2:])
        if module.bias is None:
            return names[0], None
        self._tensors[names[1]] = tuple(module.bias.shape)
        return names

    def _conv(self, node: fx.Node, shape: Shape) -> Value:
        conv, where = self._module(node), place(self.graph, node)
        if conv.padding_mode != "zeros":
            raise refusal(where, f"padding_mode={conv.padding_mode!r}; only 'zeros' is")
        flat = isinstance(conv, nn.Conv1d)
        one, none = (1, 0) if flat else (None, None)
        kernel, dilation = _pair(conv.kernel_size, one), _pair(conv.dilation, one)
        if conv.padding == "same":
            reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            if any(side % 2 for side in reach):
                raise refusal(where, f"padding='same' with a kernel of {conv.kernel_size}; only odd kernels are")
            padding = (reach[0] // 2, reach[1] // 2)
        else:
            padding = (0, 0) if conv.padding == "valid" else _pair(conv.padding, none)
        weight, bias = self._weights(node, 4)
        layer = Conv2d(weight, bias, _pair(conv.stride, one), padding, conv.groups, dilation)
        return Value(self._add(node, layer, self._image(node)), shape)

    def _max_pool(self, node: fx.Node, shape: Shape) -> Value:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        return Value(self._add(node, MaxPool2d(self._window(node, names)), self._image(node)), shape)

    def _avg_pool(self, node: fx.Node, shape: Shape) -> Value:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        return Value(self._add(node, AvgPool2d(self._window(node, names)), self._image(node)), shape)

    def _window(self, node: fx.Node, names: tuple[str, ...]) -> tuple[int, int]:
        """Return the window of a pool. Raises UserError for another stride, padding, dilation or ceil mode."""
        where, given = place(self.graph, node), self._given(node, *names)
        size, stride = given["kernel_size"], given.get("stride")
        stride = size if stride is None or stride == [] else stride
        beside = 1 if "1d" in what_of(self.graph, node) else None
        size, stride = _pair(size, beside), _pair(stride, beside)
        if size != stride:
            raise refusal(where, f"kernel {size} with stride {stride}; only equal ones are")
        plain = _pair(given.get("padding", 0)) == (0, 0) and _pair(given.get("dilation", 1)) == (1, 1)
        if not plain or any(given.get(name) for name in ("ceil_mode", "return_indices", "divisor_override")):
            raise refusal(where, f"{', '.join(names[2:])} must be left alone")
        return size

    def _adaptive(self, node: fx.Node, shape: Shape) -> Value:
        """Append a mean over the image where the output is 1x1, else a pool with windows of equal size."""
        source = self._image(node)
        sides, after = self.shapes[source][1:], (1, *shape[1:])[-2:]
        if after == (1, 1):
            return Value(self._add(node, Mean((1, 2)), source), shape)
        if any(side % to for side, to in zip(sides, after, strict=True)):
            before = list(self._values[self._in(node)].shape)
            raise refusal(place(self.graph, node), f"{before} to {list(shape)} in windows of one size")
        return Value(self._add(node, AvgPool2d((sides[0] // after[0], sides[1] // after[1])), source), shape)

    def _mean(self, node: fx.Node, shape: Shape) -> Value:
        given, feed = self._given(node, "dim", "keepdim"), self._in(node)
        rank = len(self._values[feed].shape) + 1
        dims: Any = given.get("dim", given.get("axis"))
        axes = sorted(_axis(dim, rank) for dim in ((dims,) if isinstance(dims, int) else dims))
        return Value(self._add(node, Mean(tuple(axes)), self._flat(feed)), shape)

    def _reshape(self, node: fx.Node, shape: Shape) -> Value:
        value = self._values[self._in(node)]
        if self.shapes[value.number] == shape and (len(shape) > 1 or value.shape != shape):
            return Value(value.number, shape)
        # A Flatten that the module has is kept, even if its input is flat.
        return Value(self._add(node, Flatten() if len(shape) == 1 else Reshape(shape), value.number), shape)

    def _permute(self, node: fx.Node, shape: Shape) -> Value:
        feed = self._in(node)
        rank = len(self._values[feed].shape) + 1
        if what_of(self.graph, node) in _TRANSPOSES:
            arguments = [*node.args[1:], *(value for name, value in node.kwargs.items() if name != "input")]
            one, other = (int(self._known(dim)) % rank for dim in arguments)
            order = list(range(rank))
            order[one], order[other] = order[other], order[one]
        else:
            dims = self._known(node.args[1:] or node.kwargs.get("dims"))
            order = [int(dim) % rank for dim in (dims[0] if isinstance(dims[0], list | tuple) else dims)]
        if order[0] != 0:
            raise refusal(place(self.graph, node), "examples stay the first dimension")
        return Value(self._add(node, Permute(tuple(axis - 1 for axis in order[1:])), self._flat(feed)), shape)

    def _sum(self, node: fx.Node, shape: Shape) -> Value:
        where, operands = place(self.graph, node), [*node.args[:2], *(node.kwargs.get(n) for n in ("input", "other"))]
        feeds = [operand for operand in operands if isinstance(operand, fx.Node) and operand in self._values]
        if len(feeds) != 2:
            raise refusal(where, _SCALING)
        if node.kwargs.get("alpha", 1) != 1:
            raise refusal(where, f"alpha={node.kwargs['alpha']}; only 1 is")
        one, other = (self._values[feed] for feed in feeds)
        if one.shape != other.shape:
            raise refusal(where, f"{list(one.shape)} and {list(other.shape)} are not of one shape")
        if self.shapes[one.number] == self.shapes[other.number]:
            return Value(self._add(node, Add((one.number, other.number))), shape)
        return Value(self._add(node, Add(tuple(self._flat(feed) for feed in feeds))), shape)

    def _concat(self, node: fx.Node, shape: Shape) -> Value:
        given: dict[str, Any] = {**dict(zip(("tensors", "dim"), node.args, strict=False)), **node.kwargs}
        feeds, dim = given["tensors"], self._known(given.get("dim", given.get("axis", 0)))
        axis = _axis(dim, len(shape) + 1)
        if len(feeds) == 1:
            return self._values[feeds[0]]
        return Value(self._add(node, Concat(tuple(self._flat(feed) for feed in feeds), axis)), shape)

    def _group_norm(self, node: fx.Node, shape: Shape) -> Value:
        given = self._given(node, "num_groups", "weight", "bias", "eps")
        scale, shift = self._kept(node, given, EPSILON)
        return self._grouped(node, GroupNorm(int(given["num_groups"]), scale, shift), shape)

    def _grouped(self, node: fx.Node, layer: GroupNorm, shape: Shape) -> Value:
        source = self._values[self._in(node)].number
        if self.shapes[source][0] != shape[0]:
            source = self._flat(self._in(node))
        return Value(self._add(node, layer, source), shape)

    def _batch_norm(self, node: fx.Node, shape: Shape) -> Value:
        """Append a GroupNorm: groups of at least 8 channels, at most 32 of them; a vector is one group."""
        channels = shape[0]
        most = 1 if len(shape) == 1 else max(1, min(32, channels // 8))
        groups = max(n for n in range(1, most + 1) if channels % n == 0)
        scale, shift = self._exact(node, self._given(node, "weight", "bias"))
        lost = [word for word, name in (("scales", scale), ("shifts", shift)) if name is None]
        without = f"{', '.join(lost)} and running means" if lost else "running means"
        self._announce(
            f"{place(self.graph, node)} is replaced by GroupNorm of {groups} group{'s' if groups > 1 else ''} "
            f"({channels} channels), without {without}"
        )
        return self._grouped(node, GroupNorm(groups, scale, shift), shape)

    def _trailing_norm(self, node: fx.Node, shape: Shape) -> Value:
        layer = LayerNorm if what_of(self.graph, node) in ("LayerNorm", "layer_norm") else RMSNorm
        given = self._given(node, "normalized_shape", "weight", *(("bias",) if layer is LayerNorm else ()), "eps")
        scale, shift = self._kept(node, given, EPSILON if layer is LayerNorm else None)
        over = given["normalized_shape"]
        dims = 1 if isinstance(over, int) else len(over)
        whole = dims == len(shape)
        if layer is LayerNorm and whole and (len(shape) == 1 or not (scale or shift)):
            return self._grouped(node, GroupNorm(1, scale, shift), shape)
        made = LayerNorm(dims, scale, shift) if layer is LayerNorm else RMSNorm(dims, scale)
        return Value(self._add(node, made, self._flat(self._in(node))), shape)

    def _kept(self, node: fx.Node, given: dict[str, Any], default: float | None) -> tuple[str | None, str | None]:
        """Return the names of scale and shift where they are exact, else None; announce what is left out.

        An epsilon that is smaller than ours is replaced. Raises UserError for a larger one, which would change results.
        """
        where, eps = place(self.graph, node), given.get("eps", default)
        if eps is not None and eps > EPSILON:
            raise refusal(where, f"eps={eps}; only {EPSILON} is")
        kept = self._exact(node, given)
        names = zip(("weight", "bias"), ("scales", "shifts"), kept, strict=True)
        lost = [word for name, word, taken in names if given.get(name) is not None and taken is None]
        if lost:
            self._announce(f"{where}: its trained {' and '.join(lost)} are left out; `exact` {NORM} keeps them")
        if eps != EPSILON:
            self._announce(f"{where}: its epsilon is {EPSILON}, not {eps or 'that of its type'}")
        return kept

    def _exact(self, node: fx.Node, given: dict[str, Any]) -> tuple[str | None, str | None]:
        """Return the names of a normalisation's scale and shift, None for each that is not kept as an exact tensor."""
        names: list[str | None] = []
        for attribute in ("weight", "bias"):
            name = f"{node.target}.{attribute}"
            there = node.op == "call_module" and given.get(attribute) is not None
            exact = there and self.kinds.of(name, norm=True) == "exact"
            if exact:
                self._tensors[name] = tuple(given[attribute].shape)
            names.append(name if exact else None)
        return names[0], names[1]


def what_of(graph: fx.GraphModule, node: fx.Node) -> str:
    """Return what a node does in its author's words: BatchNorm2d, add, view."""
    if node.op == "call_module":
        return type(graph.get_submodule(str(node.target))).__name__
    if node.target is F.max_pool2d or node.target is F.max_pool1d:  # dispatchers that go by another name
        return "max_pool2d" if node.target is F.max_pool2d else "max_pool1d"
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def place(graph: fx.GraphModule, node: fx.Node) -> str:
    """Return how messages name a node: a layer by its qualified name, a call with the module that makes it."""
    if node.op == "placeholder":
        return "the input"
    if node.op == "output":
        return "the output"
    if node.op == "call_module":
        return f"{what_of(graph, node)} '{node.target}'"
    owners = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{what_of(graph, node)} in forward() of " + (f"'{owners[-1]}'" if owners else "the model")


def refusal(subject: str, why: str) -> UserError:
    """Return an error that says what is not supported, why, and what is."""
    reason = f": {why}" if why else ""
    return UserError(f"{subject} is not supported{reason}\nsupported: {SUPPORTED}")


def example(shape: Shape) -> str:
    """Return the shape of one example as text, given a batch's shape; the whole shape if the batch is not PROBE."""
    return str(list(shape[1:])) if shape[:1] == (PROBE,) else f"{list(shape)} for {PROBE} examples"


def _of_torch(function: Any) -> bool:
    """True if a function is torch's or an operator; fx.wrap() makes a node of any function, whatever its name."""
    module = getattr(function, "__module__", None)
    return module is None or module.partition(".")[0] in ("torch", "_operator")


def _is_plain(result: Any) -> bool:
    """True if a result is no tensor and contains none."""
    if isinstance(result, tuple | list):
        return all(_is_plain(part) for part in result)
    return not isinstance(result, torch.Tensor | fx.Node)


def _axis(dim: int, rank: int) -> int:
    """Return a dimension of the batch as a dimension of one example. Raises SpecError for that of the examples."""
    axis = dim % rank if -rank <= dim < rank else dim
    if axis == 0:
        raise SpecError(f"dim={dim} is that of the examples, which stay apart")
    return axis - 1


def _pair(value: Any, beside: int | None = None) -> tuple[int, int]:
    """Return (vertical, horizontal) of two numbers or one; a single one stands for both, or is paired with `beside`."""
    sides = [int(side) for side in ([value] if isinstance(value, int) else value)]
    return (sides[0] if len(sides) == 2 or beside is None else beside, sides[-1])
