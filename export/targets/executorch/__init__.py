"""ExecuTorch program of a masked network: methods weights, train_step, grads and logits in one file without a weight.

`export.graph` has the computation of a step, `ops` each operation as torch calls, which torch.export records. The
backward pass is written by hand: ExecuTorch's own has wrong gradients below a pooling layer (a test in
`tests/test_executorch.py` will notice when that is mended) and took thirty times as long. `finished_pte` returns the
file of a finished network, for inference.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import torch

from export.graph import Adam, Knobs, Sgd, Step, forward, train_step, unpack
from export.targets.executorch.final import finished_pte
from export.targets.executorch.lowering import lower, quiet, require, training_partitioner
from export.targets.executorch.ops import TorchOps
from seedmask.layers import Conv2d
from seedmask.seed import PARITY, ROTATIONS
from seedmask.spec import ModelSpec

__all__ = ["METHODS", "files", "finished_pte", "micro_batch", "program"]

V = torch.Tensor

METHODS: Final = ("weights", "train_step", "grads", "logits")
_IMAGES: Final = 16  # the most examples that a convolutional program takes at once


class Weights(torch.nn.Module):
    """key int64 [2] (`seedmask.seed.weights_key`) -> w float32 [d], bit for bit spec.weights().

    If there are frozen tensors, a second output, frozen float32 [all their entries], equals spec.frozen().
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, key: V) -> tuple[V, ...]:
        """Draw the weights in int32, whose sums wrap; a bit mask makes the arithmetic right shift a logical one."""
        spec = self.spec
        k0, k1 = key[0:1].to(torch.int32), key[1:2].to(torch.int32)
        ks = (k0, k1, (k0 ^ k1) ^ PARITY)
        drawn = [tensor for tensor in spec.tensors if tensor.kind != "exact"]
        n = sum(tensor.size for tensor in drawn)
        x0, x1 = torch.arange((n + 63) // 64, dtype=torch.int32) + k0, k1
        for r in range(20):
            x0 = x0 + x1
            turn = ROTATIONS[r % 8]
            low = torch.bitwise_right_shift(x1, 32 - turn) & ((1 << turn) - 1)
            x1 = (torch.bitwise_left_shift(x1, turn) | low) ^ x0
            if r % 4 == 3:
                s = r // 4 + 1
                x0, x1 = x0 + ks[s % 3], x1 + (ks[(s + 1) % 3] + s)
        words = torch.stack([x0, x1], 1).view(-1, 1)
        bits = torch.bitwise_right_shift(words, torch.arange(32, dtype=torch.int32)) & 1
        signs = (1.0 - 2.0 * bits.to(torch.float32)).view(-1)[:n]
        parts = torch.split(signs, [tensor.size for tensor in drawn])
        made: dict[str, list[V]] = {"masked": [], "frozen": []}
        for part, tensor in zip(parts, drawn, strict=True):
            made[tensor.kind].append(part * tensor.constant)
        return tuple(torch.cat(of_kind) for of_kind in made.values() if of_kind)


class _Network(torch.nn.Module):
    def __init__(self, spec: ModelSpec, batch: int) -> None:
        super().__init__()
        self.spec, self.batch = spec, batch

    def image(self, x: V) -> V:
        return torch.permute_copy(x, (0, 2, 3, 1)) if x.dim() == 4 else x

    def unmasked(self, others: tuple[V, ...]) -> tuple[V | None, V | None]:
        """Return the vectors of frozen and exact tensors from a method's last inputs, None where there are none."""
        rest = iter(others)
        return (next(rest) if self.spec.count("frozen") else None), (next(rest) if self.spec.e else None)

    def step(self, given: tuple[V, ...], others: tuple[V, ...], rate: V, by: Any) -> Step[V]:
        x, y, weight, scores, w, u, mean = given
        frozen, exact = self.unmasked(others)
        ops, zero = TorchOps(self.batch), torch.zeros(1)
        knobs = Knobs(rate, mean, ops.yes, zero, zero, zero, zero, zero)
        return train_step(
            ops,
            self.spec,
            x=self.image(x),
            y=y,
            weight=weight,
            scores=scores,
            w=w,
            u=u,
            knobs=knobs,
            optimizer=by,
            frozen=frozen,
            exact=exact,
        )


class TrainStep(_Network):
    """One step of Adam on the loss alone, by the identity estimator.

    x float32 [batch, *input]; y int64 [batch], for "mse" float32 [batch, classes]; weight float32 [batch], 1/n for a
    real example and 0 for padding; scores, w (weights), u (noise) float32 [d]; mean float32 [1], 1.0 to run w * theta;
    m, v float32 [d]; rate, epsilon float32 [1] with their step's bias correction (`export.graph.Adam`); frozen and
    exact float32, all their entries, where the spec has any -> scores, m, v float32 [d]; loss float32 []; correct int64
    []; the gradient by exact, where there is one.
    """

    def forward(
        self, x: V, y: V, weight: V, scores: V, w: V, u: V, mean: V, m: V, v: V, rate: V, epsilon: V, *others: V
    ) -> tuple[V, ...]:
        """Take the step (see the class)."""
        after = self.step((x, y, weight, scores, w, u, mean), others, rate, Adam(m, v, epsilon))
        assert after.v is not None
        return after.scores, after.m, after.v, after.loss, after.correct, *_if_any(after.exact)


class Grads(_Network):
    """Gradient of the loss with respect to the scores, straight through; add up those of a batch's micro-batches.

    Inputs are TrainStep's up to `mean`, then frozen and exact -> gradient float32 [d]; loss float32 []; correct int64
    []; the gradient by exact, where there is one.
    """

    def forward(self, x: V, y: V, weight: V, scores: V, w: V, u: V, mean: V, *others: V) -> tuple[V, ...]:
        """Take a step of SGD without momentum, and return its first moment, which is the gradient."""
        zero = torch.zeros(1)
        after = self.step((x, y, weight, scores, w, u, mean), others, zero, Sgd(zero, zero))
        return after.m, after.loss, after.correct, *_if_any(after.exact)


class Logits(_Network):
    """x float32 [batch, *input], w and mask float32 [d], frozen and exact as TrainStep's -> float32 [batch, classes].

    The mask may be probabilities, for the mean network.
    """

    def forward(self, x: V, w: V, mask: V, *others: V) -> V:
        """Compute the logits (see the class)."""
        ops = TorchOps(self.batch)
        weights = unpack(ops, self.spec, w * mask, *self.unmasked(others))
        return forward(ops, self.spec, self.image(x), weights)[0]


def _if_any(value: V | None) -> tuple[V, ...]:
    return () if value is None else (value,)


def files(spec: ModelSpec, batch: int) -> dict[str, bytes]:
    """Return the bundle's member, a program of `micro_batch(spec, batch)` examples. Raises MissingPackageError."""
    require()
    return {"executorch/model.pte": program(spec, micro_batch(spec, batch))}


def micro_batch(spec: ModelSpec, batch: int) -> int:
    """Return how many examples the program takes at once; a step of `batch` examples runs it several times.

    A convolution's patches need several times the memory of its image, and fall out of the cache: for ResNet-20, one
    run of 32 takes a sixth longer than two of 16; for CONV-4 and CONV-6 it takes 1 to 3 % less.
    """
    if not any(isinstance(layer, Conv2d) for layer in spec.layers):
        return batch
    return -(-batch // -(-batch // _IMAGES))


@quiet()
def program(spec: ModelSpec, batch: int, methods: Collection[str] = METHODS) -> bytes:
    """Return the ExecuTorch program of `spec` for `batch` examples at once, with those `methods`, a part of METHODS."""

    def flat() -> V:  # another one each time: torch.export takes one tensor given twice for one input
        return torch.zeros(spec.d)

    def one() -> V:
        return torch.zeros(1)

    x, weight = torch.zeros(batch, *spec.input), torch.zeros(batch)
    y = torch.zeros(batch, spec.classes) if spec.loss == "mse" else torch.zeros(batch, dtype=torch.int64)
    step = (x, y, weight, flat(), flat(), flat(), one())

    def others() -> list[V]:
        return [torch.zeros(count) for count in (spec.count("frozen"), spec.e) if count]

    all_methods: dict[str, tuple[torch.nn.Module, tuple[V, ...]]] = {
        "weights": (Weights(spec), (torch.zeros(2, dtype=torch.int64),)),
        "train_step": (TrainStep(spec, batch), (*step, flat(), flat(), one(), one(), *others())),
        "grads": (Grads(spec, batch), (*step, *others())),
        "logits": (Logits(spec, batch), (x, flat(), flat(), *others())),
    }
    with torch.no_grad():
        exported = {name: torch.export.export(*all_methods[name]) for name in METHODS if name in methods}
    # Weights are made by integer operations, which XNNPACK lacks.
    return lower(exported, {name: training_partitioner() for name in exported if name != "weights"})
