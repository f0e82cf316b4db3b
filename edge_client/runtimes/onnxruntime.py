"""Training on onnxruntime's plain inference package: the step is a graph of the bundle, made by `export`.

Nothing here differentiates; the graph does. CPU provider only. The frozen weights are computed once, by the
bundle's init graph from the seed, and handed to every step; the device keeps no file of them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.runtimes import (
    F32,
    NOTHING,
    Rule,
    State,
    StepResult,
    Targets,
    check_logits,
    check_step,
    corrected,
    finite,
    pulls,
)
from seedmask.bundle import Bundle
from seedmask.seed import weights_key

NAME: Final = "onnxruntime"
NEEDS: Final = ("onnxruntime",)
_STEPS: Final = {"adam": "onnx/step.onnx", "sgd": "onnx/step_sgd.onnx"}
GRAPHS: Final = ("onnx/init.onnx", *_STEPS.values(), "onnx/eval.onnx")
_ZERO: Final[F32] = np.zeros(1, np.float32)  # in place of a vector that the rule multiplies by zero


class OnnxRuntime:
    """One model on two sessions, step and eval."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.bundle = bundle
        init = session(bundle.file("onnx/init.onnx"), threads)
        key = np.array(weights_key(bundle.spec.seed), np.int64)
        self.w: F32
        self._frozen: dict[str, F32] = {}
        if bundle.spec.count("frozen"):
            self.w, self._frozen["frozen"] = init.run(["w", "frozen"], {"key": key})
        else:
            self.w = init.run(["w"], {"key": key})[0]
        self._threads = threads
        self._steps: dict[str, Any] = {}
        self._session_of("adam")  # now, since a bundle that cannot train should say so at the start
        self._eval = session(bundle.file("onnx/eval.onnx"), threads)

    def step(self, x: F32, y: Targets, state: State, noise: F32, rule: Rule) -> StepResult:
        """One step on the scores; see `edge_client.runtimes.Runtime`."""
        check_step(self.bundle, x, y, state, noise, rule)
        n, batch, d = len(y), self.bundle.batch, self.bundle.spec.d
        t, needs = state.t + 1, rule.needs
        rate, feeds = rule.rate, {"m": vector(state.m) if "m" in needs else _ZERO}
        if rule.optimizer == "adam":
            rate, epsilon = corrected(rule.rate, t)
            feeds |= {"v": vector(state.v), "epsilon": np.array(epsilon, np.float32)}
        else:
            feeds["momentum"] = np.array(rule.momentum, np.float32)
        moments = [name for name in ("m", "v") if name in needs]
        by_exact = ["exact_grad"] if self.bundle.spec.e else []
        scores, loss, correct, *after = self._session_of(rule.optimizer).run(
            ["scores_out", "loss", "correct", *(f"{name}_out" for name in moments), *by_exact],
            {
                "x": _padded(x, batch, np.float32),
                "y": _padded(y, batch, np.float32 if self.bundle.spec.loss == "mse" else np.int64),
                "weight": _padded(np.full(n, 1 / n), batch, np.float32),
                "scores": vector(state.scores),
                "w": self.w,
                "u": vector(noise),
                "anchor": vector(state.anchor) if "anchor" in needs else _ZERO,
                "rate": np.array(rate, np.float32),
                "mean": np.array(rule.mean),
                "plain": np.array(rule.plain),
                "terms": np.array([rule.times_theta, *pulls(rule, d)], np.float32),
                **feeds,
                **self._unmasked(state.exact.values),
            },
        )
        exact = state.exact.stepped(after.pop(), rule, t) if by_exact else state.exact
        m, v = (dict(zip(moments, after, strict=True)).get(name, getattr(state, name)) for name in ("m", "v"))
        return finite(StepResult(State(scores, m, v, t, state.anchor, exact), float(loss), int(correct)))

    def _unmasked(self, exact: F32) -> dict[str, F32]:
        """What graphs take beside masked weights, where the spec has any."""
        return {**self._frozen, **({"exact": vector(exact)} if self.bundle.spec.e else {})}

    def _session_of(self, optimizer: str) -> Any:
        """The session of one optimiser's step; a job has one, so the other is never loaded."""
        if optimizer not in self._steps:
            self._steps[optimizer] = session(self.bundle.file(_STEPS[optimizer]), self._threads)
        return self._steps[optimizer]

    def logits(self, x: F32, mask: F32, exact: F32 = NOTHING) -> F32:
        """Class scores [n, classes]; see `edge_client.runtimes.Runtime`."""
        check_logits(self.bundle, x, mask, exact)
        return predicted(self._eval, self.bundle, x, {"w": self.w, "mask": vector(mask), **self._unmasked(exact)})


def open_runtime(bundle: Bundle, threads: int) -> OnnxRuntime:
    """Load the graphs and compute the weights; `threads` 0 is one per core."""
    return OnnxRuntime(bundle, threads)


def session(model: bytes, threads: int) -> Any:
    """An onnxruntime.InferenceSession of `model` on the CPU; `threads` 0 is one per core."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Planned memory is faster by a few per cent at most, and CONV-4's step peaks at 302 MB with it (batch
    # 32), at 236 without; at batch 128 it is 727 and 406.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    # Waiting threads sleep instead of spinning: batteries, and neighbours on the same cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def predicted(evaluation: Any, bundle: Bundle, x: F32, feeds: dict[str, F32]) -> F32:
    """What a session of an evaluation graph gives for x [n, *input] beside `feeds`, float32 [n, classes]."""
    out = np.empty((len(x), bundle.spec.classes), np.float32)
    # A batch at a time, so that memory does not grow with the test set.
    for at in range(0, len(x), bundle.batch):
        part = np.ascontiguousarray(x[at : at + bundle.batch], np.float32)
        out[at : at + len(part)] = evaluation.run(["logits"], {"x": part, **feeds})[0]
    return out


def vector(values: F32) -> F32:
    """`values` as a graph takes them: float32, contiguous."""
    return np.ascontiguousarray(values, np.float32)


def _padded(values: npt.NDArray[Any], batch: int, kind: Any) -> npt.NDArray[Any]:
    """`values` as `kind`, zeros appended up to `batch` rows."""
    if len(values) == batch:
        return np.ascontiguousarray(values, kind)
    out = np.zeros((batch, *values.shape[1:]), kind)
    out[: len(values)] = values
    return out
