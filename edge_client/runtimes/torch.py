"""Runtime `torch`: training with torch, for laptops and GPUs; it uses CUDA if there is a GPU, otherwise the CPU.

Autograd differentiates the network by its tensors, which are views of one flat vector of effective weights. The rest of
a step (mask, estimator, optimiser) takes a few passes over whole vectors, into buffers that are kept. On a GPU the
state stays there until it is read.
"""

from __future__ import annotations

import math
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_client.runtimes.arithmetic import BETA1, BETA2, corrected, pulls, step_exact
from edge_client.runtimes.checks import check_logits, check_step, finite
from edge_client.runtimes.contract import F32, NOTHING, Exact, MicroBatchPlan, State, StepConfig, StepResult, Targets
from edge_client.runtimes.footprint import MB, Footprint
from edge_client.runtimes.on_device import OnDevice, on_device
from seedmask.bundle import Bundle
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
from seedmask.spec import ModelSpec

if TYPE_CHECKING:
    import torch

NEEDS: Final = ("torch",)
GRAPHS: Final[tuple[str, ...]] = ()
FOOTPRINT: Final = Footprint(255 * MB, 16, 2)


class Torch:
    """Runtime of one model on one torch device, "cpu" or "cuda"."""

    def __init__(self, bundle: Bundle, device: str, fit: MicroBatchPlan) -> None:
        import torch

        self.bundle, self.spec, self.device, self.fit = bundle, bundle.spec, torch.device(device), fit
        d = self.spec.d
        self.w = torch.from_numpy(bundle.spec.weights()).to(self.device)
        self._frozen = torch.from_numpy(bundle.spec.frozen()).to(self.device)
        self._exact = torch.zeros(self.spec.e, device=self.device)
        # Buffers, named after what they hold at the end of a step; before that they hold intermediate results.
        self._theta, self._mask, self._effective, self._gradient, self._room = (
            torch.empty(d, device=self.device) for _ in range(5)
        )
        self._free: list[torch.Tensor] = []
        self._lazy = self.device.type != "cpu"
        # Leaves for autograd, each a view of the flat vector: the network runs with whatever is written there.
        self._weights = {name: part.detach() for name, part in self._parts(self._effective, self._exact).items()}
        masked, exact = ([t.name for t in self.spec.tensors if t.kind == kind] for kind in ("masked", "exact"))
        self._leaves = [self._weights[name].requires_grad_() for name in (*masked, *exact)]
        sizes = [tensor.size for tensor in self.spec.masked]
        self._windows, self._w_windows = torch.split(self._gradient, sizes), torch.split(self.w, sizes)

    def _parts(self, masked: torch.Tensor, exact: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.spec.parts(masked, self._frozen, exact)

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """See Runtime."""
        import torch
        from torch.nn import functional as F

        check_step(self.bundle, x, y, state, noise, rule)
        old = {name: on_device(state, name, self._vector) for name in rule.needs}
        scores, theta = old["scores"], self._theta
        torch.sigmoid(scores, out=theta)
        if rule.mean:
            torch.mul(self.w, theta, out=self._effective)
        else:
            # A float32 mask and a product, because where() with a boolean mask was measured to be ten times slower.
            torch.lt(self._moved(noise), theta, out=self._mask)
            torch.mul(self.w, self._mask, out=self._effective)

        self._exact.copy_(self._moved(state.exact.values))
        mse = self.spec.loss == "mse"
        lost, right = theta.new_zeros(()), theta.new_zeros(())
        size = len(y) * self.spec.classes if mse else len(y)
        by_exact: list[torch.Tensor] = []
        for part in self.fit.parts(len(y)):
            logits, truth = forward(self.spec, self._moved(x[part]), self._weights), self._moved(y[part])
            loss = (F.mse_loss if mse else F.cross_entropy)(logits, truth, reduction="sum") / size
            grads = [grad.reshape(-1) for grad in torch.autograd.grad(loss, self._leaves)]
            for grad, w, out in zip(grads, self._w_windows, self._windows, strict=False):
                if part.start:
                    out.addcmul_(grad, w)
                else:
                    torch.mul(grad, w, out=out)
            others = grads[len(self._windows) :]
            by_exact = [a + b for a, b in zip(by_exact, others, strict=True)] if part.start else others
            lost += loss.detach()
            right += 0 if mse else (logits.argmax(1) == truth).sum()

        g, room = self._gradient, self._room
        if rule.times_theta:
            g.mul_(theta)
        by_score, by_anchor, constant = pulls(rule, self.spec.d)
        if by_score:
            g.add_(scores, alpha=by_score)
        if by_anchor:
            g.add_(old["anchor"], alpha=by_anchor)
        if constant:
            g.add_(constant)
        g.mul_(torch.addcmul(theta, theta, theta, value=-1, out=room))  # theta (1 - theta)

        new, t = {}, state.t + 1
        if rule.optimizer == "adam":
            rate, epsilon = corrected(rule.rate, t)
            new["m"] = torch.lerp(old["m"], g, 1 - BETA1, out=self._fresh())
            new["v"] = torch.mul(old["v"], BETA2, out=self._fresh()).addcmul_(g, g, value=1 - BETA2)
            torch.sqrt(new["v"], out=room).add_(epsilon)
            new["scores"] = torch.addcdiv(scores, new["m"], room, value=-rate, out=self._fresh())
        elif rule.momentum:
            new["m"] = torch.mul(old["m"], rule.momentum, out=self._fresh()).add_(g)
            new["scores"] = torch.sub(scores, new["m"], alpha=rule.rate, out=self._fresh())
        else:
            new["scores"] = torch.sub(scores, g, alpha=rule.rate, out=self._fresh())
        if self._lazy and "anchor" in old:
            new["anchor"] = old["anchor"]  # keep it on the GPU: moving it costs as much as moving a step's noise
        # One transfer for all figures, because the host waits for the GPU at each.
        figures = torch.stack([lost, right, new["scores"].sum()])
        news = torch.cat([figures, *by_exact]).cpu().numpy()
        seen, hits, total = news[:3].tolist()
        after = self._state(state, new, t, step_exact(state.exact, news[3:], rule, t))
        return finite(StepResult(after, seen, int(hits)), total)

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """See Runtime."""
        import torch

        check_logits(self.bundle, x, mask, exact)
        out = np.empty((len(x), self.spec.classes), np.float32)
        with torch.no_grad():
            values = self._moved(np.asarray(exact, np.float32))
            parts = self._parts(self.w * self._moved(np.asarray(mask, np.float32)), values)
            for at in range(0, len(x), self.bundle.batch):
                part = np.asarray(x[at : at + self.bundle.batch], np.float32)
                out[at : at + len(part)] = forward(self.spec, self._moved(part), parts).cpu().numpy()
        return out

    def _moved(self, array: Any) -> torch.Tensor:
        import torch

        array = np.ascontiguousarray(array)
        # torch has no read-only tensors and warns about read-only arrays, so these are copied.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)

    def _vector(self, array: F32) -> torch.Tensor:
        return self._moved(np.asarray(array, np.float32))

    def _fresh(self) -> torch.Tensor:
        import torch

        return self._free.pop() if self._free else torch.empty_like(self.w)

    def _state(self, before: State, new: dict[str, torch.Tensor], t: int, exact: Exact) -> State:
        if self._lazy:
            return OnDevice(before, new, t, exact, lambda tensor: tensor.cpu().numpy())
        arrays = {name: tensor.numpy() for name, tensor in new.items()}
        # New memory has to be cleared by the system, which takes as long as the arithmetic. So the memory of a state is
        # used again when nothing refers to it any more. (On a GPU torch does this itself.)
        for name, tensor in new.items():
            weakref.finalize(arrays[name], self._free.append, tensor).atexit = False
        m, v = (arrays.get(name, getattr(before, name)) for name in ("m", "v"))
        return State(arrays["scores"], m, v, t, before.anchor, exact)


def open_runtime(bundle: Bundle, threads: int, fit: MicroBatchPlan | None = None) -> Torch:
    """Return the runtime; `threads` holds for the whole process, and 0 leaves torch's default, one per core."""
    if "torch" not in sys.modules:
        # By default torch's waiting threads spin, and take time from other processes on the same cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    if threads:
        torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    if cuda:
        # A repeated step gives the same result, and convolutions are as precise as on every other device.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
    return Torch(bundle, "cuda" if cuda else "cpu", fit or MicroBatchPlan(bundle.batch))


def forward(spec: ModelSpec, x: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits [n, classes] of x [n, *input], with effective `weights` by name of tensor."""
    import torch
    from torch.nn import functional as F

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


def _affine(layer: Norm, weights: dict[str, torch.Tensor]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return scale and shift of a normalisation, None if it has none, as torch's functions take them."""
    import torch

    scale, shift = (weights[name] if name else None for name in (layer.scale, layer.shift))
    if scale is None and shift is not None:
        scale = torch.ones_like(shift)  # without a scale, group_norm's backward fails in torch 2.13
    return scale, shift
