"""ModelSpec: one model has one identity, one form, and a wrong one is told what is wrong with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedmask import layers, spec
from seedmask.errors import SpecError
from seedmask.seed import sign_bits
from seedmask.spec import Conv2d, Flatten, GroupNorm, Linear, MaxPool2d, ModelSpec, ReLU, Tensor, from_json, scale_bits

settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

VECTORS = json.loads((Path(__file__).parent / "vectors" / "v3.json").read_text())

MODEL = ModelSpec(
    name="net",
    seed=7,
    input=(1, 8, 8),
    range=(0, 255),
    classes=3,
    layers=(Conv2d("c", None, (1, 1), (1, 1)), ReLU(), MaxPool2d((2, 2)), Flatten(), Linear("f", "b")),
    tensors=(
        Tensor("c", (2, 1, 3, 3), scale_bits(0.25)),
        Tensor("f", (3, 32), scale_bits(0.5)),
        Tensor("b", (3,), scale_bits(0.125)),
    ),
)


def test_a_spec_comes_back_from_its_canonical_form() -> None:
    assert from_json(MODEL.canonical()) == MODEL


def test_the_identity_is_the_digest_of_the_canonical_form() -> None:
    assert MODEL.digest == hashlib.sha256(MODEL.canonical()).digest()


@pytest.mark.parametrize(
    "other",
    [
        {"name": "nets"},
        {"seed": 8},
        {"range": (0, 254)},
        {"layers": MODEL.layers[:1] + MODEL.layers[2:]},
        {"tensors": (replace(MODEL.tensors[0], scale=MODEL.tensors[0].scale + 1), *MODEL.tensors[1:])},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_model_has_another_identity(other: dict[str, Any]) -> None:
    assert replace(MODEL, **other).digest != MODEL.digest


def test_weights_are_signed_constants_in_the_order_of_the_tensors() -> None:
    weights, signs = MODEL.weights(), sign_bits(7, MODEL.d)
    constants = np.repeat(np.array([0.25, 0.5, 0.125], np.float32), [18, 96, 3])
    assert weights.dtype == np.float32
    assert np.array_equal(weights, np.where(signs == 1, -constants, constants))
    assert MODEL.offsets["b"] == (MODEL.tensors[2], 114)


def test_shapes_follow_the_layers() -> None:
    assert MODEL.shapes() == [(1, 8, 8), (2, 8, 8), (2, 8, 8), (2, 4, 4), (32,), (3,)]


GRAPH = ModelSpec(
    name="graph",
    seed=9,
    input=(2, 6, 8),
    range=(0, 1),
    classes=3,
    layers=(
        Conv2d("c", None, (2, 1), (2, 1), 2, (2, 1)),
        layers.GELU("tanh"),
        layers.AvgPool2d((3, 2), source=1),
        MaxPool2d((3, 2), source=2),
        layers.Add((3, 4)),
        layers.Reshape((4, 4)),
        layers.Permute((1, 0)),
        Linear("f", "b"),
        layers.LayerNorm(1),
        layers.Add((9, 8, 9)),
        layers.Concat((10, 7), 1),
        layers.Mean((0,)),
        layers.Mean((1, 2), source=2),
        layers.Concat((12, 13), 0),
        Linear("h", None),
    ),
    tensors=(
        Tensor("c", (4, 1, 3, 3), scale_bits(0.25)),
        Tensor("f", (5, 4), scale_bits(0.5)),
        Tensor("b", (5,), scale_bits(0.5)),
        Tensor("h", (3, 13), scale_bits(0.5)),
    ),
)


def test_a_graph_comes_back_from_its_canonical_form_without_what_is_a_default() -> None:
    assert from_json(GRAPH.canonical()) == GRAPH
    text = GRAPH.canonical().decode()
    assert (text.count('"source":'), text.count('"sources":')) == (3, 4)
    assert '{"bias":null,"dilation":[2,1],"groups":2,"op":"conv2d"' in text
    assert "loss" not in text
    assert '"loss":"mse"' in replace(GRAPH, loss="mse").canonical().decode()


def test_a_graphs_values_have_shapes_and_takers() -> None:
    image, rows = (4, 3, 8), (4, 5)
    assert GRAPH.shapes()[:6] == [(2, 6, 8), image, image, (4, 1, 4), (4, 1, 4), (4, 1, 4)]
    assert GRAPH.shapes()[6:] == [(4, 4), (4, 4), rows, rows, rows, (4, 9), (9,), (4,), (13,), (3,)]
    assert GRAPH.takers[:4] == [[0], [1, 2], [3, 12], [4]]
    assert GRAPH.takers[8:11] == [[8, 9], [9, 9], [10]]
    assert GRAPH.takers[-1] == []


def changed(number: int, layer: layers.Layer) -> dict[str, Any]:
    return {"layers": (*GRAPH.layers[:number], layer, *GRAPH.layers[number + 1 :])}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (changed(1, layers.GELU("tanh", source=2)), r"layer 1 \(gelu\): source: an integer 0 .. 1 expected, found 2"),
        (changed(1, layers.GELU("tanh", source=-1)), "found -1"),
        (changed(1, layers.GELU("tanh", source=1)), "takes anyway; leave it out"),
        (changed(1, layers.GELU("tanh", source=True)), "an integer 0 .. 1 expected, found True"),
        (changed(1, layers.GELU("fast")), "approximate is 'none' or 'tanh', found 'fast'"),
        (changed(1, layers.SiLU(source=0)), r"layer 3 \(maxpool2d\): gives a shape of \[2, 2, 4\]|cannot be added"),
        (changed(4, layers.Add((3,))), "sources: 2 to 1024 integers expected"),
        (changed(4, layers.Add((3, 5))), "an integer 0 .. 4 expected, found 5"),
        (changed(4, layers.Add((3, 2))), r"\[4, 1, 4\] and \[4, 3, 8\] cannot be added"),
        (changed(4, layers.Add((3, 3))), r"layer 3 \(maxpool2d\): nothing takes what it gives"),
        (changed(4, layers.Add(tuple([3] * 2000))), "2 to 1024 integers"),
        (changed(10, layers.Concat((10, 7), 0)), "do not fit together along axis 0"),
        (changed(10, layers.Concat((10, 7), 2)), "axis: an integer 0 .. 1 expected, found 2"),
        (changed(10, layers.Concat((10, 6, 3), 1)), "do not fit together along axis 1"),
        (changed(5, layers.Reshape((4, 5))), r"\[4, 1, 4\] is not as many values as \[4, 5\]"),
        (changed(5, layers.Reshape((1 << 28, 1 << 28, 1 << 28))), "is not as many values"),
        (changed(5, layers.Reshape((1 << 29, 1))), "an integer 1 .. 268435456 expected"),
        (changed(5, layers.Reshape(tuple([1] * 90_000))), "1 to 6 integers expected"),
        (changed(6, layers.Permute((0, 0))), "order names each of 2 dimensions once"),
        (changed(6, layers.Permute((0, 1, 2))), "2 integers expected"),
        (changed(8, layers.LayerNorm(3)), "dims: an integer 1 .. 2 expected, found 3"),
        (changed(8, layers.RMSNorm(0)), "dims: an integer 1 .. 2 expected, found 0"),
        (changed(11, layers.Mean((0, 1))), "axes ascend and leave one of 2 dimensions at least"),
        (changed(11, layers.Mean((0, 0))), "axes ascend"),
        (changed(11, layers.Mean((2,))), "axes: an integer 0 .. 1 expected, found 2"),
        (
            changed(0, Conv2d("c", None, (2, 1), (2, 1), 3, (2, 1))),
            r"does not take an input of \[2, 6, 8\] in 3 groups",
        ),
        (changed(0, Conv2d("c", None, (2, 1), (2, 1), 1, (2, 1))), r"does not take an input of \[2, 6, 8\]"),
        (changed(0, Conv2d("c", None, (2, 1), (2, 1), 2, (1024, 1))), r"gives a shape of \[4, -1019, 8\]"),
        (changed(0, Conv2d("c", None, (2, 1), (2, 1), 2, (2, 0))), "dilation: an integer 1 .. 1024 expected, found 0"),
        (changed(0, Conv2d("c", None, (2, 1), (2, 1), 2, (2,))), "dilation: 2 integers expected"),  # type: ignore[arg-type]
        (changed(2, layers.AvgPool2d((4, 2), source=1)), r"gives a shape of \[4, 0, 4\]"),
        (changed(3, MaxPool2d((3, 2), source=9)), "an integer 0 .. 3 expected, found 9"),
        ({"loss": "hinge"}, "loss is one of cross-entropy, mse, found 'hinge'"),
        ({"layers": (*GRAPH.layers, ReLU(source=14))}, r"gives \[13\], the model has 3 classes"),
        ({"layers": (*GRAPH.layers, layers.ReLU6(), ReLU(source=15))}, r"layer 15 \(relu6\): nothing takes"),
    ],
)
def test_a_graph_whose_parts_do_not_fit_says_where(change: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        replace(GRAPH, **change)


def test_doubling_in_a_circle_of_layers_ends_at_the_limit() -> None:
    """Forty concatenations of a value with itself: 2^40 values, but none is ever computed."""
    doubled = tuple(layers.Concat((i, i), 0) for i in range(40))
    with pytest.raises(SpecError, match=r"layer 2\d \(concat\): gives a shape"):
        replace(MODEL, input=(8,), layers=(*doubled, *MODEL.layers))


def test_one_output_is_enough_for_an_error_and_not_for_classes() -> None:
    one = ModelSpec("one", 0, (2,), (0, 1), 1, (Linear("w", None),), (Tensor("w", (1, 2), 1),), "mse")
    assert (one.outputs, from_json(one.canonical())) == ("outputs", one)
    with pytest.raises(SpecError, match=r"classes: an integer 2 \.\. 65536 expected, found 1"):
        replace(one, loss="cross-entropy")


def test_normalisation_keeps_shape_and_has_no_weight() -> None:
    layers = (MODEL.layers[0], GroupNorm(2), *MODEL.layers[1:], GroupNorm(1))
    normalised = replace(MODEL, layers=layers)
    assert normalised.d == MODEL.d
    assert normalised.shapes()[1:3] == [(2, 8, 8), (2, 8, 8)]
    assert normalised.shapes()[-1] == (3,)
    assert b'{"groups":2,"op":"groupnorm"}' in normalised.canonical()
    assert from_json(normalised.canonical()) == normalised


def test_inputs_are_mapped_from_their_range_to_minus_one_and_one() -> None:
    assert MODEL.normalise(np.array([0, 127.5, 255])).tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("vector", VECTORS["rejects"]["specs"], ids=lambda vector: vector["why"])
def test_a_bad_form_is_a_spec_error(vector: dict[str, str]) -> None:
    with pytest.raises(SpecError):
        from_json(vector["json"].encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_another_encoding_is_not_canonical(encoding: str) -> None:
    with pytest.raises(SpecError):
        from_json(MODEL.canonical().decode().encode(encoding))


def test_a_spec_has_a_limit() -> None:
    with pytest.raises(SpecError, match="at most 1048576 bytes"):
        from_json(b" " * (spec.MAX_SPEC_BYTES + 1))


def test_thousands_of_dimensions_are_refused_before_they_are_multiplied() -> None:
    shape = tuple([1 << 28] * 90_000)
    with pytest.raises(SpecError, match="90000 dimensions"):
        replace(MODEL, tensors=(Tensor("c", shape, 1), *MODEL.tensors[1:]))


def test_a_deeply_nested_form_is_a_spec_error() -> None:
    with pytest.raises(SpecError):
        from_json(b"[" * 500_000)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "Net"}, "name"),
        ({"seed": 1 << 64}, "seed"),
        ({"classes": 4}, "4 classes"),
        ({"range": (1, 1)}, "low < high"),
        ({"input": (1, 1 << 20, 1 << 20)}, "at most 268435456 values"),
        ({"input": (2, 8, 8)}, r"layer 0 \(conv2d\)"),
        ({"tensors": MODEL.tensors[:2]}, "in the order"),
        ({"tensors": MODEL.tensors[::-1]}, "in the order"),
        ({"layers": MODEL.layers[:3] + MODEL.layers[4:]}, r"layer 3 \(linear\)"),
        ({"layers": (Conv2d("c", None, (1, 1), (0, 2000)), *MODEL.layers[1:])}, "padding"),
        ({"layers": (*MODEL.layers[:2], GroupNorm(0), *MODEL.layers[2:])}, r"layer 2 \(groupnorm\): groups"),
        ({"layers": (*MODEL.layers[:2], GroupNorm(3), *MODEL.layers[2:])}, "does not make 3 equal groups"),
        (
            {"layers": (*MODEL.layers, GroupNorm(3))},
            r"layer 5 \(groupnorm\): \[3\] does not make 3 equal groups of more",
        ),
        ({"layers": (*MODEL.layers[:2], MaxPool2d((9, 1)), *MODEL.layers[3:])}, r"layer 2 \(maxpool2d\)"),
    ],
)
def test_a_spec_whose_parts_do_not_fit_says_where(change: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        replace(MODEL, **change)


def test_a_tensor_can_be_used_once_only() -> None:
    tensor = Tensor("w", (2, 2), 1)
    with pytest.raises(SpecError, match="once each"):
        ModelSpec("twice", 0, (2,), (0, 1), 2, (Linear("w", None), Linear("w", None)), (tensor, tensor))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([MODEL, GRAPH]), JSON | st.integers(-2, 16) | st.lists(st.integers(0, 15)), st.data())
@settings(max_examples=500)
def test_any_value_in_any_place_is_a_spec_or_a_spec_error(model: ModelSpec, value: Any, data: st.DataObject) -> None:
    whole = json.loads(model.canonical())
    at: Any = whole
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = value
    data_ = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
    try:
        found = from_json(data_)
    except SpecError:
        return
    assert found.canonical() == data_
