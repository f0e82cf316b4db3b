"""Networks to begin with: a small perceptron, and FedPM's convolutional nets (Isik et al., arXiv 2209.15328).

Each is an ordinary torch module without batch norm, which is what masking random weights wants; `ZOO` says
what each takes. All biases that exist are masked along with the weights, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


def mlp() -> nn.Module:
    """784-256-128-10 without biases; d = 234,752. Small enough for a Raspberry Pi's first try."""
    return _perceptron(normalised=False)


def mlpn() -> nn.Module:
    """`mlp` with every layer's output but the last normalised before its ReLU (docs/learning.md says what it gives)."""
    return _perceptron(normalised=True)


def _perceptron(normalised: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in ((784, 256), (256, 128)):
        layers += [nn.Linear(before, after, bias=False), *_norm(after, normalised), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10, bias=False))


def _norm(channels: int, normalised: bool) -> list[nn.Module]:
    """All channels as one group and nothing to learn, so that there is nothing to send."""
    return [nn.GroupNorm(1, channels, affine=False)] if normalised else []


def conv4() -> nn.Module:
    """CONV-4 for 1x28x28 (MNIST, EMNIST, Fashion-MNIST); d = 1,933,258."""
    return _pairs(1, (64, 128), flat=6272, classes=10)


def conv6() -> nn.Module:
    """CONV-6 for 3x32x32 (CIFAR-10); d = 2,262,602."""
    return _pairs(3, (64, 128, 256), flat=4096, classes=10)


def conv10() -> nn.Module:
    """CONV-10 for 3x32x32 (CIFAR-100); d = 19,197,092."""
    return _pairs(3, (64, 128, 256, 512, 1024), flat=1024, classes=100)


def conv4s() -> nn.Module:
    """A small CONV-4 for 1x28x28 that strides instead of pooling, 32-32-64-64-fc64-10, no biases; d = 102,304."""
    return _strided(normalised=False)


def conv4n() -> nn.Module:
    """`conv4s` with every layer's output but the last normalised before its ReLU."""
    return _strided(normalised=True)


def _strided(normalised: bool) -> nn.Module:
    """3x3 without padding, 28 -> 13 -> 11 -> 5 -> 3: every second one strides."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(before, after, 3, stride=stride, bias=False), *_norm(after, normalised), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(576, 64, bias=False), *_norm(64, normalised), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10, bias=False))


def _pairs(channels: int, widths: tuple[int, ...], flat: int, classes: int) -> nn.Module:
    """Two 3x3 convolutions and a 2x2 pool per width, then three fully connected layers."""
    layers: list[nn.Module] = []
    for width in widths:
        for before in (channels, width):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = width
    layers += [nn.Flatten(), nn.Linear(flat, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, classes))


@dataclass(frozen=True)
class Entry:
    """A network by name: how to make it, the shape of one `input`, its `classes`, its masked weights `d`."""

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
}
