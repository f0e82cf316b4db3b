"""Export: which torch models become a ModelSpec, which are refused and in what words, and what a bundle then holds."""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capabilities import requires

import export as exporter
from export import export_bundle
from export.cli import COMMAND
from export.make import make_bundle, names
from seedmask import bundle, layers
from seedmask.errors import MissingPackageError, UserError
from seedmask.io import inspect
from seedmask.model import FinishedModel
from seedmask.spec import Conv2d, Flatten, GroupNorm, Linear, MaxPool2d, ReLU

pytestmark = pytest.mark.export


def test_the_command_is_known_where_torch_is_not() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from export.cli import COMMAND; print(COMMAND.name, COMMAND.needs)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "export ('torch', 'onnx')"


requires("torch", "onnx")

import onnx  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from export.trace import trace  # noqa: E402
from export.zoo import ZOO  # noqa: E402


class Chain(nn.Module):
    """What people write: layers in __init__, functions in forward()."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding="same"), nn.Identity(), nn.Sequential(nn.ReLU()))
        self.second = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), bias=False)
        self.head = nn.Linear(6 * 2 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.features(x), 2)
        x = F.relu(self.second(x))
        x = x.view(x.size(0), -1)
        return self.head(x)


def test_an_ordinary_forward_becomes_a_chain() -> None:
    spec = trace(Chain(), "chain", 7, (1, 8, 8), (0, 16), 10)
    assert spec.layers == (
        Conv2d("features.0.weight", "features.0.bias", (1, 1), (1, 1)),
        ReLU(),
        MaxPool2d((2, 2)),
        Conv2d("second.weight", None, (2, 1), (1, 2)),
        ReLU(),
        Flatten(),
        Linear("head.weight", "head.bias"),
    )
    names = ["features.0.weight", "features.0.bias", "second.weight", "head.weight", "head.bias"]
    assert [tensor.name for tensor in spec.tensors] == names
    assert (spec.seed, spec.input, spec.range, spec.classes) == (7, (1, 8, 8), (0, 16), 10)


@pytest.mark.parametrize(
    ("scale", "constant"),
    [
        ("kaiming", lambda fan_in: (2 / fan_in) ** 0.5),
        ("paper", lambda fan_in: 2.718281828459045 * fan_in**-0.5),
        ("unit", lambda fan_in: fan_in**-0.5),
    ],
)
def test_a_weights_size_follows_from_its_fan_in_and_a_bias_has_its_layers(
    scale: str, constant: Callable[[float], float]
) -> None:
    spec = trace(Chain(), "chain", 7, (1, 8, 8), scale=scale)
    fan_in = {"features.0": 9, "second": 60, "head": 48}
    for tensor in spec.tensors:
        wanted = constant(fan_in[tensor.name.rpartition(".")[0]])
        assert tensor.constant == struct.unpack("<f", struct.pack("<f", wanted))[0]


def test_a_gain_multiplies_every_weight_or_those_of_one_layer() -> None:
    plain, all_, each = (trace(Chain(), "chain", 7, (1, 8, 8), gain=gain) for gain in (1, 0.5, (1, 2, 0.25)))
    for tensor, half, own in zip(plain.tensors, all_.tensors, each.tensors, strict=True):
        factor = {"features": 1.0, "second": 2.0, "head": 0.25}[tensor.name.partition(".")[0]]
        assert (half.constant, own.constant) == (0.5 * tensor.constant, factor * tensor.constant)


@pytest.mark.parametrize("gain", [0.0, -1.0, (1.0, 1.0), (1.0, 1.0, float("inf")), float("nan")])
def test_a_gain_that_makes_no_weights_is_refused(gain: Any) -> None:
    with pytest.raises(UserError, match="a number above 0, or 3 of them, one for each layer; found"):
        trace(Chain(), "chain", 7, (1, 8, 8), gain=gain)


class Forward(nn.Module):
    """A module whose forward() is the function it is given, with a few layers to call."""

    def __init__(self, call: Callable[[Any, Any], Any], normalised: bool = False) -> None:
        super().__init__()
        self.call = call
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.other = nn.Conv2d(1, 1, 3, padding=1)
        self.act = nn.ReLU()
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = nn.Sequential(nn.Conv2d(1, 1, 1))
        self.tied = nn.Conv2d(1, 1, 3, padding=1)
        self.tied.weight = self.conv.weight
        self.head = nn.Linear(64, 10)
        if normalised:
            torch.nn.utils.weight_norm(self.inner[0])

    def forward(self, x: Any) -> Any:
        return self.call(self, x)


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: torch.flatten(x, 1),
        lambda x: torch.flatten(x, start_dim=1),
        lambda x: x.flatten(1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(x.shape[0], -1),
        lambda x: x.view(-1, 64),
        lambda x: x.reshape(x.size()[0], -1),
        lambda x: torch.reshape(x, (-1, 64)),
    ],
)
def test_every_way_to_flatten_is_one(flatten: Callable[[Any], Any]) -> None:
    spec = trace(Forward(lambda m, x: m.head(flatten(x))), "flat", 0, (1, 8, 8))
    assert spec.layers == (Flatten(), Linear("head.weight", "head.bias"))


@pytest.mark.parametrize(
    "relu", [F.relu, torch.relu, lambda x: x.relu(), lambda x: F.relu(x, inplace=True), lambda x: x.relu_()]
)
def test_every_relu_is_one_and_may_be_used_again(relu: Callable[[Any], Any]) -> None:
    model = Forward(lambda m, x: m.head(relu(m.act(m.act(x))).flatten(1)))
    assert trace(model, "relu", 0, (1, 8, 8)).layers[:3] == (ReLU(), ReLU(), ReLU())


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x, (2, 2), stride=2),
        lambda x: F.max_pool2d(x, kernel_size=2),
        lambda x: torch.max_pool2d(x, 2, 2),
        lambda x: F.max_pool2d(x, 2, 2, 0, 1),
    ],
)
def test_every_max_pool_is_one(pool: Callable[[Any], Any]) -> None:
    spec = trace(Forward(lambda m, x: m.head(pool(x).flatten(1))), "pool", 0, (1, 16, 16))
    assert spec.layers[0] == MaxPool2d((2, 2))


def test_normalisation_without_affine_is_groupnorm_and_layernorm_is_one_group() -> None:
    head = [nn.Flatten(), nn.LayerNorm(512, elementwise_affine=False), nn.Linear(512, 10)]
    norms = [nn.GroupNorm(4, 8, affine=False), nn.LayerNorm((8, 8, 8), elementwise_affine=False)]
    spec = trace(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *norms, *head), "norms", 0, (1, 8, 8))
    assert spec.layers[1:5] == (GroupNorm(4), GroupNorm(1), Flatten(), GroupNorm(1))
    assert spec.d == 9 * 8 + 8 + 5120 + 10


class Bottleneck(nn.Module):
    """A shortcut the way torchvision writes it: in-place ReLU, +=, a stride and a width that change."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, 2, 1, bias=False), norm(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), norm(8)
        self.downsample = nn.Sequential(nn.Conv2d(1, 8, 1, 2, bias=False), norm(8))
        self.relu, self.pool, self.fc = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.fc(torch.flatten(self.pool(self.relu(out)), 1))


def test_a_residual_net_keeps_its_shortcut_and_its_batchnorm_is_replaced_out_loud() -> None:
    said: list[str] = []
    spec = trace(Bottleneck(nn.BatchNorm2d), "b", 0, (1, 8, 8), replace_batchnorm="group", announce=said.append)
    assert [layer.op for layer in spec.layers] == (
        ["conv2d", "groupnorm", "relu", "conv2d", "groupnorm", "conv2d", "groupnorm", "add", "relu", "mean", "linear"]
    )
    assert [layer.takes(i) for i, layer in enumerate(spec.layers)][5:8] == [(0,), (6,), (5, 7)]
    assert said == [
        f"BatchNorm2d '{name}' is replaced by GroupNorm of 1 group (8 channels), without scales, shifts and running "
        "means"
        for name in ("bn1", "bn2", "downsample.1")
    ]
    with pytest.raises(UserError, match="BatchNorm2d 'bn1' is not supported: it has trained scales and running means"):
        trace(Bottleneck(nn.BatchNorm2d), "b", 0, (1, 8, 8))
    with pytest.raises(UserError, match="BatchNorm can be replaced by group; found 'layer'"):
        trace(Bottleneck(nn.BatchNorm2d), "b", 0, (1, 8, 8), replace_batchnorm="layer")


@pytest.mark.parametrize(
    ("channels", "groups"), [(3, 1), (16, 2), (24, 3), (64, 8), (144, 18), (512, 32), (1280, 32), (37, 1)]
)
def test_groups_in_place_of_a_batch_have_eight_channels_or_more(channels: int, groups: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels), nn.Flatten(), nn.Linear(channels * 4, 10)
    )
    spec = trace(model, "groups", 0, (1, 2, 2), replace_batchnorm="group")
    assert spec.layers[1] == GroupNorm(groups)


def test_a_vectors_numbers_stay_together_when_a_batch_is_replaced() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    assert trace(model, "vector", 0, (1, 8, 8), replace_batchnorm="group").layers[2] == GroupNorm(1)


def test_what_is_left_out_is_said() -> None:
    said: list[str] = []
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.LayerNorm(8, bias=False, eps=1e-6), nn.Dropout2d(), nn.RMSNorm(8)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 10)),
    )
    spec = trace(model, "said", 0, (1, 8, 8), announce=said.append)
    assert spec.layers[1:4] == (GroupNorm(2), layers.LayerNorm(1), layers.RMSNorm(1))
    assert said == [
        "GroupNorm '1': its trained scales and shifts are left out; --exact norm keeps them",
        "LayerNorm '2': its trained scales are left out; --exact norm keeps them",
        "LayerNorm '2': its epsilon is 1e-05, not 1e-06",
        "Dropout2d '3' is left out: every step already draws a random mask",
        "RMSNorm '4': its trained scales are left out; --exact norm keeps them",
        "RMSNorm '4': its epsilon is 1e-05, not that of its type",
        "Dropout '6' is left out: every step already draws a random mask",
    ]


def affine() -> nn.Module:
    """Every normalisation with all it trains, over channels, rows, whole images and vectors."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.LayerNorm(8), nn.LayerNorm((4, 8, 8), bias=False)),
        *(nn.RMSNorm((8, 8), eps=1e-5), nn.Flatten(), nn.Linear(256, 16), nn.LayerNorm(16), nn.Linear(16, 10)),
    )


def test_scales_and_shifts_stay_where_they_are_exact() -> None:
    said: list[str] = []
    spec = trace(affine(), "affine", 0, (1, 8, 8), announce=said.append, exact=("norm", "9.bias"), frozen=("7.*",))
    assert said == []
    assert [layer for layer in spec.layers if layer.exact] == [
        GroupNorm(2, "1.weight", "1.bias"),
        layers.LayerNorm(1, "3.weight", "3.bias"),
        layers.LayerNorm(3, "4.weight"),
        layers.RMSNorm(2, "5.weight"),
        GroupNorm(1, "8.weight", "8.bias"),
    ]
    kinds = {tensor.name: (tensor.kind, tensor.start) for tensor in spec.tensors}
    scales = dict.fromkeys(("1.weight", "3.weight", "4.weight", "5.weight", "8.weight"), ("exact", 1))
    zeros = dict.fromkeys(("1.bias", "3.bias", "8.bias", "9.bias"), ("exact", 0))
    rest = dict.fromkeys(("0.weight", "0.bias", "9.weight"), ("masked", 0))
    assert kinds == scales | zeros | rest | dict.fromkeys(("7.weight", "7.bias"), ("frozen", 0))


def test_a_module_with_exact_and_frozen_tensors_is_the_spec_traced_from_it() -> None:
    from export import final_torch

    spec = trace(affine(), "affine", 0, (1, 8, 8), exact=("norm", "bias"), frozen=("7.weight",))
    rng = np.random.default_rng(1)
    values = spec.begin() + rng.integers(-2500, 2500, spec.e).astype(np.int32)
    made = FinishedModel(spec, rng.integers(0, 2, spec.d).astype(np.uint8), values)
    module = affine().eval()
    module.load_state_dict(final_torch.state_dict(made))
    raw = torch.randint(0, 256, (3, 1, 8, 8)).float()
    with torch.no_grad():
        found, wanted = final_torch.network(made)(raw), module(raw * (2 / 255) - 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        ({"exact": ("head.*",)}, r"--exact 'head\.\*' names no parameter; there are 1\.weight, 1\.bias, .*9\.bias"),
        ({"frozen": ("norm",)}, "1.weight belongs to a normalisation: it is exact or left out, not frozen"),
        ({"exact": ("0.*",), "frozen": ("0.bias",)}, "0.bias cannot be both exact and frozen"),
        ({"frozen": ("[079].*",)}, "1 masked weight at least"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(kinds: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        trace(affine(), "affine", 0, (1, 8, 8), **kinds)


def test_exact_parameters_are_few() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2000), nn.ReLU(), nn.Linear(2000, 10))
    with pytest.raises(UserError, match="at most 65536 exact values in all, found 130000"):
        trace(model, "many", 0, (1, 8, 8), exact=("1.*",))


def test_a_norm_that_is_used_twice_has_no_scales_to_keep() -> None:
    norm = nn.LayerNorm(8)
    model = nn.Sequential(norm, nn.ReLU(), norm, nn.Flatten(), nn.Linear(64, 10))
    assert trace(model, "twice", 0, (1, 8, 8)).e == 0
    with pytest.raises(UserError, match=r"LayerNorm '.' is not supported: .*weight .*; every layer has its own"):
        trace(model, "twice", 0, (1, 8, 8), exact=("norm",))


def test_a_replaced_batchnorms_scales_can_be_kept() -> None:
    said: list[str] = []
    model = Bottleneck(nn.BatchNorm2d)
    spec = trace(model, "b", 0, (1, 8, 8), replace_batchnorm="group", announce=said.append, exact=("bn1.weight",))
    assert GroupNorm(1, "bn1.weight") in spec.layers
    assert said[0].endswith("(8 channels), without shifts and running means")
    assert said[1].endswith("(8 channels), without scales, shifts and running means")


def test_a_dead_end_is_left_out_and_said() -> None:
    said: list[str] = []
    model = Forward(lambda m, x: (m.conv(x), m.head(m.other(x).flatten(1)))[1])
    assert len(trace(model, "dead", 0, (1, 8, 8), announce=said.append).layers) == 3
    assert said == ["Conv2d 'conv' is left out: nothing uses what it gives"]


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda m, x: F.relu6(x), layers.ReLU6()),
        (lambda m, x: F.gelu(x), layers.GELU()),
        (lambda m, x: F.gelu(x, approximate="tanh"), layers.GELU("tanh")),
        (lambda m, x: F.silu(x), layers.SiLU()),
        (lambda m, x: x.tanh(), layers.Tanh()),
        (lambda m, x: torch.tanh(x), layers.Tanh()),
        (lambda m, x: x.sigmoid(), layers.Sigmoid()),
        (lambda m, x: torch.sigmoid(x), layers.Sigmoid()),
        (lambda m, x: F.avg_pool2d(x, 2), layers.AvgPool2d((2, 2))),
        (lambda m, x: F.avg_pool2d(x, (2, 4), (2, 4)), layers.AvgPool2d((2, 4))),
        (lambda m, x: F.adaptive_avg_pool2d(x, (4, 2)), layers.AvgPool2d((2, 4))),
        (lambda m, x: F.adaptive_avg_pool2d(x, 1), layers.Mean((1, 2))),
        (lambda m, x: x.mean([2, 3]), layers.Mean((1, 2))),
        (lambda m, x: x.mean((-1, -2), keepdim=True), layers.Mean((1, 2))),
        (lambda m, x: torch.mean(x, dim=1), layers.Mean((0,))),
        (lambda m, x: x.mean(axis=1), layers.Mean((0,))),
        (lambda m, x: x.transpose(1, -1), layers.Permute((2, 1, 0))),
        (lambda m, x: torch.transpose(x, 2, 3), layers.Permute((0, 2, 1))),
        (lambda m, x: x.permute(0, 2, 3, 1), layers.Permute((1, 2, 0))),
        (lambda m, x: torch.permute(x, (0, 3, 1, 2)), layers.Permute((2, 0, 1))),
        (lambda m, x: x.flatten(2), layers.Reshape((1, 64))),
        (lambda m, x: x.view(x.shape[0], 4, -1, 2), layers.Reshape((4, 8, 2))),
        (lambda m, x: x.unflatten(2, (4, 2)), layers.Reshape((1, 4, 2, 8))),
        (lambda m, x: x.squeeze(1), layers.Reshape((8, 8))),
        (lambda m, x: x.unsqueeze(2), layers.Reshape((1, 1, 8, 8))),
        (lambda m, x: x + x, layers.Add((0, 0))),
        (lambda m, x: torch.add(x, other=x), layers.Add((0, 0))),
        (lambda m, x: x.add(x), layers.Add((0, 0))),
        (lambda m, x: torch.cat([x, x], 1), layers.Concat((0, 0), 0)),
        (lambda m, x: torch.cat((x, x, x), dim=-1), layers.Concat((0, 0, 0), 2)),
        (lambda m, x: F.group_norm(x, 1), GroupNorm(1)),
        (lambda m, x: F.layer_norm(x, x.shape[1:]), GroupNorm(1)),
        (lambda m, x: F.layer_norm(x, (8, 8)), layers.LayerNorm(2)),
        (lambda m, x: F.layer_norm(x, x.shape[-1:]), layers.LayerNorm(1)),
        (lambda m, x: F.rms_norm(x, [8], eps=1e-5), layers.RMSNorm(1)),
    ],
)
def test_functions_count_as_well_as_layers(call: Callable[[Any, Any], Any], wanted: layers.Layer) -> None:
    model = Forward(lambda m, x: call(m, x).flatten(1))
    model.last = None

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = model, nn.Linear(width, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.body(x))

    width = call(model, torch.zeros(3, 1, 8, 8)).flatten(1).shape[1]
    spec = trace(Whole(), "functions", 0, (1, 8, 8))
    assert spec.layers[0] == wanted


def test_a_sequence_is_an_image_of_height_one_and_is_brought_into_shape_once() -> None:
    model = nn.Sequential(
        *(nn.Conv1d(2, 8, 5, stride=2, padding=4, dilation=2, groups=2), nn.GroupNorm(2, 8, affine=False), nn.ReLU()),
        *(nn.MaxPool1d(2), nn.Conv1d(8, 4, 3, padding="same"), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(16, 10)),
    )
    spec = trace(model, "sequence", 0, (2, 32))
    assert spec.layers == (
        *(layers.Reshape((2, 1, 32)), Conv2d("0.weight", "0.bias", (1, 2), (0, 4), 2, (1, 2)), GroupNorm(2), ReLU()),
        *(MaxPool2d((1, 2)), Conv2d("4.weight", "4.bias", (1, 1), (0, 1)), layers.AvgPool2d((1, 2))),
        *(Flatten(), Linear("7.weight", "7.bias")),
    )
    assert [tensor.shape for tensor in spec.tensors] == [(8, 1, 1, 5), (8,), (4, 8, 1, 3), (4,), (10, 16), (10,)]
    assert spec.tensors[0].constant == pytest.approx((2 / 5) ** 0.5)


class Overwritten(nn.Module):
    """A shortcut that is not what it looks like, for ReLU has gone over it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.head((self.relu(y) + y).flatten(1))


@torch.fx.wrap
def relu(x: Any) -> Any:
    """Not torch's."""
    return 3 * x


def seq(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(64, 10))


REFUSALS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm": (
        lambda: nn.ModuleDict({"features": seq(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))})["features"],
        "BatchNorm2d '1' is not supported: it has trained scales and running means; take GroupNorm(affine=False), "
        "leave it out, or export with --replace-batchnorm group",
    ),
    "batch norm inside": (
        lambda: seq(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.BatchNorm2d(1)))),
        "BatchNorm2d '0.1.0' is not supported",
    ),
    "other epsilon": (
        lambda: seq(nn.GroupNorm(1, 1, eps=1e-3, affine=False)),
        "GroupNorm '0' is not supported: eps=0.001; only 1e-05 is",
    ),
    "layer norm of other rows": (
        lambda: seq(nn.LayerNorm(7, elementwise_affine=False)),
        "LayerNorm '0' takes [7] and gets [1, 8, 8]",
    ),
    "groups of one value": (
        lambda: nn.Sequential(seq(), nn.GroupNorm(10, 10, affine=False)),
        "GroupNorm '1' gets [10], which makes no 10 equal groups of more than one value",
    ),
    "softmax": (lambda: nn.Sequential(seq(), nn.Softmax(1)), "Softmax '1' is not supported: end with the logits"),
    "log_softmax": (
        lambda: Forward(lambda m, x: F.log_softmax(m.head(x.flatten(1)), 1)),
        "log_softmax in forward() of the model is not supported: end with the logits",
    ),
    "circular": (
        lambda: seq(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")),
        "Conv2d '0' is not supported: padding_mode='circular'; only 'zeros' is",
    ),
    "same, even": (lambda: seq(nn.Conv2d(1, 1, 2, padding="same")), "padding='same' with a kernel of (2, 2)"),
    "overlapping pool": (
        lambda: seq(nn.MaxPool2d(3, 2)),
        "MaxPool2d '0' is not supported: kernel (3, 3) with stride (2, 2); only equal ones are",
    ),
    "padded pool": (lambda: seq(nn.MaxPool2d(2, padding=1)), "MaxPool2d '0' is not supported: padding, dilation"),
    "ceil pool": (
        lambda: Forward(lambda m, x: m.head(F.max_pool2d(x, 2, ceil_mode=True).flatten(1))),
        "max_pool2d in forward() of the model is not supported: padding, dilation, ceil_mode",
    ),
    "view over the batch": (
        lambda: Forward(lambda m, x: m.head(x.view(-1, 32).view(-1, 64))),
        "view in forward() of the model is not supported: [1, 8, 8] becomes [6, 32] for 3 examples",
    ),
    "leaky": (lambda: seq(nn.LeakyReLU()), "LeakyReLU '0' is not supported: take ReLU, SiLU or GELU"),
    "overlapping average": (
        lambda: seq(nn.AvgPool2d(2, 1)),
        "AvgPool2d '0' is not supported: kernel (2, 2) with stride (1, 1); only equal ones are",
    ),
    "windows of two sizes": (
        lambda: Forward(lambda m, x: m.head(F.adaptive_avg_pool2d(x, 3).flatten(1))),
        "adaptive_avg_pool2d in forward() of the model is not supported: [1, 8, 8] to [1, 3, 3] in windows of one size",
    ),
    "mean of everything": (
        lambda: Forward(lambda m, x: m.head(m.conv(x).mean())),
        "mean in forward() of the model is not supported: [1, 8, 8] becomes [] for 3 examples; examples stay apart",
    ),
    "mean over examples": (
        lambda: Forward(lambda m, x: m.head((x.mean(0, keepdim=True) + x).flatten(1))),
        "mean in forward() of the model is not supported: [1, 8, 8] becomes [1, 1, 8, 8] for 3 examples",
    ),
    "transposed examples": (
        lambda: Forward(lambda m, x: m.head(x.flatten(1).transpose(0, 1).transpose(0, 1))),
        "transpose in forward() of the model is not supported: [64] becomes [64, 3] for 3 examples",
    ),
    "sum of two shapes": (
        lambda: Forward(lambda m, x: m.head((x + x.mean((2, 3), keepdim=True)).flatten(1))),
        "add in forward() of the model is not supported: [1, 8, 8] and [1, 1, 1] are not of one shape",
    ),
    "number added": (
        lambda: Forward(lambda m, x: m.head((x + 1).flatten(1))),
        "add in forward() of the model is not supported: raw inputs are brought to -1 .. 1 before the model",
    ),
    "product of branches": (
        lambda: Forward(lambda m, x: m.head((m.conv(x) * m.other(x)).flatten(1))),
        "mul in forward() of the model is not supported: values are not multiplied by one another, as attention and",
    ),
    "examples side by side": (
        lambda: Forward(lambda m, x: m.head(torch.cat([x, x], 0).flatten(1))),
        "cat in forward() of the model is not supported: [1, 8, 8] becomes [6, 1, 8, 8] for 3 examples",
    ),
    "slice": (
        lambda: Forward(lambda m, x: m.head(x[:, :, ::2].flatten(1))),
        "getitem in forward() of the model is not supported: parts of a tensor cannot be taken",
    ),
    "overwritten shortcut": (
        lambda: Overwritten(),
        "ReLU 'relu' is not supported: it overwrites what add in forward() of the model reads after it; leave out",
    ),
    "somebody's function of a known name": (
        lambda: Forward(lambda m, x: m.head(relu(m.conv(x)).flatten(1))),
        "relu in forward() of the model is not supported",
    ),
    "weights made of others": (
        lambda: Forward(lambda m, x: m.head(m.inner(x).flatten(1)), normalised=True),
        "Conv2d 'inner.0' is not supported: its weight is computed from other numbers; take weight_norm, spectral_norm",
    ),
    "scaling": (
        lambda: Forward(lambda m, x: m.head((x / 255).flatten(1))),
        "truediv in forward() of the model is not supported: raw inputs are brought to -1 .. 1 before the model",
    ),
    "parameter": (
        lambda: Forward(lambda m, x: m.head((x * m.scale).flatten(1))),
        "the tensor self.scale is not supported: only layers may hold numbers",
    ),
    "functional linear": (
        lambda: Forward(lambda m, x: F.linear(x.flatten(1), m.head.weight)),
        "linear in forward() of the model is not supported: weights belong to a layer, nn.Linear",
    ),
    "twice": (
        lambda: Forward(lambda m, x: m.head(m.conv(m.conv(x)).flatten(1))),
        "Conv2d 'conv' is not supported: conv.weight is used twice; every layer has its own",
    ),
    "tied": (
        lambda: Forward(lambda m, x: m.head(m.tied(m.conv(x)).flatten(1))),
        "Conv2d 'tied' is not supported: tied.weight shares its numbers with conv.weight",
    ),
    "a size": (
        lambda: Forward(lambda m, x: x.shape[0]),
        "forward() returns getitem in forward() of the model, which is",
    ),
    "two outputs": (lambda: Forward(lambda m, x: (m.head(x.flatten(1)), x)), "forward() returns several values"),
    "control flow": (
        lambda: Forward(lambda m, x: m.head(x.flatten(1)) if x.sum() > 0 else x),
        "cannot follow Forward.forward(): ",
    ),
    "wrong width": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(63, 10)),
        "an input of [1, 8, 8] does not fit: Linear '1' takes 63 numbers and gets [64]",
    ),
    "wrong classes": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 7)),
        "an example gives [7], not one number for each of 10 classes",
    ),
    "no flatten": (
        lambda: nn.Sequential(nn.Linear(8, 10)),
        "an example gives [1, 8, 10], not one number for each of 10 classes",
    ),
    "nothing to learn": (lambda: nn.Sequential(nn.Flatten(), nn.ReLU()), "an example gives [64]"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_not_supported_is_refused_by_name(case: str) -> None:
    factory, text = REFUSALS[case]
    with pytest.raises(UserError) as refusal:
        trace(factory(), "refused", 0, (1, 8, 8), (0, 255), 10)
    assert text in str(refusal.value)
    if "not supported" in text:
        assert "\nsupported: Linear, Conv1d and Conv2d (stride, " in str(refusal.value)


def statement(overwrite: Callable[[Any, torch.Tensor], Any]) -> Callable[[Any, torch.Tensor], Any]:
    """A forward() that calls `overwrite` for what it does to its argument."""

    def forward(m: Any, x: torch.Tensor) -> Any:
        y = m.conv(x)
        overwrite(m, y)
        return m.head(y.flatten(1))

    return forward


def beside(other: Callable[[Any, torch.Tensor], Any]) -> Callable[[Any, torch.Tensor], Any]:
    """A forward() that adds what `other` makes of y to y."""

    def forward(m: Any, x: torch.Tensor) -> Any:
        y = m.conv(x)
        return m.head((other(m, y) + y).flatten(1))

    return forward


@pytest.mark.parametrize(
    "call",
    [
        statement(lambda m, y: y.relu_()),
        statement(lambda m, y: F.relu(y, inplace=True)),
        statement(lambda m, y: m.over(y)),
        statement(lambda m, y: y.add_(m.other(y))),
        beside(lambda m, y: torch.relu_(y)),
        beside(lambda m, y: F.silu(y, True)),
        beside(lambda m, y: F.relu(y.view(-1, 1, 8, 8), inplace=True)),
        beside(lambda m, y: F.relu(m.nothing(y), inplace=True)),
        lambda m, x: m.head((m.nothing(x) + m.over(x)).flatten(1)),
    ],
)
def test_a_value_that_is_overwritten_before_it_is_read_is_refused_whatever_name_it_is_read_by(
    call: Callable[[Any, Any], Any],
) -> None:
    model = Forward(call)
    model.over, model.nothing = nn.ReLU(inplace=True), nn.Identity()
    with pytest.raises(UserError, match=r"it overwrites what .* reads after it"):
        trace(model, "overwritten", 0, (1, 8, 8))


def test_a_value_that_is_overwritten_after_it_was_read_is_what_it_was() -> None:
    model = Forward(lambda m, x: m.head(F.relu(m.other(m.conv(x)), inplace=True).add_(x).flatten(1)))
    assert [layer.op for layer in trace(model, "over", 0, (1, 8, 8)).layers][2:4] == ["relu", "add"]


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return x + y

    with pytest.raises(UserError, match="takes one tensor, found 2: x, y"):
        trace(Two(), "two", 0, (1, 8, 8))


def test_a_name_that_a_spec_does_not_take_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match=r"a model's name is \[a-z0-9-\]"):
        trace(ZOO["mlp"].factory(), "My Model", 0, (1, 28, 28))


def test_an_unknown_scale_names_the_known() -> None:
    with pytest.raises(UserError, match="kaiming, paper, unit; found 'xavier'"):
        trace(ZOO["mlp"].factory(), "mlp", 0, (1, 28, 28), scale="xavier")


@pytest.mark.parametrize(
    ("name", "d"),
    [
        ("mlp", 234_752),
        ("mlpn", 234_752),
        ("conv4", 1_933_258),
        ("conv4s", 102_304),
        ("conv4n", 102_304),
        ("conv6", 2_262_602),
        ("conv10", 19_197_092),
        ("lenet5", 61_706),
        ("resnet20", 270_906),
        ("resnet20g", 270_618),
        ("mobile", 102_394),
        ("sensor1d", 32_550),
        ("mixer", 107_046),
    ],
)
def test_the_zoo_has_the_sizes_it_says(name: str, d: int) -> None:
    entry = ZOO[name]
    spec = trace(entry.factory(), name, 1, entry.input, (0, 255), entry.classes)
    assert spec.d == entry.d == d


def test_a_bundle_goes_round_and_is_the_same_each_time() -> None:
    spec = trace(Chain(), "chain", 7, (1, 8, 8))
    data = bundle.to_bytes(make_bundle(spec, 16))
    assert data == bundle.to_bytes(make_bundle(trace(Chain(), "chain", 7, (1, 8, 8)), 16))
    opened = bundle.from_bytes(data)
    assert (opened.spec, opened.batch) == (spec, 16)
    assert sorted(opened.files) == [f"onnx/{name}.onnx" for name in ("eval", "grads", "init", "step", "step_sgd")]
    assert len(data) < 50_000  # no weight among them


@pytest.mark.parametrize("name", ["mlp", "conv4", "mobile", "mixer"])
def test_the_graphs_are_plain_onnx_that_old_runtimes_read(name: str) -> None:
    entry = ZOO[name]
    made = make_bundle(trace(entry.factory(), name, 1, entry.input, (0, 255), entry.classes), 32)
    for data in made.files.values():
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version == 8
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
        assert {node.domain for node in model.graph.node} == {""}
        assert len(data) < 60_000
    step = onnx.load_from_string(made.files["onnx/step.onnx"]).graph
    shared = ["x", "y", "weight", "scores", "w", "u", "anchor", "rate", "mean", "plain", "terms"]
    assert [i.name for i in step.input] == [*shared, "m", "v", "epsilon"]
    assert [o.name for o in step.output] == ["scores_out", "m_out", "v_out", "loss", "correct", "total"]
    sgd = onnx.load_from_string(made.files["onnx/step_sgd.onnx"]).graph
    assert [i.name for i in sgd.input] == [*shared, "m", "momentum"]
    assert [o.name for o in sgd.output] == ["scores_out", "m_out", "loss", "correct", "total"]


# ---------------------------------------------------------------------------------------------- the command


def export(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    return COMMAND.run(parser.parse_args(arguments))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_a_zoo_model_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("mlp", "-o", "m.bundle", "--seed", "0x2a") == 0
    opened = bundle.load(here / "m.bundle")
    assert (opened.spec.name, opened.spec.seed, opened.spec.d, opened.batch) == ("mlp", 42, 234_752, 128)
    text = capsys.readouterr().out
    for part in (
        "1: linear",
        "256",
        "200,704",
        "seed    0x000000000000002a",
        opened.spec.digest.hex()[:16],
        "no weight",
    ):
        assert part in text


def test_a_model_of_ones_own_from_the_current_directory(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_export_nets.py").write_text(
        "from torch import nn\n"
        "class Tiny_Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(12, 3))\n"
    )
    arguments = ["my_export_nets:Tiny_Net", "--input", "1,3,4", "--classes", "3", "--range=-8,8", "--batch", "4"]
    (here / "sub").mkdir()
    assert export(*arguments, "-o", "sub/t.bundle", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    opened = bundle.load(here / "sub" / "t.bundle")
    assert (opened.spec.name, opened.spec.range, opened.spec.classes, opened.batch) == ("tiny-net", (-8, 8), 3, 4)
    assert made["model"] == opened.spec.digest.hex()
    assert made["bytes"] == (here / "sub" / "t.bundle").stat().st_size
    assert (made["d"], int(made["seed"], 16)) == (39, opened.spec.seed)


def test_two_exports_have_two_seeds(here: Path) -> None:
    export("mlp", "-o", "a.bundle")
    export("mlp", "-o", "b.bundle")
    assert bundle.load(here / "a.bundle").spec.seed != bundle.load(here / "b.bundle").spec.seed


def test_a_bundle_is_not_overwritten_unless_forced(here: Path) -> None:
    export("mlp", "-o", "m.bundle")
    before = (here / "m.bundle").read_bytes()
    with pytest.raises(UserError, match="exists; --force overwrites it"):
        export("mlp", "-o", "m.bundle")
    assert (here / "m.bundle").read_bytes() == before
    assert export("mlp", "-o", "m.bundle", "--force") == 0
    assert sorted(path.name for path in here.iterdir()) == ["m.bundle"]


BROKEN = """
import torch
value = 3
def fails(): raise RuntimeError("no weights file")
def number(): return 7
"""


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            "resnet50",
            "no model 'resnet50' in the zoo; there are mlp, mlpn, conv4, conv4s, conv4n, conv6, conv10, lenet5, ",
        ),
        ("my_absent_module:Net", "no module 'my_absent_module' in "),
        ("my_broken_module:Net", "importing my_broken_module failed: SyntaxError"),
        ("my_needy_module:Net", "importing my_needy_module needs my_absent_module, which is not installed"),
        ("my_odd_module:Net", "my_odd_module has no 'Net'; it has fails, number"),
        ("my_odd_module:value", "my_odd_module:value is no factory but a int"),
        ("my_odd_module:fails", "my_odd_module:fails() failed: RuntimeError: no weights file"),
        ("my_odd_module:number", "my_odd_module:number() gave a int, not a torch.nn.Module"),
        (":Net", "a model is package.module:factory, found ':Net'"),
        ("nets.py:Seq", "no file; write nets:Seq"),
        ("./sub/nets.py:Seq", "no file; write sub.nets:Seq"),
    ],
)
def test_what_the_caller_can_mend_is_said(here: Path, model: str, text: str) -> None:
    (here / "my_broken_module.py").write_text("def (")
    (here / "my_needy_module.py").write_text("import my_absent_module")
    (here / "my_odd_module.py").write_text(BROKEN)
    with pytest.raises(UserError) as refusal:
        export(model, "--input", "1,8,8", "--classes", "10", "-o", "x.bundle")
    assert text in str(refusal.value)
    assert not (here / "x.bundle").exists()


def test_ones_own_model_needs_its_shape(here: Path) -> None:
    with pytest.raises(UserError, match="needs --input"):
        export("my_odd_module:Net", "-o", "x.bundle")


@pytest.mark.parametrize(
    "bad", [["--seed", "-1"], ["--seed", "1f"], ["--seed", "0x10000000000000000"], ["--input", "1,x"]]
)
def test_arguments_that_are_no_numbers_are_refused(here: Path, bad: list[str]) -> None:
    with pytest.raises(SystemExit):
        export("mlp", "-o", "x.bundle", *bad)


@pytest.mark.parametrize(
    ("model", "bad", "text"),
    [
        ("mlp", ["--batch", "0"], "--batch is 1 .. 65536, found 0"),
        ("mlp", ["--runtimes", "onnx,onyx"], "--runtimes is of "),
        ("mlp", ["--runtimes", ""], "found ''"),
        ("mlp", ["--runtimes", "onnxruntime"], "found 'onnxruntime'; runtime onnxruntime trains with onnx"),
        ("mlp", ["--runtimes", "onnx,torch"], "found 'torch'; that runtime needs no graphs, any bundle will do"),
        ("mlp", ["--range", "1"], "--range is LOW,HIGH"),
        ("mlp", ["--range", "255,0"], "with LOW below HIGH, found 255,0"),
        ("mlp", ["--classes", "0"], "--classes is 2 .. 65536, found 0"),
        ("mlp", ["--name", "BadName"], "--name is a-z, 0-9 and '-', at most 63 characters, found 'BadName'"),
        ("mlp", ["--input", "1,1,28,28"], "--input is one to three sides"),
        ("mlp", ["--input", "1,27,28"], "Linear '1' takes 784 numbers and gets [756]"),
        ("conv4", ["--input", "28,28"], "Conv2d '0' takes channels,height,width, like 1,28,28, and gets [28, 28]"),
        ("conv4", ["--input", "3,28,28"], "Conv2d '0' takes 1 channel(s) and gets [3, 28, 28], which has 3"),
        ("conv4", ["--input", "1,32,32"], "Linear '11' takes 6,272 numbers and gets [8192]"),
    ],
)
def test_options_that_make_no_sense_are_named_before_force_is_asked_for(
    here: Path, model: str, bad: list[str], text: str
) -> None:
    (here / "x.bundle").write_text("precious")
    with pytest.raises(UserError) as refusal:
        export(model, "-o", "x.bundle", *bad)
    assert text in str(refusal.value)
    assert (here / "x.bundle").read_text() == "precious"


def test_graphs_for_a_runtime_whose_package_is_absent_say_what_to_install(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.training", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'seedmask\[ort-training,export\]'"):
        export("mlp", "--runtimes", "onnx,ort_training", "-o", "x.bundle")
    assert list(here.iterdir()) == []
    with pytest.raises(UserError, match=r"no graphs for 'abacus', only for .*onnx, onnx-gpu, onnx-lean, ort-training"):
        make_bundle(trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 10)), "tiny", 1, (1, 2, 2)), 8, ["abacus"])


@pytest.mark.parametrize("output", ["absent/x.bundle", "."])
def test_a_bundle_goes_into_a_folder_that_exists(here: Path, output: str) -> None:
    with pytest.raises(UserError, match="is not a file in a folder that exists"):
        export("mlp", "-o", output)
    assert list(here.iterdir()) == []


def test_the_table_names_a_layer_before_what_it_does(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("conv4", "-o", "c.bundle") == 0
    assert "\n0: conv2d 3x3 + bias  " in capsys.readouterr().out


def test_scale_and_gain_are_options(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("conv4n", "-o", "c.bundle", "--scale", "unit", "--gain", "1,1,1,1,1,0.5") == 0
    assert "\ngroupnorm 1  " in capsys.readouterr().out
    constants = [tensor.constant for tensor in bundle.load(here / "c.bundle").spec.tensors]
    assert constants == pytest.approx([9**-0.5, 288**-0.5, 288**-0.5, 576**-0.5, 576**-0.5, 0.5 / 8], rel=1e-7)
    with pytest.raises(UserError, match=r"or 6 of them, one for each layer; found \(1.0, 2.0\)"):
        export("conv4n", "-o", "d.bundle", "--gain", "1,2")


NETS = """
from torch import nn
class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(),
                         nn.Linear(576, 1))
"""


def test_a_batchnorm_is_refused_or_replaced_and_what_was_done_is_printed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "my_normed_nets.py").write_text(NETS)
    arguments = ["my_normed_nets:Normed", "--input", "1,8,8", "--classes", "1", "--loss", "mse", "-o", "n.bundle"]
    with pytest.raises(UserError, match=r"BatchNorm2d '1' is not supported: .* export with --replace-batchnorm group"):
        export(*arguments)
    assert export(*arguments, "--replace-batchnorm", "group") == 0
    text = capsys.readouterr().out
    assert "note    BatchNorm2d '1' is replaced by GroupNorm of 2 groups (16 channels), without scales" in text
    assert "note    Dropout '4' is left out: every step already draws a random mask" in text
    opened = bundle.load(here / "n.bundle").spec
    assert (opened.classes, opened.loss, opened.layers[1]) == (1, "mse", GroupNorm(2))
    assert export(*arguments, "--replace-batchnorm", "group", "--force", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 2
    with pytest.raises(UserError, match=r"--classes is 2 \.\. 65536, found 1"):
        export(*arguments, "--loss", "cross-entropy")


def test_a_graphs_layers_are_called_by_number(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("resnet20", "-o", "r.bundle") == 0
    text = capsys.readouterr().out
    assert "\n  1  0: conv2d 3x3   " in text
    assert "\n  9  add of 8, 3   " in text
    assert "\n 25  6.first: conv2d 3x3 stride 2x2   " in text
    assert "\n 30  6.around.0: conv2d 1x1 stride 2x2 of 24  " in text
    facts = inspect.describe(here / "r.bundle")
    assert facts["layers"][29] == "conv2d 1x1 stride 2x2 of 24"
    assert not facts["chain"]


# --------------------------------------------------------------------------------------------------- from Python


def small(**changes: Any) -> bundle.Bundle:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(), nn.Linear(8, 3))
    return export_bundle(net, **{"input": (1, 3, 4), "classes": 3, "seed": 7, "batch": 4, **changes})


def test_importing_the_package_is_cheap_and_shows_what_it_offers() -> None:
    code = (
        "import sys, export, export.make, export.cli; assert 'export_bundle' in dir(export) and export.make.names()\n"
        "from export import export_bundle; print(export_bundle.__name__, {'torch', 'onnx'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "export_bundle set()"
    with pytest.raises(AttributeError, match="module 'export' has no attribute 'export_model'"):
        _ = exporter.export_model


def test_where_torch_is_not_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from export import export_bundle\n"
        "try: export_bundle(object(), input=(4,), classes=2)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "MissingPackageError export_bundle needs torch: pip install 'seedmask[export]'"


def test_a_module_becomes_a_bundle_in_memory_or_in_a_file(here: Path) -> None:
    notes: list[str] = []
    made = small(on_note=notes.append)
    assert list(here.iterdir()) == []
    assert (made.spec.name, made.spec.seed, made.spec.classes, made.batch) == ("sequential", 7, 3, 4)
    assert notes == ["Dropout '2' is left out: every step already draws a random mask"]
    written = small(path="m.bundle", name="mine", range=(-8, 8))
    assert bundle.load(here / "m.bundle") == written
    assert (written.spec.name, written.spec.range) == ("mine", (-8, 8))


@pytest.mark.parametrize("example", [torch.zeros(5, 1, 3, 4), np.zeros((5, 1, 3, 4), np.uint8)])
def test_a_batch_of_examples_says_their_shape(example: Any) -> None:
    assert small(input=example) == small()


def test_the_loss_may_be_mse_and_the_seed_is_random() -> None:
    one, two = (small(loss="mse", classes=3, seed=None) for _ in range(2))
    assert one.spec.loss == "mse"
    assert one.spec.seed != two.spec.seed
    step = onnx.load_from_string(one.files["onnx/step.onnx"]).graph
    assert [side.dim_value for i in step.input if i.name == "y" for side in i.type.tensor_type.shape.dim] == [4, 3]


def test_the_command_makes_the_same_bundle(here: Path) -> None:
    assert export("mlp", "-o", "m.bundle", "--seed", "5", "--batch", "8", "--gain", "0.5") == 0
    entry = ZOO["mlp"]
    made = export_bundle(entry.factory(), input=entry.input, classes=10, name="mlp", seed=5, batch=8, gain=0.5)
    assert bundle.to_bytes(made) == (here / "m.bundle").read_bytes()


def test_a_file_that_exists_is_kept_unless_overwriting_is_asked_for(here: Path) -> None:
    small(path="m.bundle")
    before = (here / "m.bundle").read_bytes()
    with pytest.raises(FileExistsError, match="exists, and overwrite is not set"):
        small(path="m.bundle", seed=8)
    assert (here / "m.bundle").read_bytes() == before
    assert small(path="m.bundle", seed=8, overwrite=True) == bundle.load(here / "m.bundle")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"classes": 1}, r"^classes is 2 \.\. 65536, found 1"),
        ({"classes": 0, "loss": "mse"}, r"^classes is 1 \.\. 65536, found 0"),
        ({"classes": 4}, "an example gives .*, not one number for each of 4 classes"),
        ({"input": ()}, "^input is one to three sides of at least 1, like 1,28,28, found nothing"),
        ({"input": np.zeros(5)}, "^input is one to three sides"),
        ({"input": (1, 4, 4)}, r"Linear '1' takes 12 numbers and gets \[16\]"),
        ({"name": "My Net"}, "^name is a-z, 0-9 and '-', at most 63 characters, found 'My Net'"),
        ({"seed": 1 << 64}, r"^seed is 0 \.\. 2\*\*64 - 1, found 18446744073709551616"),
        ({"range": (255, 0)}, "^range is LOW,HIGH, 32-bit integers with LOW below HIGH, found 255,0"),
        ({"batch": 0}, r"^batch is 1 \.\. 65536, found 0"),
        ({"runtimes": ("torch",)}, "^runtimes is of executorch, onnx, .* that runtime needs no graphs"),
        ({"loss": "hinge"}, "^loss is of cross-entropy, mse, found 'hinge'"),
        ({"scale": "xavier"}, "scale is one of kaiming, paper, unit; found 'xavier'"),
        ({"gain": (1.0,)}, "gain is a number above 0, or 2 of them"),
        ({"exact": ("head.*",)}, r"'head\.\*' names no parameter"),
    ],
)
def test_arguments_that_make_no_sense_are_named(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        small(**bad)


def test_what_is_no_module_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"module is a torch\.nn\.Module, found a type"):
        export_bundle(nn.Flatten, input=(1, 3, 4), classes=3)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- targets


class Announced:
    """A distribution on disk whose metadata announces targets, as pip would have installed it."""

    def __init__(self, site: Path, targets: dict[str, str], name: str = "my-targets") -> None:
        info = site / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [f"{target} = {value}" for target, value in targets.items()]
        (info / "entry_points.txt").write_text("\n".join(["[seedmask.targets]", *lines]))


@pytest.fixture
def site(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(here))
    return here


def test_a_target_of_ones_own_is_found_by_its_entry_point(
    here: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(plugin))
    told: list[str] = []
    made = small(runtimes=("onnx", "text"), name="mine", on_target=told.append)
    assert made.file("text/tensors.txt").startswith(b"mine, 4 examples a step\n")
    assert "onnx/step.onnx" in made.files
    assert told == ["onnx", "text"]
    assert export("mlp", "-o", "m.bundle", "--runtimes", "text") == 0
    assert list(bundle.load(here / "m.bundle").files) == ["text/tensors.txt"]


def test_a_target_that_is_of_no_use_is_named_with_whoever_announced_it(site: Path) -> None:
    Announced(
        site,
        {
            "broken": "my_broken_target",
            "needy": "my_needy_target",
            "empty": "my_empty_target",
            "onyx": "my_onyx_target",
            "gone": "my_empty_target:nothing",
        },
    )
    Announced(site, {"onnx-lean": "my_onyx_target"}, name="rival")
    (site / "my_broken_target.py").write_text("1 / 0")
    (site / "my_needy_target.py").write_text("import my_absent_module")
    (site / "my_empty_target.py").write_text("")
    (site / "my_onyx_target.py").write_text("def files(spec, batch):\n    return {'onnx/step.onnx': b''}\n")
    for name, error, says in (
        ("broken", UserError, r"'broken' \(my_broken_target of my-targets 1\.2\) does not load: ZeroDivisionError: "),
        ("needy", MissingPackageError, r"'needy' \(my_needy_target of my-targets 1\.2\) needs my_absent_module"),
        ("empty", UserError, r"'empty' \(my_empty_target of my-targets 1\.2\) has no function files\(spec, batch\)"),
        ("gone", UserError, r"'gone' \(my_empty_target:nothing of my-targets 1\.2\) does not load: AttributeError: "),
        ("onyx", UserError, r"'onyx' writes onnx/step\.onnx, which another target has written"),
        ("onnx-lean", UserError, r"'onnx-lean' is announced twice, by .*my_onyx_target of rival 1\.2"),
    ):
        with pytest.raises(error, match=says):
            small(runtimes=("onnx", name))


def test_our_own_targets_are_announced_like_anybodys() -> None:
    assert {"executorch", "onnx", "onnx-gpu", "onnx-lean", "ort-training"} <= set(names())
