"""From a torch module to a ModelSpec: a chain of known layers is taken over, all else is refused by name.

torch.fx records what forward() does; the weights inside the module are thrown away, for a Seedmask model has
random signs instead (FedPM: Isik et al., arXiv 2209.15328). Their size is c = sqrt(2 / fan_in), 'kaiming',
unless the 'paper's c = e * sqrt(1 / fan_in) or 'unit', c = sqrt(1 / fan_in), is asked for, times a gain, one for all
layers or one for each; a bias has its layer's c.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn import functional as F

from seedmask.errors import SpecError, UserError
from seedmask.spec import (
    GROUPNORM_EPSILON,
    Conv2d,
    Flatten,
    GroupNorm,
    Layer,
    Linear,
    MaxPool2d,
    ModelSpec,
    ReLU,
    Shape,
    Tensor,
    scale_bits,
)

SUPPORTED: Final = (
    "a chain of Linear, Conv2d (stride, zero padding), ReLU, MaxPool2d (kernel = stride), Flatten, Identity, "
    "GroupNorm(affine=False), LayerNorm(elementwise_affine=False) of whole examples"
)
SCALES: Final[dict[str, Callable[[int], float]]] = {
    "kaiming": lambda fan_in: math.sqrt(2 / fan_in),
    "paper": lambda fan_in: math.e * math.sqrt(1 / fan_in),
    "unit": lambda fan_in: math.sqrt(1 / fan_in),
}

_NORMALISATION: Final = "it has trained scales and running means; take GroupNorm(affine=False), or leave it out"
_FUNCTIONAL_NORM: Final = "write it as a layer, nn.GroupNorm(affine=False)"
_DROPOUT: Final = "every step already draws a random mask; leave it out"
_SOFTMAX: Final = "end with the logits, the loss applies softmax itself"
_SCALING: Final = "raw inputs are brought to -1 .. 1 before the model, see the value range"
# Why something that many models have is not here, and what to do instead.
_ADVICE: Final[dict[str, str]] = {
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d"), _NORMALISATION),
    **dict.fromkeys(("group_norm", "layer_norm"), _FUNCTIONAL_NORM),
    **dict.fromkeys(("Dropout", "Dropout2d", "dropout"), _DROPOUT),
    **dict.fromkeys(("Softmax", "LogSoftmax", "softmax", "log_softmax"), _SOFTMAX),
    **dict.fromkeys(("sub", "mul", "truediv", "div"), _SCALING),
}
_RESHAPES: Final = ("flatten", "view", "reshape")
_PROBE: Final = 3  # examples in the batch that shapes are found with


def trace(
    model: nn.Module,
    name: str,
    seed: int,
    input_shape: Shape,
    value_range: tuple[int, int] = (0, 255),
    classes: int = 10,
    scale: str = "kaiming",
    gain: float | Sequence[float] = 1.0,
) -> ModelSpec:
    """The ModelSpec of `model` for inputs [n, *input_shape] with raw values in `value_range`.

    `gain` > 0 multiplies the size of the weights: one number, or one for each layer that has any. Tensor names are
    torch's parameter names, in the order of use. Raises UserError: which layer is not supported, where it is, and what
    is.
    """
    if scale not in SCALES:
        raise UserError(f"scale is one of {', '.join(SCALES)}; found {scale!r}")
    try:
        graph = fx.symbolic_trace(model)
    # Whatever a model's own code raises under tracing (control flow, len(), numpy) has the same remedy.
    except Exception as error:
        raise UserError(f"cannot follow {type(model).__name__}.forward(): {error}\nsupported: {SUPPORTED}") from None
    graph.graph.eliminate_dead_code()
    chain = _chain(graph)
    layers, tensors = _layers(graph, chain, SCALES[scale], gain)
    _check_shapes(graph, chain, input_shape, classes)
    try:
        return ModelSpec(name, seed, input_shape, value_range, classes, tuple(layers), tuple(tensors))
    except SpecError as error:
        raise UserError(f"{type(model).__name__} makes no model: {error}") from None


def _chain(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes that compute, first to last, each fed by the one before it alone; else UserError."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise UserError(f"forward() takes one tensor, found {len(inputs)}: {', '.join(n.name for n in inputs)}")
    chain, last = [], inputs[0]
    for node in graph.graph.nodes:
        if node.op == "placeholder" or _is_size(node):
            continue
        if node.op == "get_attr":
            if not any(user.op == "call_function" and user.target in (F.linear, F.conv2d) for user in node.users):
                raise _refusal(f"the tensor self.{node.target}", "only layers may hold numbers")
            continue
        feeds = [n for n in node.all_input_nodes if n.op != "get_attr" and not _is_size(n)]
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise UserError("not a chain: forward() returns several values; return the logits alone")
        elif len(feeds) > 1:
            joined = " and ".join(_place(graph, feed) for feed in feeds)
            raise UserError(
                f"{_place(graph, node)} puts {joined} together; a shortcut around layers (a residual net) or a second "
                f"branch is not supported\nsupported: {SUPPORTED}"
            )
        if feeds != [last]:
            raise UserError(
                f"not a chain: {_place(graph, node)} does not continue from {_place(graph, last)}\n"
                f"supported: {SUPPORTED}"
            )
        if node.op != "output":
            chain.append(node)
            last = node
    return chain


def _layers(
    graph: fx.GraphModule, chain: list[fx.Node], constant: Callable[[int], float], gain: float | Sequence[float]
) -> tuple[list[Layer], list[Tensor]]:
    weighted = [node for node in chain if node.op == "call_module" and _what(graph, node) in ("Linear", "Conv2d")]
    gains = [gain] * len(weighted) if isinstance(gain, int | float) else list(gain)
    if len(gains) != len(weighted) or not all(0 < value < math.inf for value in gains):
        raise UserError(f"gain is a number above 0, or {len(weighted)} of them, one for each layer; found {gain}")
    gain_of = dict(zip(weighted, gains, strict=True))
    layers: list[Layer] = []
    tensors: list[Tensor] = []
    used: dict[int, str] = {}
    for node in chain:
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        layer = _of_module(str(node.target), module) if module is not None else _of_call(graph, node)
        if layer is None:
            continue
        layers.append(layer)
        if not isinstance(layer, Linear | Conv2d) or module is None:
            continue
        weight = module.get_parameter("weight")
        scale = scale_bits(constant(math.prod(weight.shape[1:])) * gain_of[node])
        for name in (layer.weight, layer.bias):
            if name is None:
                continue
            parameter = graph.get_parameter(name)
            if id(parameter) in used:
                first = used[id(parameter)]
                again = "is used twice" if first == name else f"shares its numbers with {first}"
                raise _refusal(_place(graph, node), f"{name} {again}; every layer has its own")
            used[id(parameter)] = name
            tensors.append(Tensor(name, tuple(parameter.shape), scale))
    return layers, tensors


def _of_module(path: str, module: nn.Module) -> Layer | None:
    """A layer object as ours; None where it does nothing."""
    kind, place = type(module), f"{type(module).__name__} '{path}'"
    if isinstance(module, nn.Identity):
        return None
    if kind is nn.ReLU:
        return ReLU()
    if kind is nn.Linear:
        return Linear(f"{path}.weight", f"{path}.bias" if module.bias is not None else None)
    if isinstance(module, nn.Flatten):
        if (module.start_dim, module.end_dim) != (1, -1):
            raise _refusal(place, f"start_dim={module.start_dim}, end_dim={module.end_dim}; only 1 and -1 is")
        return Flatten()
    if isinstance(module, nn.MaxPool2d):
        return _pool(
            place,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.ceil_mode,
            module.return_indices,
        )
    if kind is nn.Conv2d:
        assert isinstance(module, nn.Conv2d)
        return _conv(path, place, module)
    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
        return _norm(place, module)
    raise _refusal(place, _ADVICE.get(kind.__name__, ""))


def _norm(place: str, norm: nn.GroupNorm | nn.LayerNorm) -> GroupNorm:
    """LayerNorm is GroupNorm of one group; `_misfit` sees whether it takes in the whole example."""
    affine, name = (
        (norm.affine, "affine") if isinstance(norm, nn.GroupNorm) else (norm.elementwise_affine, "elementwise_affine")
    )
    if affine:
        raise _refusal(place, f"it has trained scales and shifts; {name}=False has none")
    if norm.eps != GROUPNORM_EPSILON:
        raise _refusal(place, f"eps={norm.eps}; only {GROUPNORM_EPSILON} is")
    return GroupNorm(norm.num_groups if isinstance(norm, nn.GroupNorm) else 1)


def _conv(path: str, place: str, conv: nn.Conv2d) -> Conv2d:
    if conv.groups != 1:
        raise _refusal(place, f"groups={conv.groups}; only groups=1 is")
    if _pair(conv.dilation) != (1, 1):
        raise _refusal(place, f"dilation={_pair(conv.dilation)}; only dilation=1 is")
    if conv.padding_mode != "zeros":
        raise _refusal(place, f"padding_mode={conv.padding_mode!r}; only 'zeros' is")
    kernel = _pair(conv.kernel_size)
    if conv.padding == "valid":
        padding = (0, 0)
    elif conv.padding == "same":
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise _refusal(place, f"padding='same' with a kernel of {kernel}; only odd kernels are")
        padding = (kernel[0] // 2, kernel[1] // 2)
    else:
        padding = _pair(conv.padding)
    bias = f"{path}.bias" if conv.bias is not None else None
    return Conv2d(f"{path}.weight", bias, _pair(conv.stride), padding)


def _pool(
    place: str,
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
    indices: Any = False,
) -> MaxPool2d:
    """The arguments of torch's max_pool2d, in its order."""
    stride = size if stride is None or stride == [] else stride
    if _pair(size) != _pair(stride):
        raise _refusal(place, f"kernel {_pair(size)} with stride {_pair(stride)}; only equal ones are")
    if _pair(padding) != (0, 0) or _pair(dilation) != (1, 1) or ceil_mode or indices:
        raise _refusal(place, "padding, dilation, ceil_mode and return_indices must be left alone")
    return MaxPool2d(_pair(size))


def _of_call(graph: fx.GraphModule, node: fx.Node) -> Layer | None:
    """A function or method call as a layer."""
    what, place, arguments = _what(graph, node), _place(graph, node), node.args[1:]
    if what in ("relu", "relu_"):
        return ReLU()
    if what == "max_pool2d":
        names = ("size", "stride", "padding", "dilation", "ceil_mode", "indices")
        theirs = {"kernel_size": "size", "return_indices": "indices"}
        given = {theirs.get(name, name): value for name, value in node.kwargs.items() if name != "input"}
        return _pool(place, **{**dict(zip(names, arguments, strict=False)), **given})
    if what in _RESHAPES:
        return Flatten()  # _check_shapes sees whether it is one
    if what in ("linear", "conv2d"):
        raise _refusal(place, f"weights belong to a layer, nn.{'Linear' if what == 'linear' else 'Conv2d'}")
    raise _refusal(place, _ADVICE.get(what, ""))


class _Shapes(fx.Interpreter):
    """Runs the graph and remembers the shape of every tensor on the way."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.of: dict[fx.Node, Shape] = {}

    def run_node(self, node: fx.Node) -> Any:
        """Compute one node."""
        result = super().run_node(node)
        if isinstance(result, torch.Tensor):
            self.of[node] = tuple(result.shape)
        return result


def _check_shapes(graph: fx.GraphModule, chain: list[fx.Node], input_shape: Shape, classes: int) -> None:
    """Run zeros through the model: UserError where a shape does not fit or a reshape is no Flatten."""
    shapes, failure = _Shapes(graph), ""
    kind = next((p.dtype for p in graph.parameters()), torch.float32)
    try:
        with torch.no_grad():
            shapes.run(torch.zeros((_PROBE, *input_shape), dtype=kind))
    # torch reports a shape that does not fit as one of several kinds of error.
    except Exception as error:
        failure = str(error).strip().splitlines()[0]
    before: Shape = (_PROBE, *input_shape)
    for node in chain:
        misfit = _misfit(graph, node, before)
        if misfit or node not in shapes.of:
            place = f"{_place(graph, node)} {misfit}" if misfit else f"{_place(graph, node)}: {failure}"
            raise UserError(f"an input of {list(input_shape)} does not fit: {place}")
        after = shapes.of[node]
        if _what(graph, node) in _RESHAPES and after != (_PROBE, math.prod(before[1:])):
            turn = f"{_example(before)} becomes {_example(after)}"
            raise _refusal(_place(graph, node), f"{turn}; only flattening each example is")
        before = after
    if before != (_PROBE, classes):
        raise UserError(f"an example gives {_example(before)}, not one number for each of {classes} classes")


def _misfit(graph: fx.GraphModule, node: fx.Node, before: Shape) -> str:
    """What a layer expects, where a batch of shape `before` is something else; else nothing."""
    layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    # torch would take an example without channels for a batch without its first dimension.
    flat = isinstance(layer, nn.Conv2d | nn.MaxPool2d) or _what(graph, node) == "max_pool2d"
    if flat and len(before) != 4:
        return f"takes channels,height,width, like 1,28,28, and gets {_example(before)}"
    if isinstance(layer, nn.Conv2d) and before[1] != layer.in_channels:
        return f"takes {layer.in_channels} channel(s) and gets {_example(before)}, which has {before[1]}"
    if isinstance(layer, nn.LayerNorm) and tuple(layer.normalized_shape) != before[1:]:
        return f"takes {list(layer.normalized_shape)} and gets {_example(before)}; only whole examples are normalised"
    if isinstance(layer, nn.GroupNorm) and (before[1] % layer.num_groups or math.prod(before[1:]) == layer.num_groups):
        return f"gets {_example(before)}, which makes no {layer.num_groups} equal groups of more than one value"
    if isinstance(layer, nn.Linear) and before[-1] != layer.in_features:
        return f"takes {layer.in_features:,} numbers and gets {_example(before)}"
    return ""


def _example(shape: Shape) -> str:
    return str(list(shape[1:])) if shape[:1] == (_PROBE,) else f"{list(shape)} for {_PROBE} examples"


def _is_size(node: fx.Node) -> bool:
    """Whether a node only asks for a shape, as in x.view(x.size(0), -1)."""
    if node.op == "call_method" and node.target == "size":
        return True
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] == "shape"
    return node.target is operator.getitem and isinstance(node.args[0], fx.Node) and _is_size(node.args[0])


def _what(graph: fx.GraphModule, node: fx.Node) -> str:
    """What a node does, as its author would call it: BatchNorm2d, add, view."""
    if node.op == "call_module":
        return type(graph.get_submodule(str(node.target))).__name__
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return "max_pool2d" if node.target is F.max_pool2d else name


def _place(graph: fx.GraphModule, node: fx.Node) -> str:
    """A node by name: a layer and its qualified name, or a call and the module whose forward() makes it."""
    if node.op == "placeholder":
        return "the input"
    if node.op == "output":
        return "the output"
    if node.op == "call_module":
        return f"{_what(graph, node)} '{node.target}'"
    owners = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return f"{_what(graph, node)} in forward() of " + (f"'{owners[-1]}'" if owners else "the model")


def _refusal(subject: str, why: str) -> UserError:
    reason = f": {why}" if why else ""
    return UserError(f"{subject} is not supported{reason}\nsupported: {SUPPORTED}")


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))
