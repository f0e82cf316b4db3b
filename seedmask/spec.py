"""ModelSpec: what a seed and a mask mean. Layers, masked tensors in order, and the seed; its SHA-256 is its identity.

The canonical JSON (PROTOCOL 4) holds integers and ASCII strings only, so that every language writes the same bytes.
A tensor's weights are +c or -c; c travels as the bit pattern of its binary32 value, never as a decimal.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from seedmask.errors import SpecError
from seedmask.mask import MAX_D
from seedmask.seed import sign_bits

SPEC_VERSION = 1
MAX_SPEC_BYTES = 1 << 20
MAX_ACTIVATION = 1 << 28
GROUPNORM_EPSILON = 1e-5

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_PATH = re.compile(r"[A-Za-z0-9_.]{1,128}\Z")

Shape: TypeAlias = tuple[int, ...]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b, with W [out, in] and b [out]."""

    op: ClassVar[str] = "linear"
    weight: str
    bias: str | None


@dataclass(frozen=True)
class Conv2d:
    """Cross-correlation, W [out, in, kh, kw], b [out]; `stride` and symmetric zero `padding` (vertical, horizontal)."""

    op: ClassVar[str] = "conv2d"
    weight: str
    bias: str | None
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True)
class ReLU:
    """max(x, 0)."""

    op: ClassVar[str] = "relu"


@dataclass(frozen=True)
class MaxPool2d:
    """Maximum over windows of `size` (vertical, horizontal) that do not overlap; incomplete windows are dropped."""

    op: ClassVar[str] = "maxpool2d"
    size: tuple[int, int]


@dataclass(frozen=True)
class Flatten:
    """All dimensions but the batch into one, row-major."""

    op: ClassVar[str] = "flatten"


@dataclass(frozen=True)
class GroupNorm:
    """(x - mean) / sqrt(variance + 1e-5) over each of `groups` runs of consecutive channels, of one example.

    Wu and He, arXiv 1803.08494, without scale and shift, so nothing is learnt and nothing kept; one group is LayerNorm.
    The variance is the mean of squares (n, not n - 1, below the line). The channels are the first dimension.
    """

    op: ClassVar[str] = "groupnorm"
    groups: int


Layer: TypeAlias = Linear | Conv2d | ReLU | MaxPool2d | Flatten | GroupNorm
_LAYERS: dict[str, type[Layer]] = {kind.op: kind for kind in get_args(Layer)}


@dataclass(frozen=True)
class Tensor:
    """One masked tensor: `shape`, and `scale`, the binary32 bit pattern of the constant c > 0 in w = +-c."""

    name: str
    shape: Shape
    scale: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def constant(self) -> float:
        """c as a number."""
        return float(struct.unpack("<f", struct.pack("<I", self.scale))[0])


def scale_bits(constant: float) -> int:
    """The binary32 bit pattern of `constant`, as Tensor.scale holds it."""
    return int(struct.unpack("<I", struct.pack("<f", constant))[0])


@dataclass(frozen=True)
class ModelSpec:
    """A network whose weights are frozen random signs.

    `name` [a-z0-9-]; `seed` 64 bits; `input` shape of one example; `range` (low, high): raw inputs are mapped from it
    to -1 .. 1; `classes`; `layers` a chain; `tensors` in the order of the flat vector. Raises SpecError when the parts
    do not fit together.
    """

    name: str
    seed: int
    input: Shape
    range: tuple[int, int]
    classes: int
    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def d(self) -> int:
        """Number of masked weights."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def offsets(self) -> dict[str, tuple[Tensor, int]]:
        """Each tensor with its place in the flat vector."""
        out, at = {}, 0
        for tensor in self.tensors:
            out[tensor.name] = (tensor, at)
            at += tensor.size
        return out

    def canonical(self) -> bytes:
        """PROTOCOL 4's JSON: sorted keys, no spaces, ASCII, integers and strings only."""
        value = {
            "version": SPEC_VERSION,
            "name": self.name,
            "seed": f"{self.seed:016x}",
            "input": list(self.input),
            "range": list(self.range),
            "classes": self.classes,
            "layers": [
                {"op": layer.op, **{f.name: getattr(layer, f.name) for f in fields(layer)}} for layer in self.layers
            ],
            "tensors": [{"name": t.name, "shape": list(t.shape), "scale": t.scale} for t in self.tensors],
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @cached_property
    def digest(self) -> bytes:
        """The model's identity: SHA-256 of the canonical JSON, 32 bytes."""
        return hashlib.sha256(self.canonical()).digest()

    def weights(self) -> F32:
        """The frozen weights regenerated from the seed, float32 [d], each tensor's entries +c or -c."""
        scale: F32 = np.concatenate([np.full(t.size, t.constant, np.float32) for t in self.tensors])
        scale[sign_bits(self.seed, self.d) == 1] *= np.float32(-1)
        return scale

    def normalise(self, raw: npt.NDArray[Any]) -> F32:
        """Raw inputs [n, *input] (uint8 or float) as the network takes them, float32 in -1 .. 1."""
        low, high = self.range
        out: F32 = (raw.astype(np.float32) - np.float32(low)) * np.float32(2.0 / (high - low)) - np.float32(1)
        return out

    def shapes(self) -> list[Shape]:
        """Shape of one example before each layer and after the last, len(layers) + 1 entries."""
        shape, out = self.input, [self.input]
        for number, layer in enumerate(self.layers):
            shape = _after(layer, shape, self.offsets, number)
            out.append(shape)
        return out


def from_json(data: bytes) -> ModelSpec:
    """Read a spec from its canonical JSON. Raises SpecError for anything that is not exactly that."""
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError(f"a spec is at most {MAX_SPEC_BYTES} bytes, found {len(data)}")
    try:
        spec = _build(json.loads(data))
    except SpecError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError, struct.error) as error:
        raise SpecError(f"not a model spec: {error!r}") from None
    if spec.canonical() != data:
        raise SpecError("the spec's JSON is not in canonical form")
    return spec


def _build(value: dict[str, Any]) -> ModelSpec:
    if value["version"] != SPEC_VERSION:
        raise SpecError(f"spec version {value['version']!r}; this program reads {SPEC_VERSION}")
    if not re.fullmatch(r"[0-9a-f]{16}", value["seed"]):
        raise SpecError(f"a seed is 16 hexadecimal digits, found {value['seed']!r}")
    layers: list[Layer] = []
    for item in value["layers"]:
        attributes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}
        kind = _LAYERS.get(attributes.pop("op"))
        if kind is None:
            raise SpecError(f"unknown layer {item['op']!r}; known: {', '.join(_LAYERS)}")
        layers.append(kind(**attributes))
    low, high = value["range"]
    return ModelSpec(
        name=value["name"],
        seed=int(value["seed"], 16),
        input=tuple(value["input"]),
        range=(low, high),
        classes=value["classes"],
        layers=tuple(layers),
        tensors=tuple(Tensor(t["name"], tuple(t["shape"]), t["scale"]) for t in value["tensors"]),
    )


def _integers(what: str, values: tuple[Any, ...], low: int, high: int) -> None:
    for value in values:
        if type(value) is not int or not low <= value <= high:
            raise SpecError(f"{what}: an integer {low} .. {high} expected, found {value!r}")


def _check(spec: ModelSpec) -> None:
    if not isinstance(spec.name, str) or not _NAME.match(spec.name):
        raise SpecError(f"a model's name is [a-z0-9-], at most 63 long, found {spec.name!r}")
    _integers("seed", (spec.seed,), 0, (1 << 64) - 1)
    _integers("input shape", spec.input, 1, 1 << 20)
    _integers("range", spec.range, -(1 << 31), (1 << 31) - 1)
    _integers("classes", (spec.classes,), 2, 1 << 16)
    if not 1 <= len(spec.input) <= 3:
        raise SpecError(f"an input has 1 to 3 dimensions, found {list(spec.input)}")
    if math.prod(spec.input) > MAX_ACTIVATION:
        raise SpecError(f"an input has at most {MAX_ACTIVATION} values, found {list(spec.input)}")
    if spec.range[0] >= spec.range[1]:
        raise SpecError(f"range is (low, high) with low < high, found {spec.range}")
    if not spec.tensors:
        raise SpecError("a model without a masked tensor has nothing to learn")
    for tensor in spec.tensors:
        if not isinstance(tensor.name, str) or not _PATH.match(tensor.name):
            raise SpecError(f"a tensor's name is [A-Za-z0-9_.], found {tensor.name!r}")
        # Before any product: a long list of large dimensions costs seconds to multiply.
        if not 1 <= len(tensor.shape) <= 4:
            raise SpecError(f"{tensor.name} has {len(tensor.shape)} dimensions; 1 to 4 are possible")
        _integers(f"shape of {tensor.name}", tensor.shape, 1, MAX_D)
        _integers(f"scale of {tensor.name}", (tensor.scale,), 1, 0x7F7FFFFF)  # finite, above zero
    if spec.d > MAX_D:
        raise SpecError(f"at most {MAX_D} masked weights, found {spec.d}")
    used = [n for layer in spec.layers if isinstance(layer, Linear | Conv2d) for n in (layer.weight, layer.bias)]
    used = [name for name in used if name is not None]
    if used != [tensor.name for tensor in spec.tensors] or len(set(used)) != len(used):
        raise SpecError("tensors must be listed once each, in the order in which the layers use them")
    last = spec.shapes()[-1]
    if last != (spec.classes,):
        raise SpecError(f"the last layer gives {list(last)}, the model has {spec.classes} classes")


def _after(layer: Layer, shape: Shape, tensors: dict[str, tuple[Tensor, int]], number: int) -> Shape:
    """Shape of one example after `layer`; SpecError where it does not fit."""
    where = f"layer {number} ({layer.op})"

    def expect(name: str | None, wanted: Shape) -> None:
        if name is not None and tensors[name][0].shape != wanted:
            raise SpecError(f"{where}: {name} is {list(tensors[name][0].shape)}, expected {list(wanted)}")

    if isinstance(layer, Linear):
        weight = tensors[layer.weight][0].shape
        if len(shape) != 1 or len(weight) != 2 or weight[1] != shape[0]:
            raise SpecError(f"{where}: weight {list(weight)} does not take an input of {list(shape)}")
        expect(layer.bias, weight[:1])
        return weight[:1]
    if isinstance(layer, Conv2d):
        weight = tensors[layer.weight][0].shape
        _integers(f"{where}: stride", layer.stride, 1, 1 << 10)
        _integers(f"{where}: padding", layer.padding, 0, 1 << 10)
        if len(shape) != 3 or len(weight) != 4 or weight[1] != shape[0]:
            raise SpecError(f"{where}: weight {list(weight)} does not take an input of {list(shape)}")
        if len(layer.stride) != 2 or len(layer.padding) != 2:
            raise SpecError(f"{where}: stride and padding have two entries each")
        expect(layer.bias, weight[:1])
        sides = tuple(
            (side + 2 * pad - kernel) // step + 1
            for side, kernel, step, pad in zip(shape[1:], weight[2:], layer.stride, layer.padding, strict=True)
        )
        return _sides(where, (weight[0], *sides))
    if isinstance(layer, MaxPool2d):
        _integers(f"{where}: size", layer.size, 1, 1 << 10)
        if len(shape) != 3 or len(layer.size) != 2:
            raise SpecError(f"{where}: takes channels x height x width, found {list(shape)}")
        return _sides(where, (shape[0], shape[1] // layer.size[0], shape[2] // layer.size[1]))
    if isinstance(layer, Flatten):
        return (math.prod(shape),)
    if isinstance(layer, GroupNorm):
        _integers(f"{where}: groups", (layer.groups,), 1, 1 << 20)
        if shape[0] % layer.groups or math.prod(shape) == layer.groups:
            raise SpecError(f"{where}: {list(shape)} does not make {layer.groups} equal groups of more than one value")
    return shape


def _sides(where: str, shape: Shape) -> Shape:
    if min(shape) < 1 or math.prod(shape) > MAX_ACTIVATION:
        raise SpecError(f"{where}: gives a shape of {list(shape)}")
    return shape
