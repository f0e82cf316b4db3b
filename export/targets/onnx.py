"""ONNX graphs of a masked network: init (seed -> weights), step and step_sgd (one training step), grads, eval (logits).

Plain inference graphs, so that every onnxruntime can train. `export.graph` has the computation of a step,
`export.onnx_ops` each operation in ONNX.
"""

from __future__ import annotations

import numpy as np

from export.graph import Adam, Knobs, Sgd, forward, gradient_of, shapes_beside, train_step, unpack
from export.onnx_ops import Graph, InferenceOps, Name, OnnxOps
from export.spatial import SpatialOps
from seedmask.seed import PARITY, ROTATIONS
from seedmask.spec import ModelSpec


def files(spec: ModelSpec, batch: int) -> dict[str, bytes]:
    """Return the bundle's members; the training steps take `batch` examples, the others any number."""
    return {
        "onnx/init.onnx": init_graph(spec),
        "onnx/step.onnx": step_graph(spec, batch),
        "onnx/step_sgd.onnx": sgd_graph(spec, batch),
        "onnx/grads.onnx": grads_graph(spec),
        "onnx/eval.onnx": eval_graph(spec),
    }


def step_graph(spec: ModelSpec, batch: int, ops: type[OnnxOps] = SpatialOps) -> bytes:
    """Return the ONNX file of the training step with Adam.

    Inputs and outputs are those of `sgd_graph`, but with m float32 [d], v float32 [d] and epsilon float32 [] for
    momentum, and v_out float32 [d]. The rate and epsilon contain their step's bias correction (`export.graph.Adam`).
    """
    return _step_graph(spec, batch, ops, adam=True)


def sgd_graph(spec: ModelSpec, batch: int, ops: type[OnnxOps] = SpatialOps) -> bytes:
    """Return the ONNX file of the training step with SGD.

    It holds two vectors [d] less than the step with Adam, or one with momentum.

    x float32 [batch, *input]; y int64 [batch], or float32 [batch, outputs] if the loss is "mse"; weight float32
    [batch], 1/n for a real example and 0 for padding; scores, w (weights), u (noise) float32 [d]; anchor float32 [d] or
    [1]; m float32 [d] or, without momentum, [1]; rate, momentum float32 []; mean, plain bool []; terms float32 [4] as
    in `export.graph.Knobs`, times_theta first -> scores_out, m_out float32 [d]; loss float32 []; correct int64 [];
    total float32 [], the sum of scores_out, which is finite only if each of them is.

    If the spec has frozen tensors, frozen float32 [all their entries] is an input, too. If it has exact tensors, so is
    exact float32 [e], and exact_grad float32 [e] is an output. Where this says int64, it is the type of labels in
    `ops`.
    """
    return _step_graph(spec, batch, ops, adam=False)


def _step_graph(spec: ModelSpec, batch: int, ops: type[OnnxOps], adam: bool) -> bytes:
    g, d = ops.GRAPH(), spec.d
    mse = spec.loss == "mse"
    inputs = {
        "x": g.input("x", np.float32, [batch, *spec.input]),
        "y": g.input("y", np.float32, [batch, spec.classes]) if mse else g.input("y", ops.LABELS, [batch]),
        "weight": g.input("weight", np.float32, [batch]),
        **{name: g.input(name, np.float32, [d]) for name in ("scores", "w", "u")},
    }
    anchor, rate = g.input("anchor", np.float32, ["anchored"]), g.input("rate", np.float32, [])
    mean, plain = g.input("mean", np.bool_, []), g.input("plain", np.bool_, [])
    terms = g.several("Split", 4, g.input("terms", np.float32, [4]), axis=0, num_outputs=4)
    optimizer: Adam[Name] | Sgd[Name]
    if adam:
        m, v = g.input("m", np.float32, [d]), g.input("v", np.float32, [d])
        optimizer = Adam(m, v, g.input("epsilon", np.float32, []))
    else:
        optimizer = Sgd(g.input("m", np.float32, ["moments"]), g.input("momentum", np.float32, []))
    knobs = Knobs(rate, mean, plain, anchor, *terms)
    after = train_step(ops(g, batch), spec, **inputs, knobs=knobs, optimizer=optimizer, **_unmasked(g, spec))
    g.output("scores_out", after.scores, np.float32, [d])
    g.output("m_out", after.m, np.float32, [d])
    if after.v is not None:
        g.output("v_out", after.v, np.float32, [d])
    g.output("loss", after.loss, np.float32, [])
    g.output("correct", after.correct, ops.LABELS, [])
    g.output("total", g("ReduceSum", "scores_out", keepdims=0), np.float32, [])
    if after.exact is not None:
        g.output("exact_grad", after.exact, np.float32, [spec.e])
    return g.model("step")


def grads_graph(spec: ModelSpec, ops: type[OnnxOps] = SpatialOps) -> bytes:
    """Return the ONNX file of the loss's gradient with respect to the weights, for any number of examples.

    It is the middle of a step; the host computes what comes before it (weights = w * mask) and after it (estimator,
    optimiser), weight by weight. So a step may take its examples a few at a time, under one mask, and sum the
    gradients.

    x float32 [n, *input]; y int64 [n], or float32 [n, outputs] if the loss is "mse"; weight float32 [n], one over the
    examples of the whole step; every tensor's values, masked, frozen or exact, float32 of its shape, as input `w.` +
    name -> loss float32 [], the share of these examples; correct int64 []; the gradient of every tensor that is not
    frozen, as output `g.` + name. Tensors are separate inputs because a caller can cut a vector without copying it, a
    graph cannot.
    """
    g = ops.GRAPH()
    mse, made = spec.loss == "mse", ops(g, -1)
    x = g.input("x", np.float32, ["n", *spec.input])
    y = g.input("y", np.float32, ["n", spec.classes]) if mse else g.input("y", np.int64, ["n"])
    weight = g.input("weight", np.float32, ["n"])
    weights, beside = dict[str, Name](), shapes_beside(spec)
    for tensor in spec.tensors:
        values = g.input(f"w.{tensor.name}", np.float32, tensor.shape)
        weights[tensor.name] = made.parameter(values, tensor.shape, beside[tensor.name])
    loss, correct, grads = gradient_of(made, spec, x=x, y=y, weight=weight, weights=weights)
    g.output("loss", loss, np.float32, [])
    g.output("correct", correct, np.int64, [])
    for tensor in spec.tensors:
        if tensor.kind != "frozen":
            gradient = grads[tensor.name]
            if tensor.kind == "exact":  # its layer may have given it dimensions of 1
                gradient = g("Reshape", gradient, g.ints(*tensor.shape))
            g.output(f"g.{tensor.name}", gradient, np.float32, tensor.shape)
    return g.model("grads")


def _unmasked(g: Graph, spec: ModelSpec) -> dict[str, Name]:
    """Declare inputs frozen and exact, flat vectors of those tensors, where `spec` has any; return their names."""
    sizes = {"frozen": spec.count("frozen"), "exact": spec.e}
    return {name: g.input(name, np.float32, [size]) for name, size in sizes.items() if size}


def eval_graph(spec: ModelSpec) -> bytes:
    """Return the ONNX file of inference: x float32 [n, *input], w, mask float32 [d] -> logits float32 [n, classes].

    n is any number. Inputs frozen and exact are as in `sgd_graph`.
    """
    g, d = Graph(), spec.d
    x = g.input("x", np.float32, ["n", *spec.input])
    w, mask = g.input("w", np.float32, [d]), g.input("mask", np.float32, [d])
    ops = InferenceOps(g, -1)
    logits, _ = forward(ops, spec, x, unpack(ops, spec, ops.mul(w, mask), **_unmasked(g, spec)))
    g.output("logits", logits, np.float32, ["n", spec.classes])
    return g.model("eval")


def init_graph(spec: ModelSpec) -> bytes:
    """Return the ONNX file that makes the weights: key int64 [2] (`seedmask.seed.weights_key`) -> w float32 [d].

    The result equals spec.weights() bit for bit. If there are frozen tensors, a second output, frozen, equals
    spec.frozen().
    """
    g = Graph()
    masked, always = drawn(g, spec, g.input("key", np.int64, [2]))
    g.output("w", masked, np.float32, [spec.d])
    if always is not None:
        g.output("frozen", always, np.float32, [spec.count("frozen")])
    return g.model("init")


def drawn(g: Graph, spec: ModelSpec, key: Name) -> tuple[Name, Name | None]:
    """Add the random weights to `g`: return those of masked tensors, float32 [d], and of frozen ones, if any.

    `key`: int64 [2], as `init_graph` has it.
    """
    tensors = [tensor for tensor in spec.tensors if tensor.kind != "exact"]
    total = sum(tensor.size for tensor in tensors)
    count = (total + 31) // 32
    stream = _threefry_words(g, key, (count + 1) // 2)
    bits = g("BitwiseAnd", g("Reshape", stream, g.ints(-1, 1)), g.const([1 << b for b in range(32)], np.uint32))
    flat = g(
        "Reshape",
        g("Where", g.cast(bits, np.bool_), g.const(-1, np.float32), g.const(1, np.float32)),
        g.ints(-1),
    )
    ops = OnnxOps(g, 0)
    signs = ops.split(g.slice(flat, 0, 0, total), [(tensor.size,) for tensor in tensors])
    scaled = {t: ops.mul(sign, ops.number(t.constant)) for sign, t in zip(signs, tensors, strict=True)}
    always = [part for tensor, part in scaled.items() if tensor.kind == "frozen"]
    return ops.join([scaled[tensor] for tensor in spec.masked]), ops.join(always) if always else None


def _threefry_words(g: Graph, key: Name, blocks: int) -> Name:
    """Return the first 2 * blocks words of a key's stream, uint32 [blocks, 2]: `seedmask.seed.words` computed in int64.

    onnxruntime 1.19 adds and multiplies only signed integers and shifts only unsigned ones, so a rotation is a Mul by
    2^r (left part) plus a BitShift of the uint32 Cast (right part). Nothing overflows: sums stay below 2^40, products
    below 2^62, and the Cast to uint32, which drops high bits by definition, is the reduction modulo 2^32.
    """
    k0, k1 = g.several("Split", 2, key, axis=0, num_outputs=2)
    k2 = g("BitwiseXor", g("BitwiseXor", k0, k1), g.ints(PARITY))
    picks = [0, 1] + [i for s in range(1, 6) for i in (s % 3, (s + 1) % 3)]
    steps = [0, 0] + [i for s in range(1, 6) for i in (0, s)]
    schedule = g("Add", g("Gather", g("Concat", k0, k1, k2, axis=0), g.ints(*picks)), g.ints(*steps))
    k = g.several("Split", 12, schedule, axis=0, num_outputs=12)
    x0 = g("Add", g("Range", *(g.const(v, np.int64) for v in (0, blocks, 1))), k[0])
    x1 = k[1]  # the second counter word is 0, so x1 is one number until it meets x0
    for r in range(20):
        rotation = ROTATIONS[r % 8]
        x0 = g("Add", x0, x1)
        right = g("BitShift", g.cast(x1, np.uint32), g.const(32 - rotation, np.uint32), direction="RIGHT")
        turned = g("Add", g("Mul", x1, g.const(1 << rotation, np.int64)), g.cast(right, np.int64))
        x1 = g.cast(g.cast(g("BitwiseXor", turned, x0), np.uint32), np.int64)
        if r % 4 == 3:
            s = r // 4 + 1
            x0, x1 = g("Add", x0, k[2 * s]), g("Add", x1, k[2 * s + 1])
    columns = [g("Unsqueeze", g.cast(x, np.uint32), g.ints(1)) for x in (x0, x1)]
    return g("Concat", *columns, axis=1)
