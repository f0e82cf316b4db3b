"""`seedmask inspect`: what is in a bundle or a finished model, after every digest has been checked."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seedmask import bundle as bundles
from seedmask import model as models
from seedmask.errors import ProtocolError, UserError
from seedmask.io.commands import Command
from seedmask.layers import GELU, Concat, Conv2d, GroupNorm, LayerNorm, Mean, Permute, Pool2d, RMSNorm
from seedmask.spec import ModelSpec


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a .bundle of `seedmask export`, or the .smk of a finished model")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _run(options: argparse.Namespace) -> int:
    facts = describe(options.file)
    if options.json:
        print(json.dumps(facts, indent=1))
        return 0
    print(f"{facts['kind']} {options.file}, {facts['bytes']:,} bytes, every digest right")
    print(f"model     {facts['name']}, {facts['model']}")
    print(f"seed      {facts['seed']}")
    shape = _by(facts["input"])
    output = f"{facts['classes']} {facts['outputs']}, loss {facts['loss']}"
    print(f"input     {shape}, values {facts['range'][0]} .. {facts['range'][1]}; {output}")
    others = "".join(f", {facts[kind]:,} {kind}" for kind in ("frozen", "exact") if facts[kind])
    print(f"weights   {facts['parameters']:,}, none stored{others}")
    names, shapes = [row["name"] for row in facts["tensors"]], [_by(row["shape"]) for row in facts["tensors"]]
    wide, across = (max(16, 2 + max(map(len, column))) for column in (names, shapes))
    for name, shape, row in zip(names, shapes, facts["tensors"], strict=True):
        scale = f"from {row['start']}" if row["kind"] == "exact" else f"+-{row['constant']:.6g}"
        kind = "" if row["kind"] == "masked" else f"  {row['kind']}"
        print(f"          {name:<{wide}}{shape:<{across}}{row['size']:>11,}  {scale}{kind}")
    if facts["chain"]:
        print(f"layers    {' -> '.join(facts['layers'])}")
    else:
        print("layers    each takes the one before unless it names others; 0 is the input")
        for number, layer in enumerate(facts["layers"], 1):
            print(f"          {number:<4}{layer}")
    if "batch" in facts:
        print(f"batch     {facts['batch']} examples per training step")
        wide = max(32, 2 + max(map(len, facts["files"]), default=0))
        for name, size in facts["files"].items():
            print(f"          {name:<{wide}}{size:>11,} bytes")
    else:
        print(f"kept      {facts['ones']:.1%} of the weights")
        print("\n".join(size_lines(models.Sizes(**facts["sizes"]))))
    return 0


def size_lines(sizes: models.Sizes) -> list[str]:
    """What each byte of a finished model is for, a line each."""

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


def size_facts(sizes: models.Sizes) -> dict[str, Any]:
    """The same for a program."""
    return {
        "bits_per_parameter": round(8 * sizes.file / sizes.d, 6),
        "mask_bits_per_parameter": round(8 * sizes.mask / sizes.d, 6),
        "entropy_bits_per_parameter": round(sizes.entropy_bits / sizes.d, 6),
        "sizes": asdict(sizes),
    }


def describe(path: Path) -> dict[str, Any]:
    """What a file says about itself. Raises UserError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        if data[:4] == models.MAGIC:
            model = models.decode(data)
            return {
                "kind": "finished model",
                **_of_spec(model.spec, data),
                "ones": round(float(model.mask.mean()), 6),
                **size_facts(models.sizes(model, data)),
            }
        bundle = bundles.from_bytes(data)
    except ProtocolError as error:
        raise UserError(f"{path}: {error}") from None
    return {
        "kind": "bundle",
        **_of_spec(bundle.spec, data),
        "batch": bundle.batch,
        "files": {name: len(content) for name, content in sorted(bundle.files.items())},
    }


def is_chain(spec: ModelSpec) -> bool:
    """Whether every layer takes the one before it and nothing else."""
    return all(layer.takes(number) == (number,) for number, layer in enumerate(spec.layers))


def label(spec: ModelSpec, number: int) -> str:
    """A layer in a few words: what it is, what is not usual about it, and the values it takes if not the one before."""
    layer = spec.layers[number]
    words = [layer.op]
    if isinstance(layer, Conv2d):
        words.append(_by(spec.offsets[layer.weight][0].shape[2:]))
        words += [f"stride {_by(layer.stride)}"] * (layer.stride != (1, 1))
        words += [f"dilation {_by(layer.dilation)}"] * (layer.dilation != (1, 1))
        words += [f"groups {layer.groups}"] * (layer.groups > 1)
    elif isinstance(layer, Pool2d):
        words.append(_by(layer.size))
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


def _by(sides: Iterable[int]) -> str:
    return "x".join(map(str, sides))


def _of_spec(spec: ModelSpec, data: bytes) -> dict[str, Any]:
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


COMMAND = Command("inspect", "say what is in a bundle or a finished model", (), "onnxruntime", _arguments, _run)
