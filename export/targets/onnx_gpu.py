"""ONNX, variant gpu: training steps in operators that both the CUDA and the WebGPU provider of onnxruntime have.

WebGPU lacks LogSoftmax, Max, Min and most of int64, and a node that falls back to the CPU takes its values with it. So
labels and counts are int32, these three operators are composed of others, and the gradient with respect to a
convolution's input is a Conv with the kernel rotated, or ConvTranspose where there is a stride. Pools are comparisons
as in every variant, since CUDA lacks MaxUnpool. The batch is fixed, since GPU providers plan by shapes. All of it runs
on the CPU, too, where tests hold it to the same contract.
"""

from __future__ import annotations

import numpy as np

from export.onnx_ops import Name, OnnxOps
from export.targets.onnx import sgd_graph, step_graph
from seedmask.layers import Conv2d, Shape
from seedmask.spec import ModelSpec


class GpuOps(OnnxOps):
    """`OnnxOps` without the operators that these providers lack; labels y are int32."""

    LABELS = np.int32

    def conv_dx(self, dy: Name, weight: Name, layer: Conv2d, kernel: Shape, before: Shape, after: Shape) -> Name:
        """Emit a Conv of dy with the kernel rotated by 180 degrees; ConvTranspose where there is a stride."""
        reach = [d * (k - 1) - p for d, k, p in zip(layer.dilation, kernel[2:], layer.padding, strict=True)]
        if layer.stride != (1, 1) or min(reach) < 0:
            return super().conv_dx(dy, weight, layer, kernel, before, after)
        g, (out, channels, kh, kw), groups = self.g, kernel, layer.groups
        turned = weight
        for axis, side in ((2, kh), (3, kw)):
            if side > 1:
                turned = g("Gather", turned, g.const(range(side - 1, -1, -1), np.int64), axis=axis)
        apart = g("Reshape", turned, g.ints(groups, out // groups, channels, kh, kw))
        swapped = g("Transpose", apart, perm=[0, 2, 1, 3, 4])
        turned = g("Reshape", swapped, g.ints(groups * channels, out // groups, kh, kw))
        return g("Conv", dy, turned, group=groups, dilations=layer.dilation, pads=[*reach, *reach])

    def minimum(self, a: Name, b: Name) -> Name:
        """Emit Where for Min."""
        return self.g("Where", self.g("Less", b, a), b, a)

    def larger(self, a: Name, b: Name, first: Name) -> Name:
        """Emit Where for Max."""
        return self.g("Where", first, a, b)

    def log_softmax(self, logits: Name) -> Name:
        """Compose LogSoftmax of other operators."""
        g = self.g
        shifted = g("Sub", logits, g("ReduceMax", logits, g.ints(1), keepdims=1))
        return g("Sub", shifted, g("Log", g("ReduceSum", g("Exp", shifted), g.ints(1), keepdims=1)))


def files(spec: ModelSpec, batch: int) -> dict[str, bytes]:
    """Return the bundle's members, steps of `batch` examples; they go with `init` and `eval` of target onnx."""
    return {
        "onnx-gpu/step.onnx": step_graph(spec, batch, GpuOps),
        "onnx-gpu/step_sgd.onnx": sgd_graph(spec, batch, GpuOps),
    }
