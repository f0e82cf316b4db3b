"""The golden vectors of protocol version 3: `python tests/vectors/make.py` writes v3.json, `--check` verifies it.

Literals that two implementations must agree on. Version 3 is a draft: they may be edited, together with PROTOCOL and
both implementations, until it is closed; then other bytes are a new version with a file of its own. `verify.mjs` beside
this file checks the JavaScript client against the same literals. Nothing here is drawn from a library's generator: what
is too long to store is a recipe over PROTOCOL 2's own words.

Recipes. With u = uniforms16(uniforms_key(seed, 0, 0), d) and v = uniforms16(uniforms_key(seed, 0, 1), d):
levels `spread` u * (top + 1) div 65536; `polarised` 0 where u < 26214, top where u >= 39322, between them
(u - 26214) * (top + 1) div 13108; `bottom` 0; `max_level` top.
masks `drawn` v < q16; `against` the opposite of drawn; `zeros`; `ones`; bytes of a blob: v mod 256.
With w = uniforms16(uniforms_key(seed, 0, 2), d), the scores of `hmrc` are ln(q16 / (65536 - q16)) + (w - 32768) / 32768
in binary32, and its n-th block's random number is uniforms16(uniforms_key(seed, 0, 3), blocks)[n] / 65536.
A value of more than 700 bytes is stored as its length and SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import struct
import sys
import zipfile
import zlib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seedmask import PROTOCOL_VERSION, bundle, chunks, codec, layers, mask, model, seed, spec, wire
from seedmask.codec import Plan, ans, counts, delta, exact, hmrc, packed, rans, relay, tensors, varint
from seedmask.errors import ProtocolError
from seedmask.pooling import Pooling
from seedmask.shared import Shared
from seedmask.training import OPTIONS as TRAINING
from seedmask.training import TrainingConfig

FILE = Path(__file__).with_name("v3.json")
LONG = 700
SEED = 0x5EED_0123_4567_89AB


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check the golden vectors.")
    parser.add_argument("--check", action="store_true", help="compare with v3.json instead of writing it")
    if not parser.parse_args().check:
        FILE.write_text(text(vectors()), encoding="ascii")
        print(f"{FILE.name}: {FILE.stat().st_size} bytes")
        return 0
    different = difference(json.loads(FILE.read_text(encoding="ascii")), json.loads(text(vectors())), FILE.name)
    print(different or f"{FILE.name}: every literal as stored")
    return 1 if different else 0


def vectors() -> dict[str, Any]:
    return {
        "about": "Golden vectors of Seedmask protocol 3, a draft; tests/vectors/make.py says how to read them.",
        "protocol": 3,
        "generator": generator(),
        "tables": tables(),
        "shared": [shared_vector(**who) for who in SHARED],
        "cases": [case(*arguments) for arguments in CASES],
        "hmrc": [drawn_blocks(*arguments) for arguments in BLOCKS],
        "delta": [delta_vector(*arguments) for arguments in DELTAS],
        "relay": [relay_vector(*arguments) for arguments in RELAYS],
        "exact": [exact_vector(*arguments) for arguments in EXACTS],
        "models": [
            *(model_vector(finished(*each), each[1]) for each in MODELS),
            model_vector(of_kinds(SPECS["kinds"]), [32768] * 3),
        ],
        "specs": [spec_vector(s) for s in SPECS.values()],
        "bases": bases(),
        "frames": [{"name": n, "message": plain(m), "frame": wire.encode(m).hex()} for n, m in MESSAGES.items()],
        "chunking": chunking(),
        "bundles": [bundle_vector(b) for b in BUNDLES],
        "rejects": rejects(),
    }


def text(value: dict[str, Any]) -> str:
    """One line per vector, so that a difference is one line of a diff."""
    lines = []
    for key, part in value.items():
        if isinstance(part, list):
            part = "[\n  " + ",\n  ".join(json.dumps(item) for item in part) + "\n ]"
        elif isinstance(part, dict):
            groups = [
                f"  {json.dumps(k)}: [\n   " + ",\n   ".join(map(json.dumps, v)) + "\n  ]" for k, v in part.items()
            ]
            part = "{\n" + ",\n".join(groups) + "\n }"
        else:
            part = json.dumps(part)
        lines.append(f' "{key}": {part}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def difference(stored: Any, made: Any, where: str) -> str:
    """The first place where two JSON values differ, as text; empty if there is none."""
    if isinstance(stored, dict) and isinstance(made, dict) and stored.keys() == made.keys():
        pairs = [(stored[k], made[k], f"{where}.{k}") for k in stored]
    elif isinstance(stored, list) and isinstance(made, list) and len(stored) == len(made):
        pairs = [(s, m, f"{where}[{i}]") for i, (s, m) in enumerate(zip(stored, made, strict=True))]
    else:
        return "" if stored == made else f"{where}: stored {short(stored)}, made {short(made)}"
    return next((found for pair in pairs if (found := difference(*pair))), "")


def short(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) < 120 else f"{shown[:117]}..."


def blob(data: bytes) -> str | dict[str, Any]:
    return data.hex() if len(data) <= LONG else {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def word(value: int) -> str:
    return f"{value:08x}"


def key_words(key: seed.Key) -> list[str]:
    return [word(key[0]), word(key[1])]


def le16(values: Any) -> bytes:
    return np.asarray(values).astype("<u2").tobytes()


# --- 2 generator ---

# Random123 1.14, tests/kat_vectors, "threefry 2x32 20": counter, key, result.
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]
SEEDS = [0, 1, SEED, (1 << 64) - 1]


def generator() -> dict[str, Any]:
    blocks = []
    for counter, key, known in KNOWN:
        found = seed.threefry2x32(key, np.array(counter[:1], np.uint32), np.array(counter[1:], np.uint32))
        if (int(found[0][0]), int(found[1][0])) != known:
            raise SystemExit(f"Threefry gives {found}, Random123 gives {known}")
        blocks.append({"counter": key_words(counter), "key": key_words(key), "out": key_words(known)})
    folds = [
        {"key": key_words(key), "number": f"{number:016x}", "out": key_words(seed.fold(key, number))}
        for key in (seed.key_of(0), seed.key_of(SEED))
        for number in (0, 1, 2, 1 << 32, (1 << 64) - 1)
    ]
    streams = [
        {
            "key": key_words(seed.key_of(s)),
            "n": n,
            "words": blob(seed.words(seed.key_of(s), n).astype("<u4").tobytes()),
        }
        for s in SEEDS
        for n in (1, 2, 9)
    ]
    signs = []
    for s in SEEDS:
        for d in (1, 7, 31, 32, 33, 65, 1000, 70001):
            bits = np.packbits(seed.sign_bits(s, d), bitorder="little").tobytes()
            signs.append({"seed": f"{s:016x}", "d": d, "key": key_words(seed.weights_key(s)), "bits": blob(bits)})
    uniforms = []
    for s, round_, slot, n in [
        (0, 0, 0, 1),
        (SEED, 1, 0, 9),
        (SEED, 0xFFFFFFFF, 65535, 8),
        (SEED, 3, 1, 70001),
    ]:
        key = seed.uniforms_key(s, round_, slot)
        uniforms.append(
            {"seed": f"{s:016x}", "round": round_, "slot": slot, "n": n, "key": key_words(key)}
            | {"values": blob(le16(seed.uniforms16(key, n)))}
        )
    return {
        "threefry2x32": blocks,
        "fold": folds,
        "words": streams,
        "sign_bits": signs,
        "uniforms16": uniforms,
    }


# --- 3, 5 theta, mask, codecs ---


def tables() -> list[dict[str, Any]]:
    max_levels = [(t, c) for t in (1, 2, 3, 10, 100, 300, 65535) for c in (mask.CLAMP, 1, 32767)]
    return [
        {"max_level": max_level, "clamp": clamp, "table": blob(le16(mask.table(max_level, clamp)))}
        for max_level, clamp in max_levels
    ]


CASES = [
    # d, top, clamp, levels, mask
    (1, 1, 655, "bottom", "zeros"),
    (1, 1, 655, "top", "zeros"),
    (1, 2, 655, "spread", "ones"),
    (1, 65535, 1, "spread", "drawn"),
    (7, 2, 655, "spread", "drawn"),
    (7, 10, 655, "spread", "against"),
    (7, 300, 32767, "spread", "ones"),
    *[(1000, max_level, 655, levels, "drawn") for max_level in (2, 10, 100, 300) for levels in ("spread", "polarised")],
    (1000, 1, 1, "bottom", "drawn"),
    (1000, 1, 1, "top", "zeros"),
    (1000, 10, 1, "polarised", "against"),
    (1000, 65535, 1, "spread", "drawn"),
    (1003, 255, 655, "spread", "drawn"),
    (1003, 256, 655, "spread", "drawn"),
    (8189, 2, 655, "spread", "drawn"),  # 2048 four-bit symbols in one bucket or more: two lanes
    *[(70001, max_level, 655, "polarised", "drawn") for max_level in (2, 10, 100, 300)],
    (70001, 10, 1, "polarised", "against"),
    (70001, 2, 655, "bottom", "zeros"),
]


def case(d: int, max_level: int, clamp: int, levels: str, bits: str) -> dict[str, Any]:
    theta = make_theta(d, max_level, clamp, levels)
    m = make_mask(theta, bits)
    coded = {"packed": packed.encode(m, theta), "rans": rans.encode(m, theta)}
    return {
        "d": d,
        "max_level": max_level,
        "clamp": clamp,
        "levels": levels,
        "mask": bits,
        "seed": f"{SEED + d:016x}",
        **({"level": theta.level.tolist(), "bits": m.tolist()} if d <= 7 else {}),
        "digest": theta.digest().hex(),
        "counts": blob(counts.encode(theta)),
        **{name: blob(payload) for name, payload in coded.items()},
    }


def shared(d: int) -> Shared:
    """Of every case with `d` weights."""
    return Shared(SEED + d, 1, "job", "dev")


SHARED: list[dict[str, Any]] = [
    {"seed": SEED, "round": 1, "job": "job", "device": "dev", "index": 0, "n": 9},
    {"seed": SEED, "round": 1, "job": "job", "device": "dev", "index": 1, "n": 9},
    {"seed": (1 << 64) - 1, "round": (1 << 32) - 1, "job": "a", "device": "b-2", "index": 0, "n": 9001},
    {"seed": SEED, "round": 2, "job": "job", "device": "another", "index": 0, "n": 1000},
]


def shared_vector(n: int, **who: Any) -> dict[str, Any]:
    found = le16(Shared(**who).uniforms(n))
    return {**who, "seed": f"{who['seed']:016x}", "n": n, "values": blob(found)}


# d, top, clamp, levels, kappa, most blocks
BLOCKS = [
    (1, 2, 655, "spread", 5.0, 0),
    (7, 10, 655, "spread", 5.0, 0),
    (300, 3, 655, "spread", 5.0, 0),
    (4099, 10, 655, "polarised", 1.0, 0),
    (4099, 10, 655, "polarised", 5.0, 11),
    (70001, 2, 1, "spread", 24.0, 0),
    (70001, 255, 655, "polarised", 5.0, 0),
]


def drawn_blocks(d: int, max_level: int, clamp: int, levels: str, kappa: float, most: int) -> dict[str, Any]:
    theta = make_theta(d, max_level, clamp, levels)
    q = theta.q16().astype(np.float64)
    w = seed.uniforms16(seed.uniforms_key(SEED + d, 0, 2), d)
    scores = (np.log(q / (mask.ONE - q)) + (w - 32768.0) / 32768).astype(np.float32)
    payload = hmrc.draw(scores, theta, shared(d), Chance(SEED + d), Plan(kappa, most))  # type: ignore[arg-type]
    return {
        "d": d,
        "max_level": max_level,
        "clamp": clamp,
        "levels": levels,
        "seed": f"{SEED + d:016x}",
        "kappa": kappa,
        "max_blocks": most,
        "payload": blob(payload),
        "mask": blob(packed.encode(hmrc.decode(payload, theta, shared(d), most), theta)),
    }


class Chance:
    """Stands in for a generator: the random numbers of the recipe."""

    def __init__(self, number: int) -> None:
        self.number = number

    def random(self, shape: tuple[int, int], _: Any) -> Any:
        values = seed.uniforms16(seed.uniforms_key(self.number, 0, 3), shape[0])
        return (values / np.float32(mask.ONE)).astype(np.float32).reshape(shape)


# d, then top and levels of the base and of theta
DELTAS = [
    (1, 2, "spread", 1, "spread"),
    (300, 2, "top", 10, "spread"),
    (4099, 3, "spread", 3, "polarised"),
    (4099, 3, "spread", 3, "spread"),
    (70001, 10, "polarised", 15, "spread"),
]


def delta_vector(d: int, base_max_level: int, base_levels: str, max_level: int, levels: str) -> dict[str, Any]:
    base, theta = make_theta(d, base_max_level, 655, base_levels), make_theta(d, max_level, 655, levels)
    return {
        "d": d,
        "base_max_level": base_max_level,
        "base_levels": base_levels,
        "max_level": max_level,
        "levels": levels,
        "seed": f"{SEED + d:016x}",
        "payload": blob(delta.encode(theta, base)),
    }


# d, top, heaviest, then of each device its samples and codecs of its masks; the masks are those of the base, drawn
# with uniforms16(uniforms_key(seed, 1, n), d), n counting the masks from 0, and for `hmrc` bytes of the same numbers.
RELAYS: list[tuple[int, int, int, list[tuple[int, tuple[int, ...]]]]] = [
    (7, 0, 0, [(5, (1,)), (6, (2,)), (7, (2,))]),
    (300, 0, 1 << 22, [(2000, (3,)), (1000, (3, 3)), (500, (1,))]),
    (300, 3, 1500, [(2000, (3,)), (999, (1,)), (1, (2,))]),
    (4099, 0, 1 << 22, [((1 << 32) - 1, (3,)), (65537, (2,))]),
]


def relay_parts(base: mask.Theta, devices: list[tuple[int, tuple[int, ...]]]) -> list[relay.Part]:
    parts, number = [], 0
    for at, (samples, codecs) in enumerate(devices):
        payloads = []
        for which in codecs:
            u = seed.uniforms16(seed.uniforms_key(SEED + base.d, 1, number), base.d)
            drawn = (u < base.q16()).astype(np.uint8)
            number += 1
            blocks = max(1, base.d // 64)
            payloads.append(
                {
                    1: lambda m=drawn: packed.encode(m, base),
                    2: lambda m=drawn: rans.encode(m, base),
                    3: lambda v=u, n=blocks: varint.put(n) + (v[:n] % 256).astype(np.uint8).tobytes(),
                }[which]()
            )
        parts.append(relay.Part(f"d-{at}", samples, codecs[0], tuple(payloads)))
    return parts


def relay_vector(d: int, max_level: int, heaviest: int, devices: list[tuple[int, tuple[int, ...]]]) -> dict[str, Any]:
    base = make_theta(d, 10, 655, "spread")
    payload = relay.encode(base, 9, Pooling(max_level, 655, heaviest), relay_parts(base, devices))
    theta = relay.decode(payload, base, SEED + d, "job")
    return {
        "d": d,
        "seed": f"{SEED + d:016x}",
        "payload": payload.hex(),
        "max_level": theta.max_level,
        "level": blob(le16(theta.level)),
        "theta": theta.digest().hex(),
    }


def relay_rejects() -> list[dict[str, Any]]:
    base = make_theta(7, 10, 655, "spread")
    parts = relay_parts(base, [(5, (1,)), (6, (1,))])
    good = relay.encode(base, 9, Pooling(0, 655, 0), parts)
    first = len(relay.encode(base, 9, Pooling(0, 655, 0), parts[:1])) - 31
    tries = [
        ("no bytes", b""),
        ("another id", b"\x11" + good[1:]),
        ("another base", good[:1] + bytes(16) + good[17:]),
        ("clamp 0", good[:23] + b"\0\0" + good[25:]),
        ("heaviest above 2**22", good[:25] + b"\1\0\x40\0" + good[29:]),
        ("no device", good[:29] + b"\0\0"),
        ("a device less than stated", good[: 31 + first]),
        ("a byte more", good + b"\0"),
        ("the same device twice", good[: 31 + first] + good[31 : 31 + first]),
        ("a device without samples", good[:35] + bytes(4) + good[39:]),
        ("a device without masks", good[:40] + b"\0" + good[42 + good[41] :]),
        ("an unknown codec", good[:39] + b"\x63" + good[40:]),
        ("a mask that its codec refuses", good[:42] + b"\x80" + good[43:]),
        ("all but the last byte", good[:-1]),
    ]
    head = {"level": base.level.tolist(), "max_level": base.max_level, "clamp": base.clamp}
    return [
        {"why": why, **head, "payload": data.hex(), "error": code_of(relay.decode, data, base, SEED + 7, "job")}
        for why, data in tries
    ]


# d, top and levels of the base and of theta, then exact values before and after; the relay's masks are relay_parts'.
_far = mask.EXACT_LIMIT
EXACTS: list[tuple[int, int, str, int, str, list[int], list[int]]] = [
    (7, 2, "spread", 3, "spread", [0, 65536, -1, 64], [0, 65535, 63, -64]),
    (300, 10, "spread", 15, "polarised", [65536] * 20, [65536 + n**3 - 12 * n * n for n in range(20)]),
    (40, 3, "spread", 2, "spread", [_far, -_far, 0, 0], [-_far, _far, _far, -_far]),  # 5 bytes each
]


def exact_vector(
    d: int, base_max_level: int, base_levels: str, max_level: int, levels: str, before: list[int], after: list[int]
) -> dict[str, Any]:
    one, other = np.array(before, np.int32), np.array(after, np.int32)
    base = replace(make_theta(d, base_max_level, 655, base_levels), exact=one)
    theta = replace(make_theta(d, max_level, 655, levels), exact=other)
    parts = relay_parts(base, [(5, (1,)), (6, (2,))])
    relayed = relay.encode(base, 9, Pooling(0, 655, 0), parts, other)
    return {
        "d": d,
        "seed": f"{SEED + d:016x}",
        "base_max_level": base_max_level,
        "base_levels": base_levels,
        "max_level": max_level,
        "levels": levels,
        "clamp": 655,
        "before": before,
        "after": after,
        "payload": exact.encode(other, one).hex(),
        "base": base.digest().hex(),
        "theta": theta.digest().hex(),
        "counts": blob(counts.encode(theta)),
        "delta": blob(delta.encode(theta, base)),
        "relay": relayed.hex(),
        "relayed": relay.decode(relayed, base, SEED + d, "job").digest().hex(),
    }


def exact_rejects() -> list[dict[str, Any]]:
    tries: list[tuple[str, list[int], int, bytes]] = [
        ("no bytes for a value", [0], 100, b""),
        ("a value less", [0, 0], 100, b"\2"),
        ("a value more", [0], 100, b"\2\2"),
        ("bytes for no value", [], 100, b"\0"),
        ("a number not in its shortest form", [0], 100, b"\x82\0"),
        ("a number above 32 bits", [0], 100, b"\xff" * 4 + b"\x1f"),
        ("further than allowed", [0], 100, varint.put(202)),
        ("further than allowed, downwards", [0], 100, varint.put(201)),
        ("above the limit", [_far], 100, b"\2"),
        ("below the limit", [-_far], 100, b"\1"),
    ]
    return [
        {
            "why": why,
            "before": before,
            "reach": reach,
            "payload": data.hex(),
            "error": code_of(exact.decode, data, np.array(before, np.int32), reach),
        }
        for why, before, reach, data in tries
    ]


def make_theta(d: int, max_level: int, clamp: int, levels: str) -> mask.Theta:
    u = seed.uniforms16(seed.uniforms_key(SEED + d, 0, 0), d).astype(np.int64)
    level = {
        "spread": u * (max_level + 1) // 65536,
        "polarised": np.where(u < 26214, 0, np.where(u >= 39322, max_level, (u - 26214) * (max_level + 1) // 13108)),
        "bottom": np.zeros(d),
        "top": np.full(d, max_level),
    }[levels]
    return mask.Theta(level.astype(np.uint16), max_level, clamp)


def make_mask(theta: mask.Theta, bits: str) -> mask.Mask:
    v = seed.uniforms16(seed.uniforms_key(SEED + theta.d, 0, 1), theta.d)
    drawn = v < theta.q16()
    return {"drawn": drawn, "against": ~drawn, "zeros": drawn & False, "ones": drawn | True}[bits].astype(np.uint8)


# --- 4 specs ---

_half, _third = spec.scale_bits(0.5), spec.scale_bits(1 / 3)
SPECS = {
    "linear": spec.ModelSpec(
        "smallest", 1, (2,), (0, 1), 2, (spec.Linear("w", None),), (spec.Tensor("w", (2, 2), _half),)
    ),
    "mlp": spec.ModelSpec(
        name="mlp-20-16-4",
        seed=SEED,
        input=(20,),
        range=(-128, 127),
        classes=4,
        layers=(spec.Linear("fc1.weight", "fc1.bias"), spec.ReLU(), spec.Linear("fc2.weight", None)),
        tensors=(
            spec.Tensor("fc1.weight", (16, 20), _third),
            spec.Tensor("fc1.bias", (16,), 1),
            spec.Tensor("fc2.weight", (4, 16), 0x7F7FFFFF),
        ),
    ),
    "conv": spec.ModelSpec(
        name="conv",
        seed=(1 << 64) - 1,
        input=(1, 13, 12),
        range=(0, 255),
        classes=3,
        layers=(
            spec.Conv2d("c.weight", None, (2, 1), (1, 0)),
            spec.ReLU(),
            spec.MaxPool2d((2, 2)),
            spec.Flatten(),
            spec.Linear("f.weight", "f.bias"),
        ),
        tensors=(
            spec.Tensor("c.weight", (4, 1, 3, 3), _half),
            spec.Tensor("f.weight", (3, 60), _third),
            spec.Tensor("f.bias", (3,), _third),
        ),
    ),
    "norm": spec.ModelSpec(
        name="norm",
        seed=2,
        input=(6, 3, 2),
        range=(0, 1),
        classes=4,
        layers=(spec.GroupNorm(3), spec.Flatten(), spec.Linear("f", None), spec.GroupNorm(1), spec.ReLU()),
        tensors=(spec.Tensor("f", (4, 36), _half),),
    ),
    # A shortcut, branches, and every layer of images.
    "branches": spec.ModelSpec(
        name="branches",
        seed=SEED,
        input=(4, 9, 8),
        range=(0, 255),
        classes=2,
        layers=(
            layers.Conv2d("a", None, (1, 1), (2, 2), 2, (2, 2)),
            layers.ReLU6(),
            layers.Conv2d("b", "c", (1, 1), (0, 0)),
            layers.Add((2, 3, 2)),
            layers.SiLU(),
            layers.AvgPool2d((2, 3)),
            layers.MaxPool2d((2, 3), source=5),
            layers.Sigmoid(),
            layers.Concat((6, 8), 0),
            layers.Mean((1, 2)),
            layers.Mean((1, 2), source=0),
            layers.Concat((11, 10), 0),
            layers.Linear("d", None),
        ),
        tensors=(
            spec.Tensor("a", (4, 2, 3, 3), _half),
            spec.Tensor("b", (4, 4, 1, 1), _half),
            spec.Tensor("c", (4,), _half),
            spec.Tensor("d", (2, 12), _third),
        ),
    ),
    # Sequences: rows by themselves, other orders and shapes; an error in place of classes, with a single output.
    "sequence": spec.ModelSpec(
        name="sequence",
        seed=3,
        input=(2, 12),
        range=(-1, 1),
        classes=1,
        layers=(
            layers.Reshape((2, 1, 12)),
            layers.Conv2d("a", None, (1, 2), (0, 2), 1, (1, 2)),
            layers.Permute((2, 0, 1)),
            layers.Reshape((4, 3)),
            layers.LayerNorm(1),
            layers.Linear("b", "c"),
            layers.GELU(),
            layers.RMSNorm(2),
            layers.Tanh(),
            layers.GELU("tanh", source=0),
            layers.Flatten(source=9),
            layers.Flatten(source=10),
            layers.Concat((11, 12), 0),
            layers.Linear("d", None),
        ),
        tensors=(
            spec.Tensor("a", (3, 2, 1, 5), _half),
            spec.Tensor("b", (5, 3), _half),
            spec.Tensor("c", (5,), _half),
            spec.Tensor("d", (1, 44), _third),
        ),
        loss="mse",
    ),
    # Every kind of tensor: frozen ones amid masked ones, scales and shifts of each normalisation, exact biases.
    "kinds": spec.ModelSpec(
        name="kinds",
        seed=SEED,
        input=(2, 3, 4),
        range=(0, 255),
        classes=3,
        layers=(
            layers.GroupNorm(2, "a", "b"),
            layers.Conv2d("c", "d", (1, 1), (0, 0)),
            layers.LayerNorm(1, "e", "f"),
            layers.Conv2d("g", "h", (1, 1), (0, 0)),
            layers.RMSNorm(2, "i"),
            layers.Flatten(),
            layers.Linear("j", "k"),
            layers.GroupNorm(1, None, "l"),
        ),
        tensors=(
            spec.Tensor("a", (2,), kind="exact", start=1),
            spec.Tensor("b", (2,), kind="exact"),
            spec.Tensor("c", (4, 2, 1, 1), _half),
            spec.Tensor("d", (4,), kind="exact"),
            spec.Tensor("e", (4,), kind="exact", start=1),
            spec.Tensor("f", (4,), kind="exact"),
            spec.Tensor("g", (2, 4, 1, 1), _third, "frozen"),
            spec.Tensor("h", (2,), _third, "frozen"),
            spec.Tensor("i", (3, 4), kind="exact", start=1),
            spec.Tensor("j", (3, 24), _half),
            spec.Tensor("k", (3,), _half),
            spec.Tensor("l", (3,), kind="exact", start=1),
        ),
    ),
}

# The smallest with all three kinds, for the rejects.
FEW = spec.ModelSpec(
    *("few", 1, (2,), (0, 1), 2),
    (layers.GroupNorm(1, "a", "b"), layers.Linear("c", None), layers.Linear("d", None)),
    (
        spec.Tensor("a", (2,), kind="exact", start=1),
        spec.Tensor("b", (2,), kind="exact"),
        spec.Tensor("c", (2, 2), _third, "frozen"),
        spec.Tensor("d", (2, 2), _half),
    ),
)


def spec_vector(s: spec.ModelSpec) -> dict[str, Any]:
    weights = s.weights().astype("<f4").tobytes()
    kinds = {"begin": s.begin().tolist(), "frozen": blob(s.frozen().astype("<f4").tobytes())}
    return {
        "json": s.canonical().decode(),
        "digest": s.digest.hex(),
        "d": s.d,
        "first_weights": weights[:64].hex(),
        "weights": blob(weights),
        **(kinds if s.e else {}),
    }


# --- 9.2 finished models ---

# Widths of a chain of linear layers with biases, and of each tensor the share of ones in 65536ths: a bit is v < share.
MODELS: list[tuple[list[int], list[int]]] = [
    ([3, 2], [32768, 32768]),
    ([3, 2], [0, 65536]),  # nothing but the two numbers
    ([5, 3, 2], [32768, 0, 65536, 20000]),
    ([90, 50, 2], [3000, 32768, 62000, 32768]),
    ([300, 230, 3], [26000, 26000, 26000, 65536]),  # several lanes
    ([300, 230, 3], [32768, 32768, 32768, 32768]),  # packed
]


def model_spec(widths: list[int]) -> spec.ModelSpec:
    layers, parts = [], []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        layers.append(spec.Linear(f"{i}.w", f"{i}.b"))
        parts += [spec.Tensor(f"{i}.w", (after, before), _half), spec.Tensor(f"{i}.b", (after,), _third)]
    return spec.ModelSpec("linear", SEED, (widths[0],), (0, 255), widths[-1], tuple(layers), tuple(parts))


def finished(widths: list[int], shares: list[int]) -> model.FinishedModel:
    s = model_spec(widths)
    v = seed.uniforms16(seed.uniforms_key(SEED + s.d, 0, 1), s.d)
    return model.FinishedModel(s, (v < np.repeat(shares, [t.size for t in s.tensors])).astype(np.uint8))


def of_kinds(s: spec.ModelSpec) -> model.FinishedModel:
    """A model with exact values, which its file holds behind the mask, and frozen weights, of which it holds none."""
    v = seed.uniforms16(seed.uniforms_key(SEED + s.d, 0, 1), s.d)
    return model.FinishedModel(s, (v < 32768).astype(np.uint8), s.begin() - np.arange(s.e, dtype=np.int32))


def model_vector(m: model.FinishedModel, shares: list[int]) -> dict[str, Any]:
    data = model.encode(m)
    assert np.array_equal(model.decode(data).mask, m.mask)
    return {
        "spec": m.spec.canonical().decode(),
        "shares": shares,
        "seed": f"{SEED + m.spec.d:016x}",
        "mask": blob(packed.encode(m.mask, mask.Theta.even(m.spec.d))),
        "tensors": blob(tensors.encode(m.mask, [t.size for t in m.spec.masked])),
        "file": blob(data),
        **({"exact": m.exact.tolist()} if m.spec.e else {}),
    }


def model_rejects() -> list[dict[str, Any]]:
    m = finished([5, 3], [32768, 0])
    good, json_, sizes = model.encode(m), m.spec.canonical(), [t.size for t in m.spec.tensors]
    coded = tensors.encode(m.mask, sizes)

    def file(number: int, payload: bytes, length: int | None = None, spec_: bytes = json_) -> bytes:
        size = len(payload) if length is None else length
        body = b"SMK1" + struct.pack("<I", len(spec_)) + spec_ + struct.pack("<BI", number, size) + payload
        return body + hashlib.sha256(body).digest()

    tries = {
        "no bytes": b"",
        "another magic": b"SMK2" + good[4:],
        "a changed byte": good[:-40] + bytes([good[-40] ^ 1]) + good[-39:],
        "all but the last byte": good[:-1],
        "a spec that is none": file(1, coded, spec_=b"{}"),
        "a length that is not the mask's": file(tensors.ID, coded, len(coded) + 1),
        "another codec": file(2, coded),
        "packed, a byte short": file(1, b"\0" * 2),
        "packed, a padding bit": file(1, b"\0\0\x80"),
        "tensors, no bytes": file(tensors.ID, b""),
        "tensors, more ones than weights": file(tensors.ID, b"\x10" + coded[1:]),
        "tensors, a number not in its shortest form": file(tensors.ID, b"\x80\0" + coded[1:]),
        "tensors, another number of ones": file(tensors.ID, bytes([coded[0] - 1]) + coded[1:]),
        "tensors, a word more": file(tensors.ID, coded + b"\0\0"),
        "tensors, a word more where nothing is to be told": file(tensors.ID, b"\0\0" + b"\0\0"),
        "tensors, a padding bit": file(tensors.ID, tensors_padded(sizes)),
        **exact_model_rejects(),
    }
    return [{"why": why, "bytes": b.hex(), "error": code_of(model.decode, b)} for why, b in tries.items()]


def exact_model_rejects() -> dict[str, bytes]:
    """The file of a model with exact values, their bytes other than they must be."""

    def sealed_(body: bytes) -> bytes:
        return body + hashlib.sha256(body).digest()

    m = of_kinds(FEW)
    good, values = model.encode(m)[:-32], exact.encode(m.exact, np.zeros(m.spec.e, np.int32))
    return {
        "an exact value less": sealed_(good[:-1]),
        "an exact value more": sealed_(good + b"\0"),
        "no exact values": sealed_(good[: -len(values)]),
        "exact values of a model that has none": sealed_(model.encode(finished([5, 3], [32768, 0]))[:-32] + b"\0"),
    }


def tensors_padded(sizes: list[int]) -> bytes:
    """One 1 in the first tensor, of 15 weights, and one in its padding."""
    assert sizes[0] == 15
    size, ones = np.array(sizes[:1]), np.array([1])
    contexts, frequency = tensors._model(size, ones)
    return b"\1\0" + ans.encode(np.array([1, 0, 0, 8]), contexts, frequency, 1)


# --- 6 messages ---

_A, _B, _C = bytes(range(32)), bytes(range(16, 32)), bytes(range(240, 256))
_NONE = (bytes(16), bytes(16), 0)
_announce = wire.Announce(
    *("digits", 1, 20, wire.Phase.OPEN, _A, _B, _C, 3, *_NONE, 90_000),
    *(TrainingConfig(epochs=2, codec="rans"), ("phone-1", "pi-2"), "go"),
)
_every = TrainingConfig(**{one.name: one.value(one.span[1]) for one in TRAINING.values() if one.wire < 18})
_delta = wire.Announce(
    *("digits", 7, 20, wire.Phase.OPEN, _A, _B, _C, 3, _B[::-1], _C[::-1], 1, 90_000),
    *(TrainingConfig(masks=2), ("phone-1", "pi-2"), ""),
)
_basis = wire.basis("digits", _A, _B)
_update = wire.Update(1, _basis, 2000, 693_147, 1234, 2, (b"payload",))
_exact = replace(_update, exact=exact.encode(np.array([9, -70], np.int32), np.zeros(2, np.int32)))
_chunk = wire.Chunk(_C, 10, 4, 2, 3, b"ij")
_seven = make_theta(7, 10, 655, "spread")
MESSAGES: dict[str, wire.Message] = {
    "announce": _announce,
    "announce, least": wire.Announce(
        *("j", 0, 0, wire.Phase.WAITING, bytes(32), bytes(16), bytes(16), 0, *_NONE, 0, TrainingConfig(), (), "")
    ),
    "announce, greatest": wire.Announce(
        *("z" * 63, 0xFFFFFFFF, 0xFFFFFFFF, wire.Phase.DONE, b"\xff" * 32, b"\xff" * 16, b"\xff" * 16, 65535),
        *(b"\xff" * 16, b"\xff" * 16, 65535, 0xFFFFFFFF, _every, ("0" * 63,), "\u00e9\u4e2d\U0001f331\ufeff"),
    ),
    "announce, a delta": _delta,
    "announce, a rate of exact values": replace(_announce, training=TrainingConfig(exact_rate=0xFFFFFFFF / 1e6)),
    "update": _update,
    "update, empty payload": replace(_update, payloads=(b"",), samples=1, loss=0, correct=0, codec=1),
    "update, a mask": replace(
        _update,
        basis=wire.basis("digits", _A, _seven.digest()),
        payloads=(rans.encode(make_mask(_seven, "drawn"), _seven),),
    ),
    "update, three masks": replace(_update, codec=1, payloads=(b"\x01", b"", b"\x7f\x80")),
    "update, 255 masks": replace(_update, payloads=(b"",) * 255),
    "update, exact values": _exact,
    "update, exact values and two masks": replace(_exact, codec=127, payloads=(b"", b"\xff"), exact=b"\0"),
    **{
        f"receipt, {status.name.lower()}": wire.Receipt("digits", 1, _C, status, "codec" if status == 5 else "")
        for status in wire.Status
    },
    "presence": wire.Presence("pi-2", True, 0x0123456789ABCDEF, _A, 2000, "onnxruntime", "seedmask 0.1.0"),
    "presence, will": wire.Presence("pi-2", False, (1 << 64) - 1, _A, 0, "", ""),
    "heartbeat": wire.Heartbeat("digits", True, 1),
    "heartbeat, will": wire.Heartbeat("digits", False, 1 << 63),
    "chunk": _chunk,
    "chunk, larger than its object": wire.Chunk(_C, 1, 0xFFFFFFFF, 0, 1, b"x"),
}


def bases() -> list[dict[str, Any]]:
    tries = [("j", bytes(32), bytes(16)), ("digits", _A, _B), ("z" * 63, _A[::-1], _C)]
    return [
        {"job": job, "model": model.hex(), "theta": theta.hex(), "basis": wire.basis(job, model, theta).hex()}
        for job, model, theta in tries
    ]


def plain(value: Any) -> Any:
    """A message as JSON: bytes in hexadecimal, `boot` as 16 digits, its type by name."""
    if isinstance(value, TrainingConfig):
        return {one.name: one.number(getattr(value, one.name)) for one in TRAINING.values()}
    if is_dataclass(value):
        made = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        if made.get("exact") == "":  # no such field on the wire either
            del made["exact"]
        if "boot" in made:
            made["boot"] = f"{made['boot']:016x}"
        made = {"work" if name == "training" else name: part for name, part in made.items()}
        return {"type": type(value).__name__.lower(), **made}
    if isinstance(value, bytes):
        return value.hex()
    return [plain(item) for item in value] if isinstance(value, tuple) else value


# --- 7 chunks, 9 bundles ---


def recipe_bytes(n: int) -> bytes:
    return (seed.uniforms16(seed.uniforms_key(SEED + n, 0, 1), n) % 256).astype(np.uint8).tobytes()


def chunking() -> list[dict[str, Any]]:
    out = []
    for n, size in [(1, 1), (10, 4), (12, 4), (100, 4096), (150_000, chunks.CHUNK_BYTES)]:
        parts = chunks.split(recipe_bytes(n), size)
        frames = [blob(wire.encode(part)) for part in parts]
        name = parts[0].transfer.hex()
        out.append({"bytes": n, "seed": f"{SEED + n:016x}", "size": size, "transfer": name, "frames": frames})
    return out


BUNDLES = [
    bundle.Bundle(SPECS["linear"], 1, {}),
    bundle.Bundle(SPECS["linear"], 64, {"onnx/step.onnx": b"not a graph", "a.bin": b""}),
]


def bundle_vector(b: bundle.Bundle) -> dict[str, Any]:
    files = {name: data.hex() for name, data in b.files.items()}
    return {
        "spec": b.spec.canonical().decode(),
        "batch": b.batch,
        "files": files,
        "bytes": bundle.to_bytes(b).hex(),
    }


# --- rejects: bytes, and the code of the error they must give ---


def rejects() -> dict[str, Any]:
    return {
        "frames": list(map(reject_frame, frame_rejects())),
        "masks": mask_rejects(),
        "counts": counts_rejects(),
        "delta": delta_rejects(),
        "relay": relay_rejects(),
        "exact": exact_rejects(),
        "specs": spec_rejects(),
        "chunks": chunk_rejects(),
        "bundles": bundle_rejects(),
        "models": model_rejects(),
    }


def code_of(action: Any, *arguments: Any) -> str:
    try:
        action(*arguments)
    except ProtocolError as error:
        return error.code
    raise SystemExit(f"accepted, and should not be: {arguments}")


def reject_frame(pair: tuple[str, bytes]) -> dict[str, Any]:
    why, frame = pair
    return {"why": why, "frame": frame.hex(), "error": code_of(wire.decode, frame)}


def sealed(kind: int, body: bytes) -> bytes:
    """A frame with a valid CRC around any body."""
    frame = b"SM" + bytes([PROTOCOL_VERSION, kind]) + body
    return frame + struct.pack("<I", zlib.crc32(frame))


def body_of(message: wire.Message, at: int = 0, old: bytes = b"", new: bytes = b"") -> bytes:
    """A message's body in which the bytes `old` at `at` are replaced by `new`."""
    body = wire.encode(message)[4:-4]
    if body[at : at + len(old)] != old:
        raise SystemExit(f"{type(message).__name__}: {old.hex()} expected at {at}, found {body[at:].hex()}")
    return body[:at] + new + body[at + len(old) :]


def frame_rejects() -> list[tuple[str, bytes]]:
    good = wire.encode(MESSAGES["heartbeat"])
    u32 = struct.Struct("<I").pack
    out = [
        ("no bytes", b""),
        ("seven bytes", good[:7]),
        ("the first eight bytes of a frame", good[:8]),
        ("all but the last byte", good[:-1]),
        ("one byte more", good + b"\0"),
        ("other magic", b"SN" + good[2:]),
        ("version 0", good[:2] + b"\0" + good[3:]),
        ("version 1", good[:2] + b"\1" + good[3:]),
        ("version 2", good[:2] + b"\2" + good[3:]),
        ("kind 0", sealed(0, b"")),
        ("kind 7", sealed(7, b"")),
        ("one bit of the body", good[:6] + bytes([good[6] ^ 1]) + good[7:]),
        ("one bit of the CRC", good[:-1] + bytes([good[-1] ^ 0x80])),
    ]
    for name in ("announce", "update", "receipt, accepted", "presence", "heartbeat", "chunk"):
        message = MESSAGES[name]
        body = body_of(message)
        out += [
            (f"{name}: empty body", sealed(message.KIND, b"")),
            (f"{name}: body without its last byte", sealed(message.KIND, body[:-1])),
            (f"{name}: body with one byte more", sealed(message.KIND, body + b"\0")),
        ]
    beat, presence = MESSAGES["heartbeat"], MESSAGES["presence"]
    out += [
        ("a name that is empty", sealed(5, body_of(beat, 0, b"\6digits", b"\0"))),
        ("a name in capitals", sealed(5, body_of(beat, 1, b"d", b"D"))),
        ("a name that begins with a hyphen", sealed(5, body_of(beat, 1, b"d", b"-"))),
        ("a name that ends with a line feed", sealed(5, body_of(beat, 6, b"s", b"\n"))),
        ("a name of 64", sealed(5, body_of(beat, 0, b"\6digits", b"\x40" + b"d" * 64))),
        ("a name that is not UTF-8", sealed(5, body_of(beat, 1, b"d", b"\xff"))),
        ("a flag of 2", sealed(5, body_of(beat, 7, b"\1", b"\2"))),
        ("presence: a flag of 255", sealed(4, body_of(presence, 5, b"\1", b"\xff"))),
        ("phase 3", sealed(1, body_of(_announce, 15, b"\1", b"\3"))),
        *work_rejects(),
        ("a base without a delta", sealed(1, body_of(_announce, 82, bytes(34), b"\1" * 16 + bytes(18)))),
        ("a delta without a base", sealed(1, body_of(_announce, 82, bytes(34), bytes(16) + b"\1" * 16 + b"\1\0"))),
        ("a delta of no chunks", sealed(1, body_of(_announce, 82, bytes(34), b"\1" * 32 + bytes(2)))),
        ("chunks of no delta", sealed(1, body_of(_announce, 114, b"\0\0", b"\1\0"))),
        ("more devices selected than named", sealed(1, body_of(_announce, 131, b"\2\0", b"\xff\xff"))),
        ("a selected device in capitals", sealed(1, body_of(_announce, 134, b"p", b"P"))),
        (
            "text cut inside a character",
            sealed(3, body_of(MESSAGES["receipt, accepted"], 28, b"\0\0", b"\1\0\xc3")),
        ),
        (
            "text with a surrogate",
            sealed(3, body_of(MESSAGES["receipt, accepted"], 28, b"\0\0", b"\3\0\xed\xa0\x80")),
        ),
        (
            "text in overlong form",
            sealed(3, body_of(MESSAGES["receipt, accepted"], 28, b"\0\0", b"\2\0\xc0\x80")),
        ),
        ("receipt status 0", sealed(3, body_of(MESSAGES["receipt, accepted"], 27, b"\1", b"\0"))),
        ("receipt status 7", sealed(3, body_of(MESSAGES["receipt, accepted"], 27, b"\1", b"\7"))),
        ("an update without samples", sealed(2, body_of(_update, 20, u32(2000), u32(0)))),
        ("an update without masks", sealed(2, body_of(_update, 33, b"\1", b"\0"))),
        ("an update of no masks and nothing more", sealed(2, body_of(_update)[:33] + b"\0")),
        ("an update of more masks than there are", sealed(2, body_of(_update, 33, b"\1", b"\2"))),
        ("an update whose payload is longer", sealed(2, body_of(_update, 34, u32(7), u32(8)))),
        ("an update whose payload is shorter", sealed(2, body_of(_update, 34, u32(7), u32(6)))),
        ("an update that says exact values and has none", sealed(2, body_of(_update, 32, b"\2", b"\x82"))),
        ("an update of no exact values", sealed(2, body_of(_update, 32, b"\2", b"\x82") + u32(0))),
        ("an update whose exact values are longer", sealed(2, body_of(_exact) + b"\0")),
        ("an update with exact values that it does not say", sealed(2, body_of(_exact, 32, b"\x82", b"\2"))),
        ("an update of 4 GiB", sealed(2, body_of(_update, 34, u32(7), b"\xff" * 4))),
        ("chunk: total 0", sealed(6, body_of(_chunk, 16, u32(10), u32(0)))),
        ("chunk: total above the limit", sealed(6, body_of(_chunk, 16, u32(10), u32((1 << 28) + 1)))),
        ("chunk: size 0", sealed(6, body_of(_chunk, 20, u32(4), u32(0)))),
        ("chunk: index beyond count", sealed(6, body_of(_chunk, 24, b"\2\0", b"\3\0"))),
        ("chunk: count that does not follow from total", sealed(6, body_of(_chunk, 26, b"\3\0", b"\4\0"))),
        ("chunk: the last one with a whole size of data", sealed(6, body_of(_chunk) + b"kl")),
    ]
    return out


def work_rejects() -> list[tuple[str, bytes]]:
    """Announcements whose list of options nobody would have written."""
    body, at = body_of(_announce), 120
    two = struct.pack("<BBIBI", 2, 1, 2, 3, 2)
    if body[at : at + 11] != two:
        raise SystemExit(f"two options expected at {at}, found {body[at:].hex()}")

    def with_options(*options: tuple[int, int], count: int | None = None) -> bytes:
        said = b"".join(struct.pack("<BI", *one) for one in options)
        number = bytes([len(options) if count is None else count])
        return sealed(1, body[:at] + number + said + body[at + 11 :])

    defaults = {number: one.number(one.default) for number, one in TRAINING.items()}
    over = {1: 65536, 3: 256, 11: 256, 12: 1_000_001, 13: 1_000_001, 14: (1 << 28) + 1, 16: 65536}
    over |= dict.fromkeys((4, 6, 7), 2) | dict.fromkeys((5, 17), 1_000_000)
    return [
        ("an option 0", with_options((0, 1))),
        ("an unknown option", with_options((19, 1))),
        ("an option of version 2, entropy", with_options((10, 1))),
        ("an option of version 2, stratified", with_options((15, 1))),
        ("an unknown option among others", with_options((1, 2), (200, 1))),
        ("options in another order", with_options((3, 2), (1, 2))),
        ("an option twice", with_options((1, 2), (1, 2))),
        ("fewer options than said", with_options((1, 2), count=255)),
        *[(f"option {n} at its default", with_options((n, value))) for n, value in defaults.items()],
        *[(f"option {n} of 0", with_options((n, 0))) for n in (1, 2, 11, 12, 13, 18)],
        *[(f"option {n} above its range", with_options((n, value))) for n, value in sorted(over.items())],
        ("least kappa above the largest", with_options((12, 24_001))),
        ("largest kappa below the least", with_options((13, 4_999))),
    ]


def mask_rejects() -> list[dict[str, Any]]:
    theta = make_theta(7, 10, 655, "spread")
    coded = rans.encode(make_mask(theta, "drawn"), theta)
    used = len(set((theta.q16() >> 10).tolist()))
    shares, rest = coded[: 2 * used], coded[2 * used :]
    one = make_theta(1, 2, 655, "bottom")
    tries: list[tuple[Any, mask.Theta, str, bytes]] = [
        (packed, theta, "no bytes", b""),
        (packed, theta, "one byte too many", b"\0\0"),
        (packed, theta, "a padding bit", b"\x80"),
        (rans, theta, "no bytes", b""),
        (rans, theta, "shares only", shares),
        (rans, theta, "all but the last byte", coded[:-1]),
        (rans, theta, "a word more", coded + b"\0\0"),
        (rans, theta, "share 0", b"\0\0" + coded[2:]),
        (rans, theta, "share 4096", b"\0\x10" + coded[2:]),
        (rans, theta, "a state below 2**16", shares + b"\xff\xff\0\0" + rest[4:]),
        (rans, theta, "another end state", shares + bytes([rest[0] ^ 1]) + rest[1:]),
        (rans, one, "a share that is not that of the bits", stated(one, 2)),
        (rans, one, "a padding bit", padded(one)),
    ]
    tries += hmrc_rejects()
    out = []
    for c, t, why, data in tries:
        error = code_of(c.decode, data, t, shared(t.d))
        out.append(
            {"why": why, "codec": c.ID, "level": t.level.tolist(), "max_level": t.max_level, "clamp": t.clamp}
            | {"payload": data.hex(), "error": error}
        )
    for number, why in ((5, "an unknown codec"), (4, "a codec of version 2")):
        some = {"level": [1], "max_level": 2, "clamp": 655, "payload": ""}
        out.append({"why": why, "codec": number, **some, "error": code_of(codec.by_id, number)})
    return out


def hmrc_rejects() -> list[tuple[Any, mask.Theta, str, bytes]]:
    theta = make_theta(40, 2, 655, "spread")
    return [
        (hmrc, theta, "no bytes", b""),
        (hmrc, theta, "no block", b"\0"),
        (hmrc, theta, "more blocks than an eighth of the weights", varint.put(6) + bytes(6)),
        (hmrc, theta, "a byte less", varint.put(5) + bytes(4)),
        (hmrc, theta, "a byte more", varint.put(5) + bytes(6)),
        (hmrc, theta, "a number of blocks not in its shortest form", b"\x85\0" + bytes(5)),
    ]


def delta_rejects() -> list[dict[str, Any]]:
    base, theta = make_theta(40, 2, 655, "spread"), make_theta(40, 3, 655, "polarised")
    good = delta.encode(theta, base)
    tries = [
        ("no bytes", b""),
        ("another id", b"\x10" + good[1:]),
        ("another base", good[:1] + bytes(16) + good[17:]),
        ("top 0", good[:17] + b"\0\0" + good[19:]),
        ("top 256", good[:17] + b"\0\1" + good[19:]),
        ("clamp 0", good[:19] + b"\0\0" + good[21:]),
        ("clamp one half", good[:19] + b"\0\x80" + good[21:]),
        ("frequencies that end too early", good[:30]),
        ("a row that does not sum to 4096", good[:21] + bytes([good[21] ^ 1]) + good[22:]),
        ("frequencies that are not those of the levels", delta_moved(theta, base)),
        ("all but the last byte", good[:-1]),
        ("two bytes more", good + b"\0\0"),
    ]
    head = {"level": base.level.tolist(), "max_level": base.max_level, "clamp": base.clamp}
    return [
        {"why": why, **head, "payload": data.hex(), "error": code_of(delta.decode, data, base)} for why, data in tries
    ]


def delta_moved(theta: mask.Theta, base: mask.Theta) -> bytes:
    """A delta whose first row of frequencies is another than its levels', and which decodes all the same."""
    contexts = delta._contexts(base)
    frequency = delta._rows(theta.level, theta.max_level, contexts)
    row = frequency[0]
    row[row.argmax()] -= 1
    row[row.argmin()] += 1
    coded = ans.encode(theta.level, contexts, frequency)
    return delta.encode(theta, base)[:21] + le16(frequency.reshape(-1)) + coded


def stated(theta: mask.Theta, share: int) -> bytes:
    """One weight, bit 0, well coded under a share that its encoder would not have stated."""
    frequency = rans.frequencies(np.array([share]))
    return le16([share]) + codec.ans.encode(np.array([0]), np.array([0]), frequency)


def padded(theta: mask.Theta) -> bytes:
    """One weight, bit 0, with the first padding bit set."""
    frequency = rans.frequencies(np.array([1]))
    return le16([1]) + codec.ans.encode(np.array([2]), np.array([0]), frequency)


def counts_rejects() -> list[dict[str, Any]]:
    theta = make_theta(7, 300, 655, "spread")
    good = counts.encode(theta)
    small = counts.encode(mask.Theta(np.array([0, 2], np.uint16), 2))
    wide = (300 >> 1) + 1
    at = 8 + 2 * wide
    raw = counts.encode(mask.Theta(np.array([300], np.uint16), 300))
    tries = [
        ("no bytes", 7, b""),
        ("seven bytes", 7, good[:7]),
        ("of another size", 8, good),
        ("of size 0", 0, bytes(4) + good[4:]),
        ("top 0", 7, good[:4] + b"\0\0" + good[6:]),
        ("clamp 0", 7, good[:6] + b"\0\0" + good[8:]),
        ("clamp one half", 7, good[:6] + b"\0\x80" + good[8:]),
        ("cut inside the frequencies", 7, good[:20]),
        ("frequencies that sum to 4097", 2, small[:8] + le16([2049]) + small[10:]),
        ("frequencies that are not those of the levels", 2, small[:8] + le16([2049, 0, 2047]) + small[14:]),
        ("all but the last byte", 7, good[:-1]),
        ("one byte more", 7, good + b"\0"),
        ("a coded part of 4 GiB", 7, good[:at] + b"\xff" * 4 + good[at + 4 :]),
        ("a padding bit", 7, good[:-1] + bytes([good[-1] | 0x80])),
        ("a level above the top", 1, raw[:-1] + b"\1"),
    ]
    return [{"why": why, "d": d, "payload": p.hex(), "error": code_of(counts.decode, p, d)} for why, d, p in tries]


def spec_rejects() -> list[dict[str, Any]]:
    good, normalised = SPECS["conv"].canonical().decode(), SPECS["norm"].canonical().decode()
    tries = {
        "no bytes": "",
        "not JSON": "{",
        "a list": "[]",
        "a space": " " + good,
        "another order of keys": good.replace('"classes":3,', "").replace('"version":1', '"version":1,"classes":3'),
        "a key more": good.replace('"version":1', '"version":1,"zone":0'),
        "a key less": good.replace('"classes":3,', ""),
        "a key twice": good.replace('"classes":3,', '"classes":3,"classes":3,'),
        "version 2": good.replace('"version":1', '"version":2'),
        "version 1.0": good.replace('"version":1', '"version":1.0'),
        "a seed in capitals": good.replace("f" * 16, "F" * 16),
        "a short seed": good.replace("f" * 16, "f" * 15),
        "a name in capitals": good.replace('"name":"conv"', '"name":"Conv"'),
        "one class": good.replace('"classes":3', '"classes":1'),
        "classes that the last layer does not give": good.replace('"classes":3', '"classes":4'),
        "an empty range": good.replace("[0,255]", "[0,0]"),
        "an input of four dimensions": good.replace("[1,13,12]", "[1,13,12,1]"),
        "an input of 2**40 values": good.replace("[1,13,12]", "[1,1048576,1048576]"),
        "an unknown layer": good.replace('"relu"', '"hardswish"'),
        "a layer with a key more": good.replace('{"op":"relu"}', '{"op":"relu","x":1}'),
        "a stride of 0": good.replace('"stride":[2,1]', '"stride":[0,1]'),
        "a stride of one number": good.replace('"stride":[2,1]', '"stride":[2]'),
        "a kernel larger than its input": good.replace("[4,1,3,3]", "[4,1,30,3]"),
        "groups that do not divide the channels": normalised.replace('"groups":3', '"groups":4'),
        "no group": normalised.replace('"groups":3', '"groups":0'),
        "groups of one value": normalised.replace('"groups":1', '"groups":4'),
        "a number of groups that is no integer": normalised.replace('"groups":1', '"groups":[1]'),
        "a groupnorm without groups": normalised.replace('"groups":1,', ""),
        "a groupnorm with a scale": normalised.replace('"groups":1,', '"bias":"f","groups":1,'),
        "a bias of the wrong shape": good.replace('"shape":[3]}', '"shape":[2]}'),
        "a scale of zero": good.replace(f'"scale":{_half}', '"scale":0'),
        "a scale that is infinite": good.replace(f'"scale":{_half}', f'"scale":{0x7F800000}'),
        "a tensor that no layer uses": good.replace('"bias":"f.bias"', '"bias":null'),
        "a layer whose tensor is missing": good.replace('"weight":"c.weight"', '"weight":"d.weight"'),
        "a tensor of five dimensions": good.replace("[4,1,3,3]", "[4,1,3,3,1]"),
        "more weights than the limit": good.replace("[3,60]", "[3,268435456]"),
        "no layers": '{"classes":2,"input":[2],"layers":[],"name":"a","range":[0,1],"seed":"'
        + "0" * 16
        + '","tensors":[],"version":1}',
        "one tensor used twice": '{"classes":2,"input":[2],"layers":[{"bias":null,"op":"linear","weight":"w"},'
        '{"bias":null,"op":"linear","weight":"w"}],"name":"a","range":[0,1],"seed":"'
        + "0" * 16
        + '","tensors":[{"name":"w","scale":1,"shape":[2,2]},{"name":"w","scale":1,"shape":[2,2]}],"version":1}',
        "a loss that is the usual one": good.replace('"name":"conv"', '"loss":"cross-entropy","name":"conv"'),
        "an unknown loss": good.replace('"name":"conv"', '"loss":"hinge","name":"conv"'),
        "no dilation, spelled out": good.replace('"op":"conv2d"', '"dilation":[1,1],"op":"conv2d"'),
        "a dilation that reaches too far": good.replace('"op":"conv2d"', '"dilation":[1,6],"op":"conv2d"'),
        "groups that the channels do not make": good.replace('"op":"conv2d"', '"groups":2,"op":"conv2d"'),
        **graph_rejects(),
    }
    few = FEW.canonical().decode()
    shift, frozen = '{"kind":"exact","name":"b","shape":[2]}', f'"name":"c","scale":{_third}'
    tries |= {
        "an unknown kind": few.replace(shift, shift.replace("exact", "dense")),
        "a kind that is null": few.replace(shift, shift.replace('"exact"', "null")),
        "masked, spelled out": few.replace('{"name":"d"', '{"kind":"masked","name":"d"'),
        "an exact tensor with a scale": few.replace(shift, shift.replace('"shape"', f'"scale":{_half},"shape"')),
        "an exact tensor with a scale of 0": few.replace(shift, shift.replace('"shape"', '"scale":0,"shape"')),
        "a start of 2": few.replace(shift, shift.replace("[2]", '[2],"start":2')),
        "a start of 0, spelled out": few.replace(shift, shift.replace("[2]", '[2],"start":0')),
        "a start of true": few.replace(shift, shift.replace("[2]", '[2],"start":true')),
        "a frozen tensor with a start": few.replace(frozen, f'{frozen},"start":1'),
        "a frozen tensor without a scale": few.replace(frozen, '"name":"c"'),
        "a shift that is masked": few.replace(shift, f'{{"name":"b","scale":{_half},"shape":[2]}}'),
        "a shift that is frozen": few.replace(shift, f'{{"kind":"frozen","name":"b","scale":{_half},"shape":[2]}}'),
        "a shift of another shape": few.replace(shift, shift.replace("[2]", "[1]")),
        "a shift of null": few.replace('"shift":"b"', '"shift":null').replace(f"{shift},", ""),
        "a shift of rmsnorm": few.replace('"groups":1,"op":"groupnorm"', '"dims":1,"op":"rmsnorm"'),
        "nothing masked": few.replace('{"name":"d"', '{"kind":"frozen","name":"d"'),
        "more exact values than the limit": few.replace("[2,2]", "[2,40000]").replace(
            f'"frozen","name":"c","scale":{_third}', '"exact","name":"c"'
        ),
    }
    good_ones = (good, normalised, few)
    stay = [why for why, json_text in tries.items() if json_text in good_ones]
    if stay:
        raise SystemExit(f"these rejects change nothing: {stay}")
    return [{"why": why, "json": j, "error": code_of(spec.from_json, j.encode())} for why, j in tries.items()]


def graph_rejects() -> dict[str, str]:
    """By the smallest network around a layer: what fits there is tried first, then what does not."""

    def layer(op: str, **more: Any) -> dict[str, Any]:
        return {"op": op, **more}

    def text_of(*layers: dict[str, Any]) -> str:
        value = {
            "version": 1,
            "name": "a",
            "seed": "0" * 16,
            "input": [2, 2, 2],
            "range": [0, 1],
            "classes": 1,
            "layers": [*layers, layer("flatten"), layer("linear", weight="w", bias=None)],
            "loss": "mse",
            "tensors": [{"name": "w", "scale": 1, "shape": [1, 8]}],
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    relu, flat, silu, tall = layer("relu"), layer("flatten"), layer("silu"), layer("reshape", shape=[8, 1])
    two, half = layer("add", sources=[1, 2]), layer("maxpool2d", size=[1, 2])
    aside = (relu, layer("silu", source=0), two)
    tries = {
        "a source that is not there yet": (aside, (relu, layer("silu", source=2), two)),
        "a source below zero": (aside, (relu, layer("silu", source=-1), two)),
        "a source that is no integer": (aside, (relu, layer("silu", source=False), two)),
        "a source that is spelled out": ((relu, silu), (relu, layer("silu", source=1))),
        "a source that is null": ((relu, silu), (relu, layer("silu", source=None))),
        "a value that nothing takes": ((relu, silu), (relu, layer("silu", source=0))),
        "a sum of one": ((relu, layer("add", sources=[0, 1])), (relu, layer("add", sources=[1]))),
        "a sum of null": ((relu, layer("add", sources=[0, 1])), (relu, layer("add", sources=None))),
        "a sum of two shapes": ((flat, relu, two), (flat, relu, layer("add", sources=[0, 2]))),
        "a sum of what is not there yet": ((relu, layer("add", sources=[0, 1])), (relu, two)),
        "side by side along no axis": (
            (half, layer("concat", axis=2, sources=[1, 1])),
            (half, layer("concat", axis=3, sources=[1, 1])),
        ),
        "side by side of other lengths": (
            (half, layer("concat", axis=2, sources=[1, 1])),
            (half, layer("concat", axis=1, sources=[0, 1])),
        ),
        "a mean over nothing": ((relu,), (layer("mean", axes=[]),)),
        "a mean over all": ((relu,), (layer("mean", axes=[0, 1, 2]),)),
        "axes in another order": ((relu,), (layer("mean", axes=[1, 0]),)),
        "a shape of another size": ((layer("reshape", shape=[4, 2]),), (layer("reshape", shape=[4, 3]),)),
        "a shape of seven dimensions": ((tall,), (layer("reshape", shape=[8, 1, 1, 1, 1, 1, 1]),)),
        "a shape of large numbers": ((tall,), (layer("reshape", shape=[8, 1 << 60]),)),
        "a shape with a zero": ((tall,), (layer("reshape", shape=[8, 0]),)),
        "an order that leaves one out": ((layer("permute", order=[2, 0, 1]),), (layer("permute", order=[2, 0, 0]),)),
        "a short order": ((layer("permute", order=[2, 0, 1]),), (layer("permute", order=[1, 0]),)),
        "more dimensions than there are": ((layer("rmsnorm", dims=3),), (layer("rmsnorm", dims=4),)),
        "no dimension": ((layer("layernorm", dims=1),), (layer("layernorm", dims=0),)),
        "a norm of single values": ((tall, layer("layernorm", dims=2)), (tall, layer("layernorm", dims=1))),
        "an unknown gelu": ((layer("gelu", approximate="tanh"),), (layer("gelu", approximate="fast"),)),
        "a gelu of null": ((layer("gelu", approximate="tanh"),), (layer("gelu", approximate=None),)),
        "a gelu that is spelled out": ((layer("gelu"),), (layer("gelu", approximate="none"),)),
        "windows larger than the image": (
            (layer("avgpool2d", size=[2, 1]), layer("concat", axis=0, sources=[1, 1])),
            (layer("avgpool2d", size=[3, 1]), layer("concat", axis=0, sources=[1, 1])),
        ),
    }
    for why, (fits, _) in tries.items():
        try:
            spec.from_json(text_of(*fits).encode())
        except ProtocolError as error:
            raise SystemExit(f"{why}: what should fit does not: {error}") from None
    return {why: text_of(*wrong) for why, (_, wrong) in tries.items()}


def chunk_rejects() -> list[dict[str, Any]]:
    parts = chunks.split(recipe_bytes(10), 4)
    wrong = replace(parts[2], data=b"\0\0")
    tries = [
        ("larger than the receiver takes", 9, parts),
        ("a part of another transfer", 10, [parts[0], chunks.split(recipe_bytes(12), 4)[1], parts[2]]),
        ("the same object in parts of another size", 10, [parts[0], chunks.split(recipe_bytes(10), 5)[1]]),
        ("content that is not what its id names", 10, [parts[0], parts[1], wrong]),
    ]

    def assemble(frames: list[wire.Chunk], limit: int) -> None:
        assembly = chunks.begin(frames[0], limit)
        for frame in frames[1:]:
            assembly = assembly.add(frame)
        assembly.blob()

    return [
        {
            "why": why,
            "limit": limit,
            "frames": [wire.encode(f).hex() for f in frames],
            "error": code_of(assemble, frames, limit),
        }
        for why, limit, frames in tries
    ]


def bundle_rejects() -> list[dict[str, Any]]:
    good = bundle.to_bytes(BUNDLES[0])
    spec_json, other = SPECS["linear"].canonical(), SPECS["mlp"].canonical()
    manifest = bundle_member(good, "manifest.json")
    odd = manifest.replace(b'"batch": 1', b'"batch": 0')
    tries = {
        "no bytes": b"",
        "not a zip file": b"SM" * 20,
        "all but the last byte": good[:-1],
        "one byte more": good + b"\0",
        "no manifest": zipped({"spec.json": spec_json}),
        "no spec": zipped({"manifest.json": b'{"format":1,"files":{},"batch":1,"model":""}'}),
        "a member that the manifest does not list": zipped(
            {"manifest.json": manifest, "spec.json": spec_json, "x.y": b""}
        ),
        "another spec than the manifest says": zipped({"manifest.json": manifest, "spec.json": other}),
        "a batch of 0": zipped({"manifest.json": odd, "spec.json": spec_json}),
        "compressed members": zipped({"manifest.json": manifest, "spec.json": spec_json}, zipfile.ZIP_DEFLATED),
        "another order of members": zipped({"spec.json": spec_json, "manifest.json": manifest}),
        "another date": good.replace(b"\0\0\x21\0", b"\0\0\x22\0"),
    }
    return [{"why": why, "bytes": b.hex(), "error": code_of(bundle.from_bytes, b)} for why, b in tries.items()]


def bundle_member(data: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(name)


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.compress_type = 3, how
            archive.writestr(info, data)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
