"""ONNX, variant lean: the gradient graph with the least memory, for devices whose memory is the limit.

A convolution's weight gradient takes one kernel element at a time, so that only one shifted copy of the input exists at
a time, not a stack of kernel rows: as fast for eight examples, a tenth slower for thirty-two (decision 0048).
"""

from __future__ import annotations

from export.onnx_ops import Name, OnnxOps
from export.targets.onnx import grads_graph
from seedmask.layers import Conv2d, Shape
from seedmask.spec import ModelSpec


class LeanOps(OnnxOps):
    """`OnnxOps` with another weight gradient of convolutions."""

    def conv_dw(self, dy: Name, x: Name, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> Name:
        """Compute one product per kernel element."""
        return self.dw_taps(dy, x, layer, kernel, after)


def files(spec: ModelSpec, batch: int) -> dict[str, bytes]:
    """Return the bundle's member, which goes with those of target onnx; it does not depend on `batch`."""
    return {"onnx-lean/grads.onnx": grads_graph(spec, LeanOps)}
