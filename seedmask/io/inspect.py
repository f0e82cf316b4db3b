"""Command `seedmask inspect`: the content of a bundle or a finished model, with every digest checked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from seedmask import bundle as bundles
from seedmask import model as models
from seedmask.describe import by, size_facts, size_lines, spec_facts
from seedmask.errors import ProtocolError, UserError
from seedmask.io.commands import Command


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
    shape = by(facts["input"])
    output = f"{facts['classes']} {facts['outputs']}, loss {facts['loss']}"
    print(f"input     {shape}, values {facts['range'][0]} .. {facts['range'][1]}; {output}")
    others = "".join(f", {facts[kind]:,} {kind}" for kind in ("frozen", "exact") if facts[kind])
    print(f"weights   {facts['parameters']:,}, none stored{others}")
    names, shapes = [row["name"] for row in facts["tensors"]], [by(row["shape"]) for row in facts["tensors"]]
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


def describe(path: Path) -> dict[str, Any]:
    """Return the facts about the bundle or finished model `path`, for `seedmask inspect --json`.

    Raises UserError if the file cannot be read, or a digest in it is wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        if data[:4] == models.MAGIC:
            model = models.decode(data)
            return {
                "kind": "finished model",
                **spec_facts(model.spec, data),
                "ones": round(float(model.mask.mean()), 6),
                **size_facts(models.sizes(model, data)),
            }
        bundle = bundles.from_bytes(data)
    except ProtocolError as error:
        raise UserError(f"{path}: {error}") from None
    return {
        "kind": "bundle",
        **spec_facts(bundle.spec, data),
        "batch": bundle.batch,
        "files": {name: len(content) for name, content in sorted(bundle.files.items())},
    }


COMMAND = Command("inspect", "say what is in a bundle or a finished model", (), "onnxruntime", _arguments, _run)
