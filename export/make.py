"""From a ModelSpec to the bundle that devices open: one file per target's graph, every graph checked."""

from __future__ import annotations

from export.targets import onnx as target
from seedmask.bundle import Bundle
from seedmask.spec import ModelSpec


def make_bundle(spec: ModelSpec, batch: int) -> Bundle:
    """All graphs of `spec`; the training step takes `batch` examples. The same spec gives the same bytes."""
    if not 1 <= batch <= 1 << 16:
        raise ValueError(f"batch is 1 .. 65536, found {batch}")
    files = {
        "onnx/init.onnx": target.init_graph(spec),
        "onnx/step.onnx": target.step_graph(spec, batch),
        "onnx/step_sgd.onnx": target.sgd_graph(spec, batch),
        "onnx/eval.onnx": target.eval_graph(spec),
    }
    return Bundle(spec, batch, files)
