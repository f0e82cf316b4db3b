"""Runtime `onnxruntime`: training with onnxruntime's inference package, on the CPU.

The gradient is a graph in the bundle, which `export` made, so nothing is differentiated here. The random weights are
computed once from the seed, by the bundle's init graph, and never stored on the device. A step computes `micro`
examples at a time, all with one mask, and sums their gradients: it needs the memory of a few examples only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from edge_client.runtimes.arithmetic import step_exact
from edge_client.runtimes.checks import check_logits, check_step, finite
from edge_client.runtimes.contract import F32, NOTHING, MicroBatchPlan, State, StepConfig, StepResult, Targets
from edge_client.runtimes.footprint import MB, Footprint, activations, tiles
from edge_client.runtimes.masked_optimizer import MaskedOptimizer
from seedmask.bundle import Bundle
from seedmask.seed import weights_key

CPU: Final = "CPUExecutionProvider"
NEEDS: Final = ("onnxruntime",)
VARIANTS: Final = {"cpu": "onnx/grads.onnx", "lean": "onnx-lean/grads.onnx"}
GRAPHS: Final = ("onnx/init.onnx", VARIANTS["cpu"], "onnx/eval.onnx")
# Vectors: w, theta, gradient, noise, scores and moments before and after, and those for coding the mask at the end.
FOOTPRINT: Final = Footprint(80 * MB, 12.3, 2.3, 150, spare=2, graph=VARIANTS["cpu"], stacks=frozenset({"cpu"}))
# Bytes of activations of the default micro-batch: larger ones are not faster, and CONV-4's 128 at once are slower.
_ROOM: Final = 80 * MB


class OnnxRuntime:
    """Runtime of one model with two onnxruntime sessions: one for the gradient, one for evaluation."""

    def __init__(self, bundle: Bundle, threads: int, fit: MicroBatchPlan) -> None:
        self.bundle, self.fit = bundle, fit
        init = session(bundle.file("onnx/init.onnx"), threads)
        key = np.array(weights_key(bundle.spec.seed), np.int64)
        self.w: F32
        self._frozen: dict[str, F32] = {}
        if bundle.spec.count("frozen"):
            self.w, self._frozen["frozen"] = init.run(["w", "frozen"], {"key": key})
        else:
            self.w = init.run(["w"], {"key": key})[0]
        self._grads = session(bundle.file(VARIANTS[fit.variant]), threads)
        self._eval = session(bundle.file("onnx/eval.onnx"), threads)
        self._optimizer = MaskedOptimizer(self.w)

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: StepConfig) -> StepResult:
        """See Runtime."""
        check_step(self.bundle, x, y, state, noise, rule)
        # The masked weights and all partial gradients are freed before the optimiser needs memory.
        weights = {"masked": self._optimizer.draw(state.scores, noise, rule.mean), **self._unmasked(state.exact.values)}
        gradient, by_exact, loss, correct = self._summed(x, y, weights)
        weights.clear()
        exact = step_exact(state.exact, by_exact, rule, state.t + 1)
        return finite(StepResult(replace(self._optimizer.apply(gradient, state, rule), exact=exact), loss, correct))

    def _unmasked(self, exact: F32) -> dict[str, F32]:
        """Return the graphs' inputs for frozen weights and exact values, as far as the spec has such tensors."""
        return {**self._frozen, **({"exact": vector(exact)} if self.bundle.spec.e else {})}

    def _summed(self, x: F32, y: Targets, weights: dict[str, F32]) -> tuple[F32, F32, float, int]:
        """Return the gradients by masked weights [d] and exact values [e], the mean loss and the correct predictions.

        `weights`: one flat vector per kind of tensor.
        """
        first, *others = self.fit.parts(len(y))
        total = {"masked": self._optimizer.vector(), "exact": np.zeros(self.bundle.spec.e, np.float32)}
        loss, correct = self._gradient(x[first], y[first], len(y), weights, total)
        if others:
            gradient = {"masked": self._optimizer.vector(), "exact": np.zeros_like(total["exact"])}
        for part in others:
            lost, right = self._gradient(x[part], y[part], len(y), weights, gradient)
            for kind, whole in total.items():
                whole += gradient[kind]
            loss, correct = loss + lost, correct + right
        return total["masked"], total["exact"], loss, correct

    def _gradient(self, x: F32, y: Targets, n: int, weights: dict[str, F32], out: dict[str, F32]) -> tuple[float, int]:
        """Write the gradients of some of n examples to `out`; return their part of the loss and correct predictions."""
        kind = np.float32 if self.bundle.spec.loss == "mse" else np.int64
        binding = self._grads.io_binding()
        binding.bind_cpu_input("x", np.ascontiguousarray(x, np.float32))
        binding.bind_cpu_input("y", np.ascontiguousarray(y, kind))
        binding.bind_cpu_input("weight", np.full(len(y), 1 / n, np.float32))
        for name in ("loss", "correct"):
            binding.bind_output(name)
        # Bind views of the flat vectors, so that the graph neither splits nor joins them.
        for name, (tensor, at) in self.bundle.spec.offsets.items():
            part = slice(at, at + tensor.size)
            binding.bind_cpu_input(f"w.{name}", weights[tensor.kind][part].reshape(tensor.shape))
            if tensor.kind != "frozen":
                place = out[tensor.kind][part].ctypes.data
                binding.bind_output(f"g.{name}", "cpu", 0, np.float32, tensor.shape, place)
        self._grads.run_with_iobinding(binding)
        loss, correct = binding.get_outputs()[:2]
        return float(loss.numpy()), int(correct.numpy())

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """See Runtime."""
        check_logits(self.bundle, x, mask, exact)
        return predicted(self._eval, self.bundle, x, {"w": self.w, "mask": vector(mask), **self._unmasked(exact)})


def usual(bundle: Bundle) -> MicroBatchPlan:
    """Return the default plan: as many examples at a time as have their activations in _ROOM bytes."""
    most = _ROOM // (activations(bundle.spec, stacks=True) + tiles(bundle.spec))
    return MicroBatchPlan(min(bundle.batch, max(1, most)), "cpu")


def open_runtime(bundle: Bundle, threads: int, fit: MicroBatchPlan | None = None) -> OnnxRuntime:
    """Return the runtime, with its graphs loaded and its weights computed; `threads` 0: one per core."""
    return OnnxRuntime(bundle, threads, fit or usual(bundle))


def session(model: bytes, threads: int, providers: Sequence[Any] = (CPU,)) -> Any:
    """Return an onnxruntime.InferenceSession of `model` (bytes), by default on the CPU; `threads` 0: one per core."""
    import onnxruntime as ort

    _share_memory()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Planned memory is faster by a few per cent at most and takes more: CONV-4's step peaks at 302 MB with it and at
    # 236 MB without for a batch of 32, at 727 and 406 MB for a batch of 128.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    # Waiting threads sleep instead of spinning: this saves battery, and time of other processes on the same cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    return ort.InferenceSession(model, options, providers=list(providers))


@functools.cache
def _share_memory() -> None:
    """Make all sessions of this process share one arena, which grows by what is needed and not by powers of two."""
    import onnxruntime as ort

    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(place, ort.OrtArenaCfg({"arena_extend_strategy": 1}))


def predicted(evaluation: Any, bundle: Bundle, x: F32, feeds: dict[str, F32]) -> F32:
    """Return the class scores, float32 [n, classes], of x [n, *input]; `feeds`: the graph's other inputs."""
    out = np.empty((len(x), bundle.spec.classes), np.float32)
    # A batch at a time, so that memory does not grow with the test set.
    for at in range(0, len(x), bundle.batch):
        part = np.ascontiguousarray(x[at : at + bundle.batch], np.float32)
        out[at : at + len(part)] = evaluation.run(["logits"], {"x": part, **feeds})[0]
    return out


def vector(values: F32) -> F32:
    """Return `values` as a contiguous float32 array, for a graph."""
    return np.ascontiguousarray(values, np.float32)
