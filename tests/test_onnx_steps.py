"""The whole training steps of the `onnx` and `onnx-gpu` targets, as a caller without our Python runs them.

A browser, or a program in another language, has the step as one graph; the Python runtime has the gradient alone. Both
are held to the reference, on the CPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from capabilities import requires

requires("onnxruntime", "onnx")

import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
import test_runtimes as contract  # noqa: E402

from edge_client.runtimes import State, StepConfig, StepResult, corrected, open_runtime, pulls, step_exact  # noqa: E402
from export.make import make_bundle  # noqa: E402
from seedmask.bundle import Bundle  # noqa: E402
from seedmask.spec import ModelSpec  # noqa: E402

pytestmark = pytest.mark.export

# Operators that onnxruntime's WebGPU provider has kernels for (its webgpu_execution_provider.cc), among them those of
# the CUDA provider; what only moves shapes about has none and needs none.
ON_GPUS = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "Neg", "Exp", "Log", "Erf", "Sigmoid", "Tanh", "Relu"),
        *("Cast", "Where", "Equal", "Greater", "GreaterOrEqual", "Less", "Concat", "Split", "Slice", "Pad", "Expand"),
        *("Gather", "Range", "Transpose", "Reshape", "Unsqueeze", "Shape", "If", "Identity", "Conv", "ConvTranspose"),
        *("Gemm", "MatMul", "ArgMax", "ReduceSum", "ReduceMean", "ReduceMax"),
    }
)


@cache
def bundle_of(spec: ModelSpec) -> Bundle:
    return make_bundle(spec, contract.BATCH, ["onnx", "onnx-gpu"])


@cache
def session(spec: ModelSpec, folder: str, optimizer: str) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    name = f"{folder}/{'step' if optimizer == 'adam' else 'step_sgd'}.onnx"
    return ort.InferenceSession(bundle_of(spec).file(name), options, providers=["CPUExecutionProvider"])


def run(folder: str, spec: ModelSpec, x: Any, y: Any, state: State, noise: Any, rule: StepConfig) -> StepResult:
    """One step by hand: what the graph's docstring says it takes."""
    n, batch, none = len(y), contract.BATCH, np.zeros(1, np.float32)
    kind = np.float32 if spec.loss == "mse" else {"onnx": np.int64, "onnx-gpu": np.int32}[folder]

    def padded(values: Any, dtype: Any) -> Any:
        return np.concatenate([values, np.zeros((batch - n, *values.shape[1:]))]).astype(dtype)

    rate, epsilon = corrected(rule.rate, state.t + 1) if rule.optimizer == "adam" else (rule.rate, 0.0)
    feeds = {
        "x": padded(x, np.float32),
        "y": padded(y, kind),
        "weight": padded(np.full(n, 1 / n), np.float32),
        "scores": state.scores,
        "w": spec.weights(),
        "u": noise,
        "anchor": state.anchor if rule.kl else none,
        "rate": np.array(rate, np.float32),
        "mean": np.array(rule.mean),
        "plain": np.array(rule.plain),
        "terms": np.array([rule.times_theta, *pulls(rule, spec.d)], np.float32),
        "m": state.m if "m" in rule.needs else none,
    }
    feeds |= (
        {"v": state.v, "epsilon": np.array(epsilon, np.float32)}
        if rule.optimizer == "adam"
        else {"momentum": np.array(rule.momentum, np.float32)}
    )
    unmasked = {"frozen": spec.frozen(), "exact": state.exact.values}
    feeds |= {name: values for name, values in unmasked.items() if values.size}
    names = ["scores_out", "loss", "correct", *(f"{name}_out" for name in ("m", "v") if name in rule.needs)]
    names += ["exact_grad"] if spec.e else []
    found = dict(zip(names, session(spec, folder, rule.optimizer).run(names, feeds), strict=True))
    m, v = found.get("m_out", state.m), found.get("v_out", state.v)
    exact = step_exact(state.exact, found["exact_grad"], rule, state.t + 1) if spec.e else state.exact
    after = State(found["scores_out"], m, v, state.t + 1, state.anchor, exact)
    return StepResult(after, float(found["loss"]), int(found["correct"]))


@pytest.mark.parametrize("folder", ["onnx", "onnx-gpu"])
@pytest.mark.parametrize("spec", [*contract.SPECS, pytest.param(contract.REGRESSION, id="regression")])
@pytest.mark.parametrize("n", [contract.BATCH, 5])
def test_a_whole_step_in_one_graph_is_that_of_the_reference(folder: str, spec: ModelSpec, n: int) -> None:
    given = contract.example(spec, n)
    truth = open_runtime("reference", Bundle(spec, contract.BATCH, {}), 1).step(*given, contract.ADAM)
    contract.assert_same(run(folder, spec, *given, contract.ADAM), truth)


@pytest.mark.parametrize("folder", ["onnx", "onnx-gpu"])
@pytest.mark.parametrize("rule", contract.RULES)
def test_every_rule_in_one_graph_is_that_of_the_reference(folder: str, rule: str) -> None:
    given = contract.example(contract.DENSE, 7, seed=2)
    truth = open_runtime("reference", Bundle(contract.DENSE, contract.BATCH, {}), 1).step(*given, contract.RULES[rule])
    contract.assert_same(run(folder, contract.DENSE, *given, contract.RULES[rule]), truth)


def operators(graph: Any) -> set[str]:
    inside = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return {node.op_type for node in graph.node}.union(*map(operators, inside))


@pytest.mark.parametrize("spec", [*contract.SPECS, pytest.param(contract.REGRESSION, id="regression")])
def test_the_gpu_variant_has_no_operator_that_gpus_lack(spec: ModelSpec) -> None:
    for name, data in bundle_of(spec).files.items():
        if name.startswith("onnx-gpu/"):
            graph = onnx.load_from_string(data).graph
            assert operators(graph) <= ON_GPUS
            wide = [each.name for each in graph.input if each.type.tensor_type.elem_type == onnx.TensorProto.INT64]
            assert wide == []


def test_a_gradient_of_a_convolution_without_stride_needs_no_convtranspose() -> None:
    graph = onnx.load_from_string(bundle_of(contract.GRAPH).files["onnx-gpu/step.onnx"]).graph
    strided = sum(layer.stride != (1, 1) for layer in contract.GRAPH.layers if layer.op == "conv2d")
    assert sum(node.op_type == "ConvTranspose" for node in graph.node) == strided
