"""The golden vectors: both implementations agree with every literal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from seedmask import errors, layers
from seedmask.codec import CODECS, counts, delta, exact, relay, tensors
from seedmask.training import OPTIONS
from seedmask.wire import Phase, Status

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "tests" / "vectors"
PROTOCOL = (ROOT / "seedmask" / "PROTOCOL.md").read_text(encoding="utf-8")


def run(*command: str) -> str:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python_gives_every_literal() -> None:
    assert "every literal as stored" in run(sys.executable, "tests/vectors/make.py", "--check")


@pytest.mark.requires("node")
def test_javascript_agrees_both_ways() -> None:
    assert re.search(r"all \d+ vectors agree", run("node", "tests/vectors/verify.mjs"))


def test_the_vectors_stay_small() -> None:
    assert (VECTORS / "v3.json").stat().st_size < 250_000


def test_every_error_that_bytes_can_cause_has_a_reject() -> None:
    rejects = json.loads((VECTORS / "v3.json").read_text(encoding="ascii"))["rejects"]
    found = {vector["error"] for group in rejects.values() for vector in group}
    codes = {kind.code for kind in errors.ProtocolError.__subclasses__()}
    assert found == codes


def section(number: int) -> str:
    return re.split(r"^## ", PROTOCOL, flags=re.MULTILINE)[number]


def test_the_protocols_error_table_is_the_programs() -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \|", section(10), re.MULTILINE)
    assert listed == [kind.code for kind in errors.ProtocolError.__subclasses__()]


def test_the_protocols_layer_table_is_the_programs() -> None:
    table = section(4).partition("| `op` |")[2]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ((?:`\w+`(?:, )?)* ?)\|", table, re.MULTILINE)
    found = {op: set(re.findall(r"`(\w+)`", keys)) for ops, keys in rows for op in re.findall(r"`(\w+)`", ops)}
    known = {kind.op: {field.name for field in fields(kind)} - {"source"} for kind in get_args(layers.Layer)}
    assert found == known


def test_every_layer_is_in_a_vector() -> None:
    specs = json.loads((VECTORS / "v3.json").read_text(encoding="ascii"))["specs"]
    found = {layer["op"] for vector in specs for layer in json.loads(vector["json"])["layers"]}
    assert found == {kind.op for kind in get_args(layers.Layer)}


def test_the_protocols_codec_table_is_the_programs() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section(5), re.MULTILINE)
    modules: tuple[Any, ...] = (*CODECS.values(), counts, delta, relay, tensors, exact)
    known = [(codec.ID, codec.NAME) for codec in modules]
    assert [(int(number), name) for number, name in rows] == known


def test_the_protocols_status_table_is_the_programs() -> None:
    statuses = section(6).partition("| status |")[2]
    rows = re.findall(r"^\| (\d+) \| ([a-z ]+) \|", statuses, re.MULTILINE)
    assert [(int(n), name) for n, name in rows] == [(s.value, s.name.lower().replace("_", " ")) for s in Status]
    assert all(f"{phase.value} {phase.name.lower()}" in section(6) for phase in Phase)


def test_the_protocols_option_table_is_the_programs() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\d+) \.\. ([\d^-]+) \| (\d+) \|", section(6), re.MULTILINE)
    numbers = {"2^32-1": (1 << 32) - 1, "2^28": 1 << 28}
    found = [(int(n), name, int(low), numbers.get(high) or int(high), int(known)) for n, name, low, high, known in rows]
    wanted = [(n, one.name, *one.span, one.number(one.default)) for n, one in OPTIONS.items()]
    assert found == wanted
