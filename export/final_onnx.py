"""A finished network as one ONNX file for inference: raw inputs in, logits out, weights inside.

The file stores its weights in one of three ways, all exact: `float32`; `ternary`, -1, 0 and 1 in int8 with one scale
per tensor, a quarter of the size; `seed`, the mask's bits and the seed, a thirty-second of the size: onnxruntime makes
the weights once, while it loads the file (they are constants, and it folds constants). Exact tensors are float32 in all
three. The layers are those of `export.graph.forward`.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np

from export.graph import forward, pool_first, shapes_beside, unpack
from export.onnx_ops import Graph, InferenceOps, Name, OnnxOps
from export.targets.onnx import drawn
from seedmask.model import FinishedModel
from seedmask.seed import weights_key

_OURS: Final = re.compile(r"(c\d+|v\d+_\d+|x|logits)\Z")  # names that Graph makes; a tensor may have any name
HOLDINGS: Final = ("float32", "ternary", "seed")


def final_graph(model: FinishedModel, holding: str = "float32", batch: int = 0) -> bytes:
    """Return an ONNX file: x float32 [n, *input], raw values in the spec's range -> logits float32 [n, classes].

    n is any number, or `batch` if that is not 0. `holding` is one of HOLDINGS; raises ValueError for any other.
    """
    if holding not in HOLDINGS:
        raise ValueError(f"weights are held as {', '.join(HOLDINGS)}, found {holding!r}")
    spec, g = pool_first(model.spec), Graph()
    rows: int | str = batch or "n"
    ops = InferenceOps(g, batch or -1)
    x = g.input("x", np.float32, [rows, *spec.input])
    low, high = spec.range
    # In the order of ModelSpec.normalise, so that the numbers are the same to the bit.
    scaled = ops.mul(ops.sub(x, ops.number(low)), ops.number(2.0 / (high - low)))
    logits, _ = forward(ops, spec, ops.sub(scaled, ops.number(1.0)), _weights(g, ops, model, holding))
    g.output("logits", logits, np.float32, [rows, spec.classes])
    return g.model(spec.name, {"seedmask.model": model.spec.digest.hex(), "seedmask.weights": holding})


def _weights(g: Graph, ops: OnnxOps, model: FinishedModel, holding: str) -> dict[str, Name]:
    spec = model.spec
    if holding == "seed":
        key = g.const(weights_key(spec.seed), np.int64)
        packed = _constant(g, "mask", np.packbits(model.mask, bitorder="little"))
        bits = g(
            "BitwiseAnd",
            g("Reshape", g.cast(packed, np.uint32), g.ints(-1, 1)),
            g.const([1 << b for b in range(8)], np.uint32),
        )
        flat = g.slice(g("Reshape", g.cast(bits, np.bool_), g.ints(-1)), 0, 0, spec.d)
        masked, always = drawn(g, spec, key)
        values = _constant(g, "exact", model.values()) if spec.e else None
        return unpack(ops, spec, ops.mul(masked, g.cast(flat, np.float32)), always, values)
    parameters, shapes = model.parameters(), shapes_beside(spec)
    exact = [tensor.name for tensor in spec.tensors if tensor.kind == "exact"]
    out = {name: _constant(g, name, parameters[name].reshape(shapes[name])) for name in exact}
    for name, (signs, c) in model.ternary().items():
        if holding == "ternary":
            out[name] = g("DequantizeLinear", _constant(g, name, signs), g.const(c, np.float32))
        else:
            out[name] = _constant(g, name, signs.astype(np.float32) * np.float32(c))
    return out


def _constant(g: Graph, name: Name, value: np.ndarray[Any, Any]) -> Name:
    """Add an initialiser under torch's name, with a # before it if the graph's own names look like that."""
    name = f"#{name}" if _OURS.match(name) else name
    return g.parameter(name, value)
