"""From a torch module to a ModelSpec: supported layers are converted, no-ops are dropped, all else is refused.

torch.fx records what forward() does. The weights inside the module are thrown away, for a Seedmask model has random
signs instead (FedPM: Isik et al., arXiv 2209.15328). Their size c is sqrt(2 / fan_in), "kaiming"; or e * sqrt(1 /
fan_in), "paper"; or sqrt(1 / fan_in), "unit"; times a gain, one for all layers or one for each. A bias has its layer's
c. `export.nodes` converts nodes to layers, `export.parameter_kinds` says which parameters have no mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import fx, nn

from export.nodes import PROBE, SUPPORTED, Builder, example, place, refusal, what_of
from export.parameter_kinds import Kinds
from seedmask.errors import SpecError, UserError
from seedmask.layers import Norm, Shape, Weighted
from seedmask.spec import ModelSpec, Tensor, scale_bits

SCALES: Final[dict[str, Callable[[int], float]]] = {
    "kaiming": lambda fan_in: math.sqrt(2 / fan_in),
    "paper": lambda fan_in: math.e * math.sqrt(1 / fan_in),
    "unit": lambda fan_in: math.sqrt(1 / fan_in),
}
REPLACEMENTS: Final = ("group",)
_NO_OVERWRITING: Final = "leave out inplace=True, write y = relu(x) for x.relu_() and x = x + y for x += y"


class OutputsError(UserError):
    """A network that does not give one number for each class or target."""


def trace(
    model: nn.Module,
    name: str,
    seed: int,
    input_shape: Shape,
    value_range: tuple[int, int] = (0, 255),
    classes: int = 10,
    scale: str = "kaiming",
    gain: float | Sequence[float] = 1.0,
    *,
    loss: str = "cross-entropy",
    replace_batchnorm: str | None = None,
    announce: Callable[[str], None] = lambda text: None,
    exact: Sequence[str] = (),
    frozen: Sequence[str] = (),
) -> ModelSpec:
    """Return the ModelSpec of `model` for inputs [n, *input_shape] with raw values in `value_range`.

    `gain` > 0 multiplies the size of the weights: one number, or one for each layer that has any. `replace_batchnorm`
    "group" puts GroupNorm in place of BatchNorm. `announce` is called with a sentence for everything in which the spec
    differs from the module. `exact` and `frozen` are patterns over torch's parameter names, as in
    `export.parameter_kinds`; all other parameters are masked. Exact tensors begin at 0, scales of normalisations at 1.
    Tensors have torch's parameter names, in the order of use. Raises UserError that says which layer is not supported,
    where it is, and what is supported.
    """
    if scale not in SCALES:
        raise UserError(f"`scale` is one of {', '.join(SCALES)}; found {scale!r}")
    if replace_batchnorm not in (None, *REPLACEMENTS):
        raise UserError(f"`replace_batchnorm` is one of {', '.join(REPLACEMENTS)}; found {replace_batchnorm!r}")
    try:
        graph = fx.symbolic_trace(model)
    # A model's code may raise anything under tracing (control flow, len(), numpy); the remedy is the same.
    except Exception as error:
        raise UserError(f"cannot follow {type(model).__name__}.forward(): {error}\nsupported: {SUPPORTED}") from None
    trial = _trial(graph, input_shape)
    _without_dead_ends(graph, announce)
    kinds = Kinds(exact, frozen)
    builder = Builder(graph, input_shape, replace_batchnorm is not None, announce, kinds)
    _build(graph, builder, classes, trial)
    tensors = _tensors(builder, SCALES[scale], gain)
    kinds.check()
    try:
        return ModelSpec(name, seed, input_shape, value_range, classes, tuple(builder.layers), tuple(tensors), loss)
    except SpecError as error:
        raise UserError(f"{type(model).__name__} makes no model: {error}") from None


def _without_dead_ends(graph: fx.GraphModule, announce: Callable[[str], None]) -> None:
    """Remove what is computed and then not used."""
    called = [node for node in graph.graph.nodes if node.op == "call_module"]
    before = [(node, place(graph, node)) for node in called]
    graph.graph.eliminate_dead_code()
    left = set(graph.graph.nodes)
    for node, where in before:
        if node not in left:
            announce(f"{where} is left out: nothing uses what it gives")


def _trial(graph: fx.GraphModule, shape: Shape) -> _Trial:
    """Run the whole graph on a batch of zeros, unused nodes included: those may overwrite a tensor that others use."""
    trial = _Trial(graph)
    kind = next((p.dtype for p in graph.parameters()), torch.float32)
    try:
        with torch.no_grad():
            trial.run(torch.zeros((PROBE, *shape), dtype=kind))
    # torch reports a shape that does not fit as one of several kinds of error.
    except Exception as error:
        trial.failure = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return trial


def _build(graph: fx.GraphModule, builder: Builder, classes: int, trial: _Trial) -> None:
    """Hand every node to `builder`, in order."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise UserError(f"forward() takes one tensor, found {len(inputs)}: {', '.join(n.name for n in inputs)}")
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            # A functional linear or convolution says more itself, when its turn comes.
            if not all(what_of(graph, user) in ("linear", "conv1d", "conv2d") for user in node.users):
                raise refusal(f"the tensor self.{node.target}", "only layers may hold numbers")
        elif node.op not in ("placeholder", "output"):
            builder.take(node, trial.of, trial.failure)
        if node in trial.overwritten:
            why = f"it overwrites what {place(graph, node)} reads after it; {_NO_OVERWRITING}"
            raise refusal(place(graph, trial.overwritten[node]), why)
        if node.op == "output":
            _end(graph, builder, node, classes)


def _end(graph: fx.GraphModule, builder: Builder, node: fx.Node, classes: int) -> None:
    result = node.args[0]
    if not isinstance(result, fx.Node):
        raise UserError("forward() returns several values; return the logits alone")
    if not builder.has(result):
        raise UserError(f"forward() returns {place(graph, result)}, which is no tensor; return the logits")
    shape = builder.shape_of(result)
    if shape != (classes,):
        raise OutputsError(f"an example gives {example((PROBE, *shape))}, not one number for each of {classes} classes")
    builder.end(result)


class _Trial(fx.Interpreter):
    """An interpreter of the graph that keeps each node's result: a tensor's shape, or the value of anything else.

    `overwritten` has the nodes that read a tensor after it was overwritten, each with the node that did it. torch
    counts the changes of a tensor and of all its views together, so that no alias is missed. `failure` says why the run
    ended early, "" if it did not.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.of: dict[fx.Node, Any] = {}
        self.overwritten: dict[fx.Node, fx.Node] = {}
        self.failure = ""
        self._changes: dict[fx.Node, int] = {}  # of what a node gave, when it gave it
        self._changed_by: dict[fx.Node, fx.Node] = {}

    def run_node(self, node: fx.Node) -> Any:
        """Compute one node, and note which earlier results it has overwritten."""
        for feed in node.all_input_nodes:
            if feed in self._changed_by:
                self.overwritten.setdefault(node, self._changed_by[feed])
        result = super().run_node(node)
        for other, count in self._changes.items():
            if other in self.env and self.env[other]._version != count:
                self._changed_by.setdefault(other, node)
        if isinstance(result, torch.Tensor):
            self._changes[node] = result._version
            self.of[node] = result.to("meta")
        else:
            self.of[node] = result
        return result


def _tensors(builder: Builder, constant: Callable[[int], float], gain: float | Sequence[float]) -> list[Tensor]:
    holding = [(layer, node) for layer, node in zip(builder.layers, builder.nodes, strict=True) if layer.tensors]
    weighted = sum(isinstance(layer, Weighted) for layer, _ in holding)
    gains = [gain] * weighted if isinstance(gain, int | float) else list(gain)
    if len(gains) != weighted or not all(0 < value < math.inf for value in gains):
        raise UserError(f"`gain` is a number above 0, or {weighted} of them, one for each layer; found {gain}")
    tensors: list[Tensor] = []
    used: dict[int, str] = {}
    for layer, node in holding:
        size = 0
        if isinstance(layer, Weighted):
            fan_in = math.prod(builder.graph.get_parameter(layer.weight).shape[1:])
            size = scale_bits(constant(fan_in) * gains.pop(0))
        for name in layer.tensors:
            parameter = builder.graph.get_parameter(name)
            if id(parameter) in used:
                first = used[id(parameter)]
                again = "is used twice" if first == name else f"shares its numbers with {first}"
                raise refusal(place(builder.graph, node), f"{name} {again}; every layer has its own")
            used[id(parameter)] = name
            shape = tuple(parameter.shape)
            if len(shape) == 3 and isinstance(layer, Weighted):  # a Conv1d is a Conv2d of height one
                shape = (*shape[:2], 1, shape[2])
            kind = "exact" if name in layer.exact else builder.kinds.of(name)
            start = int(isinstance(layer, Norm) and name == layer.scale)
            tensors.append(Tensor(name, shape, 0 if kind == "exact" else size, kind, start))
    return tensors
