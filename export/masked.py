"""The training step in plain torch with autograd: what exported graphs are compared with and timed against.

Nothing clever here: a Bernoulli mask with a straight-through estimator (FedPM: Isik et al., arXiv
2209.15328), torch's own layers, torch's own Adam, one flat score vector.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seedmask.spec import GROUPNORM_EPSILON, Conv2d, GroupNorm, Linear, MaxPool2d, ModelSpec, ReLU


def forward(spec: ModelSpec, x: Tensor, flat: Tensor) -> Tensor:
    """Logits [n, classes] of x [n, *input] under effective weights `flat` [d]."""
    return network(spec, x, parts(spec, flat))


def parts(spec: ModelSpec, flat: Tensor) -> dict[str, Tensor]:
    """The tensors of a flat vector [d] by name."""
    pieces = torch.split(flat, [tensor.size for tensor in spec.tensors])
    return {t.name: piece.view(t.shape) for t, piece in zip(spec.tensors, pieces, strict=True)}


def network(spec: ModelSpec, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Logits [n, classes] of x [n, *input] under effective `weights` by name."""
    for layer in spec.layers:
        if isinstance(layer, Linear):
            x = F.linear(x, weights[layer.weight], weights[layer.bias] if layer.bias else None)
        elif isinstance(layer, Conv2d):
            bias = weights[layer.bias] if layer.bias else None
            x = F.conv2d(x, weights[layer.weight], bias, layer.stride, layer.padding)
        elif isinstance(layer, ReLU):
            x = F.relu(x)
        elif isinstance(layer, MaxPool2d):
            x = F.max_pool2d(x, layer.size)
        elif isinstance(layer, GroupNorm):
            x = F.group_norm(x, layer.groups, eps=GROUPNORM_EPSILON)
        else:
            x = x.flatten(1)
    return x


class Masked:
    """Scores [d] in training: `step` is one Adam step, `scores.grad` the gradient it followed.

    In the scores' precision: float64 makes it the judge between two programs in float32.
    """

    def __init__(self, spec: ModelSpec, scores: Tensor, rate: float) -> None:
        self.spec = spec
        self.w = torch.from_numpy(spec.weights()).to(scores.dtype)
        self.scores = scores.detach().clone().requires_grad_()
        self.adam = torch.optim.Adam([self.scores], lr=rate)

    def step(self, x: Tensor, y: Tensor, noise: Tensor) -> tuple[float, int]:
        """Mean loss (nats) and correct predictions, both before the step; the mask is noise < theta."""
        theta = self.scores.sigmoid()
        # The value of the mask, the derivative of theta.
        mask = (noise < theta).to(theta.dtype) + (theta - theta.detach())
        logits = forward(self.spec, x, self.w * mask)
        loss = F.cross_entropy(logits, y)
        self.adam.zero_grad()
        torch.autograd.backward(loss)
        self.adam.step()
        return loss.item(), int((logits.argmax(1) == y).sum())
