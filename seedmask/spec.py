"""ModelSpec: description of a network by its layers, its tensors in order, and the seed of its random weights.

The canonical JSON (PROTOCOL 4) holds only integers and ASCII strings, so that every language writes the same bytes; its
SHA-256 identifies the model. A tensor's weights are +c or -c; c travels as the bit pattern of its binary32 value, never
as a decimal. `Tensor.kind` says which tensors have a mask.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from seedmask.errors import SpecError
from seedmask.layers import (
    MAX_ACTIVATION,
    Conv2d,
    Flatten,
    GroupNorm,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Shape,
    integers,
    shapes_of,
)
from seedmask.mask import EXACT_ONE, I32, MAX_D, MAX_EXACT, Theta
from seedmask.seed import sign_bits

SPEC_VERSION = 1
MAX_SPEC_BYTES = 1 << 20
LOSSES = ("cross-entropy", "mse")
KINDS = ("masked", "frozen", "exact")

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_PATH = re.compile(r"[A-Za-z0-9_.]{1,128}\Z")

F32 = npt.NDArray[np.float32]


# Some layers may be imported from here as well; all of them are in seedmask.layers.
__all__ = [
    "F32",
    "KINDS",
    "LOSSES",
    "MAX_ACTIVATION",
    "Conv2d",
    "Flatten",
    "GroupNorm",
    "Layer",
    "Linear",
    "MaxPool2d",
    "ModelSpec",
    "ReLU",
    "Shape",
    "Tensor",
    "from_json",
    "scale_bits",
]
_LAYERS: dict[str, type[Layer]] = {kind.op: kind for kind in get_args(Layer)}


@dataclass(frozen=True)
class Tensor:
    """Tensor of a network, of one of three KINDS.

    "masked": entries are +c or -c by the seed, and the mask keeps each or makes it zero; `scale` is the binary32 bit
    pattern of c > 0. "frozen": the same without a mask, every entry is kept. "exact": ordinary numbers, trained and
    sent as integers in units of 2**-12; all start from `start`, 0 or 1, and `scale` is 0.
    """

    name: str
    shape: Shape
    scale: int = 0
    kind: str = KINDS[0]
    start: int = 0

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def constant(self) -> float:
        """Magnitude c of the entries; 0 for an exact tensor."""
        return float(struct.unpack("<f", struct.pack("<I", self.scale))[0])


def scale_bits(constant: float) -> int:
    """Return the binary32 bit pattern of `constant`, for Tensor.scale."""
    return int(struct.unpack("<I", struct.pack("<f", constant))[0])


@dataclass(frozen=True)
class ModelSpec:
    """Network whose weights are random signs times a constant.  PROTOCOL 4.

    `name` [a-z0-9-]; `seed` 64 bits; `input`: shape of one example; `range` (low, high): raw inputs are mapped from it
    to -1 .. 1; `classes`: number of outputs of the last layer; `layers` (`seedmask.layers`), each after the layers
    whose outputs it takes; `tensors` in the order in which layers use them, which is also their order in the flat
    vector of each kind; `loss`: "cross-entropy", with class numbers as targets, or "mse", the mean squared error over
    all `classes` outputs, with as many numbers as targets. Raises SpecError if the parts do not fit together.
    """

    name: str
    seed: int
    input: Shape
    range: tuple[int, int]
    classes: int
    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]
    loss: str = LOSSES[0]

    def __post_init__(self) -> None:
        _check(self)

    @property
    def outputs(self) -> str:
        """Word for the numbers that the last layer gives: "classes" or "outputs"."""
        return "classes" if self.loss == LOSSES[0] else "outputs"

    @cached_property
    def d(self) -> int:
        """Number of masked weights."""
        return self.count("masked")

    @cached_property
    def e(self) -> int:
        """Number of exact values."""
        return self.count("exact")

    def count(self, kind: str) -> int:
        """Return the number of entries of all tensors of one kind."""
        return sum(tensor.size for tensor in self.tensors if tensor.kind == kind)

    @cached_property
    def masked(self) -> tuple[Tensor, ...]:
        """Masked tensors, in the order of the mask."""
        return tuple(tensor for tensor in self.tensors if tensor.kind == "masked")

    @cached_property
    def offsets(self) -> dict[str, tuple[Tensor, int]]:
        """Tensors by name, each with the index of its first entry in the flat vector of its kind."""
        out, at = {}, dict.fromkeys(KINDS, 0)
        for tensor in self.tensors:
            out[tensor.name] = (tensor, at[tensor.kind])
            at[tensor.kind] += tensor.size
        return out

    def parts(self, masked: Any, frozen: Any, exact: Any) -> dict[str, Any]:
        """Return every tensor by name, in its shape, as a view of the flat vector of its kind.

        The vectors [d], [frozen entries] and [e] may be NumPy's, torch's, or anything that slices and reshapes alike.
        """
        flat = dict(zip(KINDS, (masked, frozen, exact), strict=True))
        return {name: flat[t.kind][at : at + t.size].reshape(t.shape) for name, (t, at) in self.offsets.items()}

    def canonical(self) -> bytes:
        """Return the canonical JSON (PROTOCOL 4): sorted keys, no spaces, integers and ASCII strings, no defaults."""
        value = {
            "version": SPEC_VERSION,
            "name": self.name,
            "seed": f"{self.seed:016x}",
            "input": list(self.input),
            "range": list(self.range),
            "classes": self.classes,
            "layers": [{"op": layer.op, **_given(layer)} for layer in self.layers],
            "tensors": [{"name": t.name, "shape": list(t.shape), **_kind_of(t)} for t in self.tensors],
            **({} if self.loss == LOSSES[0] else {"loss": self.loss}),
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @cached_property
    def digest(self) -> bytes:
        """Identity of the model: SHA-256 of the canonical JSON, 32 bytes."""
        return hashlib.sha256(self.canonical()).digest()

    def weights(self) -> F32:
        """Return all masked weights before masking, float32 [d] of +c and -c, regenerated from the seed."""
        return self._random("masked")

    def frozen(self) -> F32:
        """Return the frozen weights, float32 [frozen entries] of +c and -c, regenerated from the seed."""
        return self._random("frozen")

    def _random(self, kind: str) -> F32:
        if not self.count(kind):
            return np.zeros(0, np.float32)
        # Masked and frozen tensors take their signs from one stream, in the order of the tensors.
        drawn = [tensor for tensor in self.tensors if tensor.kind != "exact"]
        negative = sign_bits(self.seed, sum(tensor.size for tensor in drawn)).astype(np.bool_)
        parts, at = [], 0
        for tensor in drawn:
            if tensor.kind == kind:
                part = np.full(tensor.size, tensor.constant, np.float32)
                part[negative[at : at + tensor.size]] *= np.float32(-1)
                parts.append(part)
            at += tensor.size
        return np.concatenate(parts)

    def begin(self) -> I32:
        """Return the initial exact values, int32 [e] in units of 2**-12."""
        starts = [np.full(t.size, t.start * EXACT_ONE, np.int32) for t in self.tensors if t.kind == "exact"]
        return np.concatenate([np.zeros(0, np.int32), *starts])

    def even(self) -> Theta:
        """Return the usual theta of a new job: probability one half, and the initial exact values."""
        return Theta.even(self.d, exact=self.begin())

    def normalise(self, raw: npt.NDArray[Any]) -> F32:
        """Return raw inputs [n, *input], uint8 or float, mapped from `range` to -1 .. 1, float32."""
        low, high = self.range
        out: F32 = raw.astype(np.float32)
        out -= np.float32(low)  # in place: a batch of images is megabytes
        out *= np.float32(2.0 / (high - low))
        out -= np.float32(1)
        return out

    def shapes(self) -> list[Shape]:
        """Return the shapes of one example: the input's, then that of each layer's output, len(layers) + 1 in all."""
        return shapes_of(self.layers, self.input, {tensor.name: tensor.shape for tensor in self.tensors})

    @cached_property
    def takers(self) -> list[list[int]]:
        """Consumers of each value: the numbers of the layers that take it, ascending, repeated if taken twice.

        Value 0 is the input, value i + 1 the output of layer i.
        """
        out: list[list[int]] = [[] for _ in range(len(self.layers) + 1)]
        for number, layer in enumerate(self.layers):
            for source in layer.takes(number):
                out[source].append(number)
        return out


def _kind_of(tensor: Tensor) -> dict[str, Any]:
    """Return the entries of a tensor's JSON object that depend on its kind."""
    if tensor.kind == "exact":
        return {"kind": tensor.kind, **({"start": tensor.start} if tensor.start else {})}
    return {"scale": tensor.scale, **({} if tensor.kind == KINDS[0] else {"kind": tensor.kind})}


def _given(layer: Layer) -> dict[str, Any]:
    values = {field: getattr(layer, field.name) for field in fields(layer)}
    return {field.name: value for field, value in values.items() if value != field.default}


def from_json(data: bytes) -> ModelSpec:
    """Return the spec in its canonical JSON. Raises SpecError for any other bytes."""
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
        tensors=tuple(Tensor(**{**t, "shape": tuple(t["shape"])}) for t in value["tensors"]),
        loss=value.get("loss", LOSSES[0]),
    )


def _check(spec: ModelSpec) -> None:
    if not isinstance(spec.name, str) or not _NAME.match(spec.name):
        raise SpecError(f"a model's name is [a-z0-9-], at most 63 long, found {spec.name!r}")
    integers("seed", (spec.seed,), 0, (1 << 64) - 1)
    integers("input shape", spec.input, 1, 1 << 20)
    integers("range", spec.range, -(1 << 31), (1 << 31) - 1)
    if spec.loss not in LOSSES:
        raise SpecError(f"loss is one of {', '.join(LOSSES)}, found {spec.loss!r}")
    integers("classes", (spec.classes,), 2 if spec.loss == LOSSES[0] else 1, 1 << 16)
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
        integers(f"shape of {tensor.name}", tensor.shape, 1, MAX_D)
        if tensor.kind not in KINDS:
            raise SpecError(f"{tensor.name} is of kind {tensor.kind!r}; there are {', '.join(KINDS)}")
        exact = tensor.kind == "exact"
        integers(f"scale of {tensor.name}", (tensor.scale,), *((0, 0) if exact else (1, 0x7F7FFFFF)))  # finite, above 0
        integers(f"start of {tensor.name}", (tensor.start,), 0, 1 if exact else 0)
    if not 1 <= spec.d <= MAX_D - spec.count("frozen"):
        raise SpecError(
            f"1 masked weight at least, {MAX_D} with the frozen ones at most; found {spec.d} and {spec.count('frozen')}"
        )
    if spec.e > MAX_EXACT:
        raise SpecError(
            f"at most {MAX_EXACT} exact values in all, found {spec.e}; they cost 32 bits where a mask has 1"
        )
    used = [name for layer in spec.layers for name in layer.tensors]
    if used != [tensor.name for tensor in spec.tensors] or len(set(used)) != len(used):
        raise SpecError("tensors must be listed once each, in the order in which the layers use them")
    for layer in spec.layers:
        for name in layer.exact:
            if spec.offsets[name][0].kind != "exact":
                raise SpecError(f"{name} of a {layer.op} is exact or left out, found {spec.offsets[name][0].kind}")
    last = spec.shapes()[-1]
    if last != (spec.classes,):
        raise SpecError(f"the last layer gives {list(last)}, the model has {spec.classes} {spec.outputs}")
    for value, takers in enumerate(spec.takers[:-1]):
        if not takers:
            raise SpecError(f"layer {value - 1} ({spec.layers[value - 1].op}): nothing takes what it gives")
