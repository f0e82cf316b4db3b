"""Artifacts for onnxruntime-training 1.19.2, the last of its line: training, eval and optimiser models, a checkpoint.

Only the forward half is built here; the package differentiates it. Programs that use the package's C++, C#, Java, Swift
or Python API train with the artifacts alone, by the straight-through estimator and Adam (FedPM: Isik et al., arXiv
2209.15328); our runtime runs the same models and adds the training settings of a job. Making artifacts needs torch,
which the package imports without declaring it; training with them does not.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper

from export.graph import forward, pool_first, unpack
from export.onnx_ops import IR_VERSION, Graph, Name, OnnxOps
from export.targets.onnx import eval_graph
from seedmask.errors import MissingPackageError
from seedmask.layers import MaxPool2d, Shape
from seedmask.spec import ModelSpec

# As torch's Adam; the package writes Hugging Face's AdamW with 1e-6, which moves most scores elsewhere.
_ADAM: Final[dict[str, int | float]] = {"adam_mode": 0, "epsilon": 1e-8}
_EXACT: Final = 2.0**62  # float32 theta times this is an integer that int64 holds, down to theta = 2^-39


class DifferentiableOps(OnnxOps):
    """`OnnxOps` in a form that onnxruntime-training can differentiate."""

    def pool(self, x: Name, layer: MaxPool2d, before: Shape) -> tuple[Name, Name]:
        """Emit MaxPool with its indices, which its gradient needs."""
        y, winners = self.g.several("MaxPool", 2, x, kernel_shape=layer.size, strides=layer.size)
        return y, winners


def files(spec: ModelSpec, batch: int) -> dict[str, bytes]:
    """Return the bundle's members; they take any number of examples, not just `batch`. Raises MissingPackageError.

    The checkpoint is a nominal one: it has the names `scores` and, if the spec has exact tensors, `exact`, but no
    values. Load those by `copy_buffer_to_parameters(scores, trainable_only=False)`: a round begins with the fleet's.
    """
    made = _generate(forward_graph(spec), ["scores", "exact"] if spec.e else ["scores"])
    optimizer = onnx.load_from_string(made["optimizer_model.onnx"])
    return {
        "ort-training/training_model.onnx": made["training_model.onnx"],
        "ort-training/eval_model.onnx": made["eval_model.onnx"],
        "ort-training/optimizer_model.onnx": _patched(optimizer),
        "ort-training/checkpoint.bin": made["nominal_checkpoint"],
        "ort-training/logits.onnx": eval_graph(spec),
    }


def forward_graph(spec: ModelSpec) -> bytes:
    """Return the ONNX model that is differentiated by its initialisers `scores` float32 [d] and, if any, `exact` [e].

    x float32 [n, *input]; y int64 [n], or float32 [n, outputs] if the loss is "mse"; weight float32 [n], 1/n each; w
    (weights), u (noise) float32 [d]; mean bool []; frozen, as in `export.targets.onnx.sgd_graph` -> loss float32 [],
    correct int64 [], logits float32 [n, classes].
    """
    g, d = Graph(), spec.d
    ops = DifferentiableOps(g, -1)
    mse = spec.loss == "mse"
    x = g.input("x", np.float32, ["n", *spec.input])
    y = g.input("y", np.float32, ["n", spec.classes]) if mse else g.input("y", np.int64, ["n"])
    weight = g.input("weight", np.float32, ["n"])
    w, u, mean = g.input("w", np.float32, [d]), g.input("u", np.float32, [d]), g.input("mean", np.bool_, [])
    mask = _straight_through(g, ops, g.parameter("scores", np.zeros(d, np.float32)), u, mean)
    frozen = g.input("frozen", np.float32, [spec.count("frozen")]) if spec.count("frozen") else None
    exact = g.parameter("exact", spec.even().values()) if spec.e else None
    logits, _ = forward(ops, pool_first(spec), x, unpack(ops, spec, ops.mul(w, mask), frozen, exact))
    loss, correct, _ = (ops.squared_error if mse else ops.cross_entropy)(logits, y, weight)
    g.output("loss", loss, np.float32, [])
    g.output("correct", correct, np.int64, [])
    g.output("logits", logits, np.float32, ["n", spec.classes])
    return g.model("forward")


def _straight_through(g: Graph, ops: OnnxOps, scores: Name, u: Name, mean: Name) -> Name:
    """Return exactly u < theta, or theta if `mean`, with the gradient of theta either way.

    No operator stops a gradient, but a Cast to integers has none, and theta passes it unchanged. An If cannot be
    differentiated; a Where need not be, since its operands have no gradient.
    """
    theta = ops.sigmoid(scores)
    scale = ops.number(_EXACT)
    still = ops.div(g.cast(g.cast(ops.mul(theta, scale), np.int64), np.float32), scale)
    return ops.add(g("Where", mean, still, ops.less(u, still)), ops.sub(theta, still))


def _generate(model: bytes, trained: list[str]) -> dict[str, bytes]:
    """Return the artifacts that the package makes of a forward model, by file name; `trained` names its parameters."""
    try:
        from onnxruntime.training import artifacts
    except ImportError as error:
        raise MissingPackageError(
            f"the artifacts of ort-training need {error.name}: pip install 'seedmask[ort-training,export]', in an "
            "environment of its own (x86-64 Linux, Python 3.10 or 3.11)"
        ) from None
    with tempfile.TemporaryDirectory() as folder, _quiet():
        artifacts.generate_artifacts(
            onnx.load_from_string(model),
            requires_grad=trained,
            frozen_params=[],
            optimizer=artifacts.OptimType.AdamW,
            artifact_directory=folder,
            nominal_checkpoint=True,
        )
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the line that native code writes to standard error for every transformation; no setting stops it."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _patched(model: onnx.ModelProto) -> bytes:
    """Return the optimiser's model with torch's Adam, an older IR version, and fixed names.

    This onnxruntime cannot read the IR version that the package writes; names that count up would change the bytes.
    """
    model.ir_version = IR_VERSION  # it writes onnx's newest, and reads up to 10
    (node,) = model.graph.node
    for attribute in node.attribute:
        if attribute.name in _ADAM:
            attribute.CopyFrom(helper.make_attribute(attribute.name, _ADAM[attribute.name]))
    node.name, node.output[0], model.graph.output[0].name = "adam", "updated", "updated"
    return bytes(model.SerializeToString(deterministic=True))
