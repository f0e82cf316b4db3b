"""Local training of the dense baselines (FedAvg and methods that compress its updates), in plain torch.

FedAvg: McMahan et al., arXiv 1602.05629. The network is that of a ModelSpec, without masks: its weights are trained,
from a flat float32 vector to another one. A GPU is used if there is one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from export.masked import forward
from seedmask.spec import ModelSpec

F32 = npt.NDArray[np.float32]
OPTIMIZERS = ("adam", "sgd")
_EVALUATE = 500


class DenseTraining:
    """Trainer of one dense network. `threads` holds for the whole process; 0 leaves torch's default."""

    def __init__(self, spec: ModelSpec, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.spec = spec
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def start(self, seed: int) -> F32:
        """Return initial weights, float32 [d], that follow from `seed`: torch's Kaiming normal for ReLU, biases 0."""
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        parts = []
        for tensor in self.spec.tensors:
            part = torch.zeros(tensor.shape)
            if len(tensor.shape) > 1:
                torch.nn.init.kaiming_normal_(part, nonlinearity="relu", generator=generator)
            parts.append(part.reshape(-1))
        out: F32 = torch.cat(parts).numpy()
        return out

    def train(
        self,
        weights: F32,
        x: npt.NDArray[np.uint8],
        y: npt.NDArray[np.int64],
        *,
        epochs: int,
        batch: int,
        rate: float,
        optimizer: str,
        rng: np.random.Generator,
    ) -> tuple[F32, float]:
        """Train `epochs` passes from `weights` [d]; return new weights [d] and the last pass's mean loss in nats.

        x: uint8 [n, *input] as stored; y: int64 [n]. optimizer: "adam" or "sgd" (momentum 0.9); its state is new at
        every call. rng: draws the order of the examples, as in `edge_client.training.train`. Raises ValueError for
        another optimizer.
        """
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is one of {', '.join(OPTIMIZERS)}, found {optimizer!r}")
        # One leaf for all tensors, so that the optimiser works in one pass.
        leaf = torch.from_numpy(weights.copy()).to(self.device).requires_grad_()
        rule: torch.optim.Optimizer
        if optimizer == "adam":
            rule = torch.optim.Adam([leaf], lr=rate, fused=self.device.type == "cuda")
        else:
            rule = torch.optim.SGD([leaf], lr=rate, momentum=0.9)
        images, labels = self._images(x), torch.from_numpy(y).to(self.device)
        losses = 0.0
        for _ in range(epochs):
            losses = 0.0
            order = torch.from_numpy(rng.permutation(len(y))).to(self.device)
            for at in range(0, len(y), batch):
                pick = order[at : at + batch]
                loss = F.cross_entropy(forward(self.spec, images[pick], leaf), labels[pick])
                (leaf.grad,) = torch.autograd.grad(loss, [leaf])
                rule.step()
                losses += float(loss.detach()) * len(pick)
        out: F32 = leaf.detach().cpu().numpy()
        return out, losses / len(y)

    def accuracy(self, weights: F32, x: npt.NDArray[np.uint8], y: npt.NDArray[np.int64]) -> float:
        """Return the share of examples x, y, 0 .. 1, that the network with `weights` [d] classifies correctly."""
        correct = 0
        with torch.no_grad():
            flat = torch.from_numpy(weights).to(self.device)
            for at in range(0, len(y), _EVALUATE):
                logits = forward(self.spec, self._images(x[at : at + _EVALUATE]), flat)
                correct += int((logits.argmax(1).cpu().numpy() == y[at : at + _EVALUATE]).sum())
        return round(correct / len(y), 6)

    def _images(self, x: npt.NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(self.spec.normalise(x)).to(self.device)
