"""Descriptions of a ModelSpec and of a finished model's size, for people and, as plain dicts, for programs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from seedmask.layers import GELU, Concat, Conv2d, GroupNorm, LayerNorm, Mean, Permute, Pool2d, RMSNorm
from seedmask.model import Sizes
from seedmask.spec import ModelSpec


def is_chain(spec: ModelSpec) -> bool:
    """True if the input of every layer is the output of the layer before it, and nothing else."""
    return all(layer.takes(number) == (number,) for number, layer in enumerate(spec.layers))


def label(spec: ModelSpec, number: int) -> str:
    """Return layer `number` in a few words: its op, settings other than the default, and its sources if unusual."""
    layer = spec.layers[number]
    words = [layer.op]
    if isinstance(layer, Conv2d):
        words.append(by(spec.offsets[layer.weight][0].shape[2:]))
        words += [f"stride {by(layer.stride)}"] * (layer.stride != (1, 1))
        words += [f"dilation {by(layer.dilation)}"] * (layer.dilation != (1, 1))
        words += [f"groups {layer.groups}"] * (layer.groups > 1)
    elif isinstance(layer, Pool2d):
        words.append(by(layer.size))
    elif isinstance(layer, GroupNorm | LayerNorm | RMSNorm):
        words.append(str(layer.groups) if isinstance(layer, GroupNorm) else f"last {layer.dims}")
        words += [word for word, name in (("scale", layer.scale), ("shift", layer.shift)) if name]
    elif isinstance(layer, Mean | Permute):
        words.append(",".join(map(str, layer.axes if isinstance(layer, Mean) else layer.order)))
    elif isinstance(layer, GELU) and layer.approximate != "none":
        words.append(layer.approximate)
    elif isinstance(layer, Concat):
        words.append(f"along {layer.axis}")
    if layer.takes(number) != (number,):
        words.append("of " + ", ".join(map(str, layer.takes(number))))
    return " ".join(words)


def by(sides: Iterable[int]) -> str:
    """Return a shape as text, such as 1x28x28."""
    return "x".join(map(str, sides))


def spec_facts(spec: ModelSpec, data: bytes) -> dict[str, Any]:
    """Return the facts about `spec`, read from the file content `data`, that `seedmask inspect --json` prints."""
    return {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "name": spec.name,
        "model": spec.digest.hex(),
        "seed": f"{spec.seed:#018x}",
        "input": list(spec.input),
        "range": list(spec.range),
        "classes": spec.classes,
        "parameters": spec.d,
        "frozen": spec.count("frozen"),
        "exact": spec.e,
        "outputs": spec.outputs,
        "loss": spec.loss,
        "chain": is_chain(spec),
        "layers": [label(spec, number) for number in range(len(spec.layers))],
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "size": t.size, "constant": t.constant, "kind": t.kind}
            | ({"start": t.start} if t.kind == "exact" else {})
            for t in spec.tensors
        ],
    }


def size_lines(sizes: Sizes) -> list[str]:
    """Return lines of text that show the size of a finished model's file and of its parts."""

    def line(what: str, size: int, more: str) -> str:
        return f"{what:<10}{size:>11,} bytes  {8 * size / sizes.d:.4f} bit per parameter{more}"

    over = f", {sizes.over_entropy:.2%} above" if sizes.entropy_bits else ""
    bound = f"; bound {sizes.entropy_bits / 8:,.0f} bytes ({sizes.entropy_bits / sizes.d:.4f}){over}"
    rest = sizes.file - sizes.mask - sizes.spec - sizes.exact
    return [
        line("file", sizes.file, ""),
        line("  mask", sizes.mask, f", {sizes.codec}{bound}"),
        *([line("  exact", sizes.exact, ": values that are no mask")] if sizes.exact else []),
        line("  spec", sizes.spec, ": layers, shapes, seed"),
        line("  frame", rest, ": header and SHA-256"),
    ]


def size_facts(sizes: Sizes) -> dict[str, Any]:
    """Return the sizes of a finished model's file as a dict, in bits per parameter and in bytes."""
    return {
        "bits_per_parameter": round(8 * sizes.file / sizes.d, 6),
        "mask_bits_per_parameter": round(8 * sizes.mask / sizes.d, 6),
        "entropy_bits_per_parameter": round(sizes.entropy_bits / sizes.d, 6),
        "sizes": asdict(sizes),
    }
