"""Training step in plain torch with autograd, a reference for the exported graphs and for their speed.

Nothing clever here: a Bernoulli mask with a straight-through estimator (FedPM: Isik et al., arXiv 2209.15328), torch's
own layers, torch's own Adam, one flat score vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from seedmask.layers import (
    EPSILON,
    GELU,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    GroupNorm,
    LayerNorm,
    Linear,
    MaxPool2d,
    Mean,
    Norm,
    Permute,
    ReLU,
    ReLU6,
    Reshape,
    RMSNorm,
    Sigmoid,
    SiLU,
    Tanh,
)
from seedmask.mask import EXACT_ONE
from seedmask.spec import ModelSpec


def forward(
    spec: ModelSpec, x: Tensor, flat: Tensor, exact: Tensor | None = None, frozen: Tensor | None = None
) -> Tensor:
    """Return logits [n, classes] of x [n, *input], scaled to -1 .. 1, under effective weights `flat` [d].

    `exact` and `frozen`: the flat vectors of these tensors, None where the spec has none.
    """
    return network(spec, x, spec.parts(flat, frozen, exact))


def network(spec: ModelSpec, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Return logits [n, classes] of x [n, *input], scaled to -1 .. 1, under effective `weights` by name."""
    values = [x]
    for i, layer in enumerate(spec.layers):
        taken = [values[value] for value in layer.takes(i)]
        x = taken[0]
        match layer:
            case Linear():
                x = F.linear(x, weights[layer.weight], weights[layer.bias] if layer.bias else None)
            case Conv2d():
                bias = weights[layer.bias] if layer.bias else None
                x = F.conv2d(x, weights[layer.weight], bias, layer.stride, layer.padding, layer.dilation, layer.groups)
            case ReLU():
                x = F.relu(x)
            case ReLU6():
                x = F.relu6(x)
            case GELU():
                x = F.gelu(x, approximate=layer.approximate)
            case SiLU():
                x = F.silu(x)
            case Tanh():
                x = torch.tanh(x)
            case Sigmoid():
                x = torch.sigmoid(x)
            case MaxPool2d():
                x = F.max_pool2d(x, layer.size)
            case AvgPool2d():
                x = F.avg_pool2d(x, layer.size)
            case Mean():
                x = x.mean([axis + 1 for axis in layer.axes])
            case Flatten():
                x = x.reshape(len(x), math.prod(x.shape[1:]))
            case Reshape():
                x = x.reshape(len(x), *layer.shape)
            case Permute():
                x = x.permute(0, *(axis + 1 for axis in layer.order))
            case GroupNorm():
                x = F.group_norm(x, layer.groups, *_affine(layer, weights), eps=EPSILON)
            case LayerNorm():
                x = F.layer_norm(x, x.shape[-layer.dims :], *_affine(layer, weights), eps=EPSILON)
            case RMSNorm():
                x = F.rms_norm(x, x.shape[-layer.dims :], _affine(layer, weights)[0], eps=EPSILON)
            case Add():
                x = sum(taken[1:], x)
            case Concat():
                x = torch.cat(taken, layer.axis + 1)
        values.append(x)
    return x


def _affine(layer: Norm, weights: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    scale, shift = (weights[name] if name else None for name in (layer.scale, layer.shift))
    if scale is None and shift is not None:
        scale = torch.ones_like(shift)  # without, group_norm's backward fails in torch 2.13
    return scale, shift


class Masked:
    """Scores [d] in training. `step` takes one Adam step; `scores.grad` is the gradient that it followed.

    The exact values are trained by the same Adam at `exact_rate`. Computation has the precision of the given scores:
    with float64 scores this class decides which of two float32 programs is closer to the truth.
    """

    def __init__(self, spec: ModelSpec, scores: Tensor, rate: float, exact_rate: float = 1e-3) -> None:
        self.spec = spec
        self.w, self.frozen = (torch.from_numpy(made).to(scores.dtype) for made in (spec.weights(), spec.frozen()))
        self.scores = scores.detach().clone().requires_grad_()
        self.exact = (torch.from_numpy(spec.begin()) / EXACT_ONE).to(scores.dtype).requires_grad_()
        groups = [{"params": [self.scores], "lr": rate}, {"params": [self.exact], "lr": exact_rate}]
        self.adam = torch.optim.Adam(groups)

    def step(self, x: Tensor, y: Tensor, noise: Tensor) -> tuple[float, int]:
        """Take one step with the mask noise < theta, `noise` [d]; return loss and correct predictions before it.

        x [n, *input], scaled to -1 .. 1; y int64 [n], or [n, classes] for "mse". The loss is a mean, in nats or
        squares; "mse" has no correct predictions, 0.
        """
        theta = self.scores.sigmoid()
        # The value of the mask, the derivative of theta.
        mask = (noise < theta).to(theta.dtype) + (theta - theta.detach())
        logits = forward(self.spec, x, self.w * mask, self.exact, self.frozen)
        mse = self.spec.loss == "mse"
        loss = F.mse_loss(logits, y) if mse else F.cross_entropy(logits, y)
        self.adam.zero_grad()
        torch.autograd.backward(loss)
        self.adam.step()
        return loss.item(), 0 if mse else int((logits.argmax(1) == y).sum())
