"""Convolutions by minimal filtering, and images that lie as [height, width, batch, channels] for them.

The matrices against what a correlation is; and networks that go in and out of that layout, whose steps are held to the
reference, which knows nothing of either.
"""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from capabilities import requires

requires("onnx", "onnxruntime")

import onnx  # noqa: E402
import test_onnx_steps as steps  # noqa: E402
import test_runtimes as contract  # noqa: E402

from edge_client.runtimes import (  # noqa: E402
    MicroBatchPlan,
    footprint,
    open_runtime,
)
from export import spatial, winograd  # noqa: E402
from export.make import make_bundle  # noqa: E402
from export.spatial import pays  # noqa: E402
from seedmask import layers  # noqa: E402
from seedmask.bundle import Bundle  # noqa: E402
from seedmask.spec import Conv2d, Flatten, GroupNorm, Linear, MaxPool2d, ModelSpec, ReLU  # noqa: E402

pytestmark = pytest.mark.export


def test_the_estimate_of_memory_knows_which_convolutions_are_of_few_numbers() -> None:
    found = Counter[bool]()
    for out, channels, side, groups in itertools.product((16, 32, 64), (1, 3, 32), (1, 3, 5), (1, 2)):
        layer, kernel = Conv2d("a", None, (1, 1), (0, 0), groups), (out, channels, side, side)
        assert footprint.is_of_few(layer, kernel) == spatial.is_of_few(layer, kernel)
        found[spatial.is_of_few(layer, kernel)] += 1
    assert min(found[True], found[False]) > 0


@pytest.mark.parametrize("m", winograd.POINTS)
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_an_axis_correlates_and_its_transposes_are_the_gradients(m: int, padding: int) -> None:
    rng = np.random.default_rng(m)
    for side in range(3, 20):
        axis = winograd.axis(side, padding, m)
        x, taps, dy = rng.normal(size=side), rng.normal(size=3), rng.normal(size=side + 2 * padding - 2)
        padded = np.pad(x, (axis.before, axis.after))
        inside = axis.into @ padded[axis.places]
        found = (axis.out @ ((axis.taps @ taps)[:, None] * inside)).T.reshape(-1)
        truth = np.correlate(np.pad(x, padding), taps, "valid")
        assert axis.before == padding
        assert len(found) >= len(truth) > len(found) - m
        assert np.abs(found[: len(truth)] - truth).max() <= 1e-6 * np.linalg.norm(x) * np.linalg.norm(taps)

        slope = axis.out.T @ np.pad(dy, (0, len(found) - len(dy))).reshape(-1, m).T
        by_taps = axis.taps.T @ (slope * inside).sum(1)
        expected = np.correlate(np.pad(x, padding), dy, "valid")
        assert np.abs(by_taps - expected).max() <= 1e-6 * np.linalg.norm(x) * np.linalg.norm(dy)
        dx = axis.back @ ((axis.taps @ taps)[:, None] * slope).reshape(-1)
        expected = np.convolve(dy, taps)[padding : padding + side]
        assert np.abs(dx - expected).max() <= 1e-6 * np.linalg.norm(dy) * np.linalg.norm(taps)


# Every layer in between keeps the layout or leaves it: ragged tiles and pools, sums and products of both kinds.
MIXED = contract.spec_of(
    "mixed",
    (2, 11, 10),
    [
        Conv2d("a.weight", "a.bias", (1, 2), (1, 2), dilation=(2, 1)),  # few numbers for each result; [32, 9, 6]
        ReLU(),
        Conv2d("b.weight", "b.bias", (1, 1), (0, 1)),  # [32, 7, 6]
        GroupNorm(4),
        layers.SiLU(),
        Conv2d("c.weight", None, (1, 1), (1, 1)),
        layers.Add((6, 5, 6)),
        Conv2d("d.weight", None, (1, 1), (0, 0), 32),  # 1x1 by channels, not filtered
        layers.Add((8, 7)),
        layers.RMSNorm(2),
        Conv2d("e.weight", "e.bias", (1, 1), (2, 2)),  # [48, 9, 8]
        layers.GELU(),
        MaxPool2d((2, 3), source=11),  # [48, 4, 2], rows and columns left over
        layers.ReLU6(),
        layers.AvgPool2d((2, 2), source=12),  # [48, 4, 4]
        Conv2d("f.weight", None, (1, 1), (1, 0)),  # [48, 4, 2]
        layers.Concat((14, 16), 0),
        layers.Mean((1, 2)),
        Flatten(),
        Linear("g.weight", None),
    ],
    {
        "a.weight": (32, 2, 3, 3),
        "a.bias": (32,),
        "b.weight": (32, 32, 3, 3),
        "b.bias": (32,),
        "c.weight": (32, 32, 3, 3),
        "d.weight": (32, 1, 1, 1),
        "e.weight": (48, 32, 3, 3),
        "e.bias": (48,),
        "f.weight": (48, 48, 3, 3),
        "g.weight": (10, 96),
    },
)
# Scales and shifts of channels go along, those of places within an image do not.
EXACT = contract.spec_of(
    "exact",
    (32, 6, 5),
    [
        Conv2d("a.weight", None, (1, 1), (1, 1)),
        GroupNorm(4, "n.scale", "n.shift"),
        ReLU(),
        Conv2d("b.weight", "b.bias", (1, 1), (1, 1)),
        layers.LayerNorm(3, "k.scale"),
        layers.Tanh(),
        Conv2d("c.weight", None, (1, 1), (1, 1)),  # wide: rounds more, so F(2, 3) across
        layers.Mean((1, 2)),
        Flatten(),
        Linear("d.weight", None),
    ],
    {
        "a.weight": (32, 32, 3, 3),
        "n.scale": (32,),
        "n.shift": (32,),
        "b.weight": (24, 32, 3, 3),
        "b.bias": (24,),
        "k.scale": (24, 6, 5),
        "c.weight": (96, 24, 3, 3),
        "d.weight": (10, 96),
    },
    {
        **dict.fromkeys(("n.scale", "k.scale"), ("exact", 1)),
        **dict.fromkeys(("n.shift", "b.bias"), ("exact", 0)),
        "c.weight": ("frozen", 0),
    },
)
SPECS = [pytest.param(spec, id=spec.name) for spec in (MIXED, EXACT)]


@cache
def gradient_bundle(spec: ModelSpec) -> Bundle:
    return make_bundle(spec, contract.BATCH)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("n", "micro"), [(contract.BATCH, contract.BATCH), (7, 3), (1, 1)])
def test_a_step_is_that_of_the_reference(spec: ModelSpec, n: int, micro: int) -> None:
    given = contract.example(spec, n)
    truth = open_runtime("reference", Bundle(spec, contract.BATCH, {}), 1).step(*given, contract.ADAM)
    found = open_runtime("onnxruntime", gradient_bundle(spec), 1, MicroBatchPlan(micro, "cpu")).step(
        *given, contract.ADAM
    )
    contract.assert_same(found, truth)


@pytest.mark.parametrize("spec", SPECS)
def test_a_whole_step_in_one_graph_is_that_of_the_reference(spec: ModelSpec) -> None:
    given = contract.example(spec, 7)
    truth = open_runtime("reference", Bundle(spec, contract.BATCH, {}), 1).step(*given, contract.ADAM)
    contract.assert_same(steps.run("onnx", spec, *given, contract.ADAM), truth)


def turns(spec: ModelSpec) -> tuple[int, Counter[str]]:
    """How often a graph turns an image from one layout to the other, and how many nodes of each kind it has."""
    graph: Any = onnx.load_from_string(make_bundle(spec, 8).files["onnx/grads.onnx"]).graph
    perms = [list(node.attribute[0].ints) for node in graph.node if node.op_type == "Transpose"]
    return perms.count([2, 3, 0, 1]), Counter(node.op_type for node in graph.node)


def test_images_are_turned_only_where_convolutions_end() -> None:
    """Before the linear layers, and on the way back; nothing between is copied, and nothing is left to Conv."""
    net = contract.spec_of(
        "net",
        (1, 12, 12),
        [
            *(Conv2d("a.weight", "a.bias", (1, 1), (1, 1)), ReLU(), Conv2d("b.weight", None, (1, 1), (1, 1))),
            *(GroupNorm(8), ReLU(), Conv2d("c.weight", "c.bias", (1, 1), (1, 1)), MaxPool2d((2, 2)), ReLU()),
            *(Flatten(), Linear("d.weight", None)),
        ],
        {
            "a.weight": (32, 1, 3, 3),
            "a.bias": (32,),
            "b.weight": (32, 32, 3, 3),
            "c.weight": (32, 32, 3, 3),
            "c.bias": (32,),
            "d.weight": (10, 1152),
        },
    )
    count, nodes = turns(net)
    assert count == 2
    assert nodes["Conv"] + nodes["ConvTranspose"] == 0


@pytest.mark.parametrize(
    ("layer", "kernel", "side", "expected"),
    [
        (Conv2d("w", None, (1, 1), (1, 1)), (64, 64, 3, 3), 28, True),
        (Conv2d("w", None, (1, 1), (1, 1)), (64, 64, 3, 3), 8, True),
        (Conv2d("w", None, (1, 1), (1, 1)), (4, 4, 3, 3), 32, False),  # transforms are all there is
        (Conv2d("w", None, (1, 1), (1, 1)), (512, 512, 3, 3), 1, False),  # the tile is mostly padding
        (Conv2d("w", None, (2, 2), (1, 1)), (64, 64, 3, 3), 28, False),
        (Conv2d("w", None, (1, 1), (1, 1), dilation=(2, 2)), (64, 64, 3, 3), 28, False),
        (Conv2d("w", None, (1, 1), (1, 1), groups=2), (64, 32, 3, 3), 28, False),
        (Conv2d("w", None, (1, 1), (2, 2)), (64, 64, 5, 5), 28, False),
    ],
)
def test_what_is_filtered_is_chosen_by_shape(layer: Conv2d, kernel: Any, side: int, expected: bool) -> None:
    before = (kernel[1] * layer.groups, side, side)
    after = layer.after([before], {"w": kernel})
    assert pays(layer, kernel, before, after) is expected
