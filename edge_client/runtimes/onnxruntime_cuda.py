"""Runtime `onnxruntime_cuda`: training on an NVIDIA GPU with onnxruntime's CUDA provider.

A step is one graph and the state stays on the GPU: examples and noise are copied there for every step, two numbers are
copied back. The graphs belong to target onnx-gpu and use only operators that the provider has. Tests run this code with
the CPU provider; it has not been run on a GPU yet.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from edge_client.runtimes.arithmetic import corrected, pulls, step_exact
from edge_client.runtimes.checks import check_logits, check_step, finite
from edge_client.runtimes.contract import F32, NOTHING, State, StepConfig, StepResult, Targets
from edge_client.runtimes.on_device import OnDevice, on_device
from edge_client.runtimes.onnxruntime import CPU, predicted, session, vector
from seedmask.bundle import Bundle
from seedmask.errors import UserError

NEEDS: Final = ("onnxruntime",)
NOTE: Final = (
    "x86-64 with the CUDA and cuDNN that it was built for; on a Jetson, NVIDIA's onnxruntime-gpu for its JetPack; "
    "it replaces onnxruntime"
)
PROVIDER: Final = "CUDAExecutionProvider"
_STEPS: Final = {"adam": "onnx-gpu/step.onnx", "sgd": "onnx-gpu/step_sgd.onnx"}
GRAPHS: Final = (*_STEPS.values(), "onnx/eval.onnx")
_NONE: Final = np.zeros(1, np.float32)  # takes the place of a vector that the optimiser does not use
# Products in TensorFloat-32 would differ from other runtimes' by a thousandth.
_PROVIDERS: Final[dict[str, list[Any]]] = {"cuda": [(PROVIDER, {"use_tf32": "0"}), CPU], "cpu": [CPU]}


def absent() -> list[str]:
    """Return the CUDA provider's name in a list if this onnxruntime was built without it, otherwise []."""
    import onnxruntime as ort

    return [] if PROVIDER in ort.get_available_providers() else [PROVIDER]


class OnnxCuda:
    """Runtime of one model: a session for evaluation, and one for each optimiser that a step has asked for."""

    def __init__(self, bundle: Bundle, threads: int, device: str) -> None:
        self.bundle, self._threads, self._device = bundle, threads, device
        self._steps = dict[str, Any]()
        self._eval = self._session("onnx/eval.onnx")  # opened first, because it fails if there is no GPU
        self._w = self._put(bundle.spec.weights())
        self._frozen = {"frozen": self._put(bundle.spec.frozen())} if bundle.spec.count("frozen") else {}

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """See Runtime."""
        check_step(self.bundle, x, y, state, noise, rule)
        spec, n, t = self.bundle.spec, len(y), state.t + 1
        old = {name: on_device(state, name, self._put) for name in rule.needs}
        stays = {"scores": old["scores"], "w": self._w, "u": self._put(noise), **self._frozen}
        goes: dict[str, Any] = {
            "x": self._padded(x, np.float32),
            "y": self._padded(y, np.float32 if spec.loss == "mse" else np.int32),
            "weight": self._padded(np.full(n, 1 / n), np.float32),
            "mean": np.array(rule.mean),
            "plain": np.array(rule.plain),
            "terms": np.array([rule.times_theta, *pulls(rule, spec.d)], np.float32),
        }
        if rule.optimizer == "adam":
            rate, epsilon = corrected(rule.rate, t)
            stays["v"] = old["v"]
            goes["epsilon"] = np.array(epsilon, np.float32)
        else:
            rate = rule.rate
            goes["momentum"] = np.array(rule.momentum, np.float32)
        goes["rate"] = np.array(rate, np.float32)
        for name in ("m", "anchor"):
            (stays if name in old else goes)[name] = old.get(name, _NONE)
        if spec.e:
            goes["exact"] = vector(state.exact.values)

        new = [name for name in ("scores", "m", "v") if name in old]
        seen = ["loss", "correct", "total", *(["exact_grad"] if spec.e else [])]
        found = self._run(rule.optimizer, stays, goes, [f"{name}_out" for name in new], seen)
        loss, correct, total, *by_exact = (value.numpy() for value in found[len(new) :])
        exact = step_exact(state.exact, by_exact[0], rule, t) if by_exact else state.exact
        kept = {"anchor": old["anchor"]} if "anchor" in old else {}  # moving it takes as long as moving noise
        tensors = {**kept, **dict(zip(new, found, strict=False))}
        after = OnDevice(state, tensors, t, exact, lambda value: value.numpy())
        return finite(StepResult(after, float(loss), int(correct)), float(total))

    def _run(
        self, optimizer: str, stays: dict[str, Any], goes: dict[str, Any], new: list[str], seen: list[str]
    ) -> list[Any]:
        """Run a step and return its outputs: `new` on the GPU, then `seen` on the host.

        stays: inputs on the GPU, by name. goes: inputs on the host.
        """
        if optimizer not in self._steps:
            self._steps[optimizer] = self._session(_STEPS[optimizer])
        binding = self._steps[optimizer].io_binding()
        for name, value in stays.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in goes.items():
            binding.bind_cpu_input(name, array)
        for name in new:
            binding.bind_output(name, self._device)
        for name in seen:
            binding.bind_output(name)
        self._steps[optimizer].run_with_iobinding(binding)
        outputs: list[Any] = binding.get_outputs()
        return outputs

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """See Runtime."""
        check_logits(self.bundle, x, mask, exact)
        feeds = {"w": self._w, "mask": self._put(mask), **self._frozen}
        if self.bundle.spec.e:
            feeds["exact"] = self._put(exact)
        return predicted(self._eval, self.bundle, x, feeds)

    def _session(self, member: str) -> Any:
        opened = session(self.bundle.file(member), self._threads, _PROVIDERS[self._device])
        if self._device == "cuda" and PROVIDER not in opened.get_providers():
            raise UserError(
                f"onnxruntime has {PROVIDER}, but could not start it: is there a GPU, are CUDA and cuDNN those that "
                "this onnxruntime was built for? (nvidia-smi; its own words are above)"
            )
        return opened

    def _put(self, values: Any) -> Any:
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_numpy(vector(values), self._device, 0)

    def _padded(self, values: Any, kind: Any) -> Any:
        """Return `values` as dtype `kind`, with zeros appended up to the graph's batch."""
        out = np.zeros((self.bundle.batch, *values.shape[1:]), kind)
        out[: len(values)] = values
        return out


def open_runtime(bundle: Bundle, threads: int, *, device: str = "cuda") -> OnnxCuda:
    """Return the runtime, with its weights on the GPU. `threads`: of operators that run on the CPU; 0: one per core.

    `device` "cpu" is for tests. Raises UserError if onnxruntime cannot use the GPU.
    """
    return OnnxCuda(bundle, threads, device)
