"""Networks to begin with, each an ordinary torch module without batch norm.

A small perceptron, FedPM's convolutional nets (Isik et al., arXiv 2209.15328), and one each of the kinds that people
bring: LeNet-5, a residual net, depthwise-separable blocks, a CNN for a sensor's sequences, an MLP-Mixer. `ZOO` has the
input shape and the classes of each. Biases are masked like weights, as in the paper, unless an export says otherwise
(`export.parameter_kinds`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


def mlp() -> nn.Module:
    """Return a perceptron, 784-256-128-10 without biases; d = 234,752. Small enough for a Raspberry Pi's first try."""
    return _perceptron(normalised=False)


def mlpn() -> nn.Module:
    """Return `mlp` with GroupNorm before each ReLU (docs/explanation/learning.md)."""
    return _perceptron(normalised=True)


def mlpa() -> nn.Module:
    """Return `mlpn` with scales, shifts and a last bias: 778 parameters for `--exact`, else masked or left out."""
    return _perceptron(normalised=True, more=True)


def _perceptron(normalised: bool, more: bool = False) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in ((784, 256), (256, 128)):
        layers += [nn.Linear(before, after, bias=False), *_norm(after, normalised, more), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10, bias=more))


def _norm(channels: int, normalised: bool, more: bool) -> list[nn.Module]:
    """Return a normalisation of all channels as one group, or nothing; only with `more` has it parameters."""
    return [nn.GroupNorm(1, channels, affine=more)] if normalised else []


def conv4() -> nn.Module:
    """Return CONV-4 for 1x28x28 (MNIST, EMNIST, Fashion-MNIST); d = 1,933,258."""
    return _pairs(1, (64, 128), flat=6272, classes=10)


def conv6() -> nn.Module:
    """Return CONV-6 for 3x32x32 (CIFAR-10); d = 2,262,602."""
    return _pairs(3, (64, 128, 256), flat=4096, classes=10)


def conv10() -> nn.Module:
    """Return CONV-10 for 3x32x32 (CIFAR-100); d = 19,197,092."""
    return _pairs(3, (64, 128, 256, 512, 1024), flat=1024, classes=100)


def conv4s() -> nn.Module:
    """Return a small CONV-4 for 1x28x28, 32-32-64-64-fc64-10 without biases, with strides for pools; d = 102,304."""
    return _strided(normalised=False)


def conv4n() -> nn.Module:
    """Return `conv4s` with GroupNorm before each ReLU."""
    return _strided(normalised=True)


def conv4a() -> nn.Module:
    """Return `conv4n` with scales, shifts and a last bias: 522 parameters for `--exact`."""
    return _strided(normalised=True, more=True)


def _strided(normalised: bool, more: bool = False) -> nn.Module:
    """Return four 3x3 convolutions without padding and two layers.

    Every other convolution has stride 2: sides of 28 -> 13 -> 11 -> 5 -> 3.
    """
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(before, after, 3, stride=stride, bias=False), *_norm(after, normalised, more), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(576, 64, bias=False), *_norm(64, normalised, more), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10, bias=more))


def _pairs(channels: int, widths: tuple[int, ...], flat: int, classes: int) -> nn.Module:
    """Return two 3x3 convolutions and a 2x2 pool per width, then three fully connected layers."""
    layers: list[nn.Module] = []
    for width in widths:
        for before in (channels, width):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = width
    layers += [nn.Flatten(), nn.Linear(flat, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, classes))


def lenet5() -> nn.Module:
    """Return LeNet-5 (LeCun et al., Proc. IEEE 1998) for 1x28x28, with ReLU and all its connections; d = 61,706."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def _grouped(channels: int) -> nn.Module:
    """Return a GroupNorm with eight channels in a group and no parameters."""
    return nn.GroupNorm(channels // 8, channels, affine=False)


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., arXiv 1512.03385), a 1x1 convolution where the width changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(before, after, 3, stride, 1, bias=False), _grouped(after)
        self.second, self.second_norm = nn.Conv2d(after, after, 3, 1, 1, bias=False), _grouped(after)
        self.around: nn.Module = nn.Identity()
        if (before, stride) != (after, 1):
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), _grouped(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return ReLU of the sum of both branches."""
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.around(x))


def _resnet(channels: int) -> nn.Module:
    """Return three stages of three residual blocks, 16, 32 and 64 channels wide, then mean and classifier."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), _grouped(16), nn.ReLU()]
    for before, after, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [Residual(before, after, stride), Residual(after, after, 1), Residual(after, after, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet20() -> nn.Module:
    """Return ResNet-20 for 3x32x32 with GroupNorm; d = 270,906."""
    return _resnet(3)


def resnet20g() -> nn.Module:
    """Return `resnet20` for grey images, 1x28x28; d = 270,618."""
    return _resnet(1)


class Inverted(nn.Module):
    """A MobileNetV2 block (Sandler et al., arXiv 1801.04381): 1x1 to more channels, 3x3 depthwise, 1x1 back."""

    def __init__(self, before: int, after: int, stride: int, widen: int) -> None:
        super().__init__()
        inner = before * widen
        self.body = nn.Sequential(
            *(nn.Conv2d(before, inner, 1, bias=False), _grouped(inner), nn.ReLU6()),
            *(nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), _grouped(inner), nn.ReLU6()),
            *(nn.Conv2d(inner, after, 1, bias=False), _grouped(after)),
        )
        self.around = (before, stride) == (after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, without a ReLU, which would destroy information in a narrow layer."""
        y: Tensor = self.body(x)
        return x + y if self.around else y


def mobile() -> nn.Module:
    """Return a small MobileNetV2 for 3x32x32; d = 102,394."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), _grouped(16), nn.ReLU6()]
    for before, after, stride in ((16, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 64, 2), (64, 64, 1)):
        layers.append(Inverted(before, after, stride, 4))
    layers += [nn.Conv2d(64, 256, 1, bias=False), _grouped(256), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def sensor1d() -> nn.Module:
    """Return a CNN for windows of 128 samples of 9 channels (accelerometer, gyroscope), 6 activities; d = 32,550."""
    layers: list[nn.Module] = []
    for before, after in ((9, 32), (32, 64), (64, 64)):
        layers += [nn.Conv1d(before, after, 5, padding=2, bias=False), _grouped(after), nn.ReLU(), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(), nn.Linear(64, 6))


class Mixing(nn.Module):
    """An MLP over patches, then an MLP over channels, each with a shortcut (Tolstikhin et al., arXiv 2105.01601)."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x [n, patches, width] mixed, in the same shape."""
        x = x + self.patches(self.norm(x).transpose(1, 2)).transpose(1, 2)
        channels: Tensor = self.channels(self.norm(x))
        return x + channels


class Mixer(nn.Module):
    """An MLP-Mixer: patches of 4x4 as 64 numbers each, four mixing blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 64, 4, stride=4)
        self.mixing = nn.Sequential(*(Mixing(49, 64) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(64, elementwise_affine=False), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [n, 10] of x [n, 1, 28, 28]."""
        y: Tensor = self.head(self.norm(self.mixing(self.patches(x).flatten(2).transpose(1, 2))).mean(1))
        return y


def mixer() -> nn.Module:
    """Return a small MLP-Mixer for 1x28x28; d = 107,046."""
    return Mixer()


@dataclass(frozen=True)
class Entry:
    """A network of the zoo: its `factory`, shape of one `input`, number of `classes` and of masked weights `d`."""

    factory: Callable[[], nn.Module]
    input: tuple[int, ...]
    classes: int
    d: int


ZOO: dict[str, Entry] = {
    "mlp": Entry(mlp, (1, 28, 28), 10, 234_752),
    "mlpn": Entry(mlpn, (1, 28, 28), 10, 234_752),
    "conv4": Entry(conv4, (1, 28, 28), 10, 1_933_258),
    "conv4s": Entry(conv4s, (1, 28, 28), 10, 102_304),
    "conv4n": Entry(conv4n, (1, 28, 28), 10, 102_304),
    "conv6": Entry(conv6, (3, 32, 32), 10, 2_262_602),
    "conv10": Entry(conv10, (3, 32, 32), 100, 19_197_092),
    "lenet5": Entry(lenet5, (1, 28, 28), 10, 61_706),
    "resnet20": Entry(resnet20, (3, 32, 32), 10, 270_906),
    "resnet20g": Entry(resnet20g, (1, 28, 28), 10, 270_618),
    "mobile": Entry(mobile, (3, 32, 32), 10, 102_394),
    "sensor1d": Entry(sensor1d, (9, 128), 6, 32_550),
    "mixer": Entry(mixer, (1, 28, 28), 10, 107_046),
    "mlpa": Entry(mlpa, (1, 28, 28), 10, 234_762),
    "conv4a": Entry(conv4a, (1, 28, 28), 10, 102_314),
}
