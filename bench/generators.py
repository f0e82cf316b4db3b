"""Which counter-based integer generator: Threefry-2x32-20 or Philox4x32-10?

Both come from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC'11); their
reference code is Random123, whose known-answer vectors (`tests/kat_vectors`) are checked here before anything is
timed. Each generator is written four times, for NumPy, as an ONNX graph, as an ExecuTorch program and in plain
JavaScript. All of them must give the same bits, or the script stops.

Two jobs are timed, in CPU milliseconds of one thread, as the median of alternating repetitions:

* `words`: 2^20 words of 32 bits from a key of two words;
* `signs`: the +-1 signs of CONV-4's 1,932,352 weights, float32, one bit each. Bit b of word w (least significant
  first) belongs to weight 32 w + b; a set bit means -1.

Block n is the generator applied to the counter (n, 0, ...); its words follow each other in the stream.

    python bench/generators.py [--json FILE] [--only numpy,onnxruntime,executorch,node] [--repeats N]

A place whose packages are missing (onnx and onnxruntime; torch and executorch; node) is skipped with a line.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
Array = npt.NDArray[Any]
Job = Callable[[], Array]

WORDS = 1 << 20
WEIGHTS = 1_932_352
MASK = 0xFFFFFFFF
KEY = (0x9E3779B9, 0xC0FFEE11)  # any key with both top bits set: signed mistakes show

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

PER_BLOCK = {"threefry": 2, "philox": 4}

# Random123, tests/kat_vectors: (counter, key, expected).
KNOWN_ANSWERS: dict[str, list[tuple[str, str, str]]] = {
    "threefry": [
        ("00000000 00000000", "00000000 00000000", "6b200159 99ba4efe"),
        ("ffffffff ffffffff", "ffffffff ffffffff", "1cb996fc bb002be7"),
        ("243f6a88 85a308d3", "13198a2e 03707344", "c4923a9c 483df7a0"),
    ],
    "philox": [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
}


# --------------------------------------------------------------------------------------------------- NumPy


def threefry_numpy(counter: list[U32], key: tuple[int, int]) -> list[U32]:
    """Twenty rounds of add, rotate, xor; a word of the key schedule every four rounds."""
    ks = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x0, x1 = counter[0] + np.uint32(ks[0]), counter[1] + np.uint32(ks[1])
    high = np.empty_like(x1)
    for r in range(20):
        x0 += x1
        np.left_shift(x1, np.uint32(ROTATIONS[r % 8]), out=high)
        x1 >>= np.uint32(32 - ROTATIONS[r % 8])
        x1 |= high
        x1 ^= x0
        if r % 4 == 3:
            s = r // 4 + 1
            x0 += np.uint32(ks[s % 3])
            x1 += np.uint32((ks[(s + 1) % 3] + s) & MASK)
    return [x0, x1]


def philox_numpy(counter: list[U32], key: tuple[int, int]) -> list[U32]:
    """Ten rounds of two 32x32 -> 64 bit products, in uint64 lanes."""
    c0, c1, c2, c3 = (c.astype(np.uint64) for c in counter)
    low, half = np.uint64(MASK), np.uint64(32)
    for r in range(10):
        c0 *= np.uint64(MULTIPLIERS[0])
        c2 *= np.uint64(MULTIPLIERS[1])
        c1 ^= np.uint64((key[0] + r * WEYL[0]) & MASK)
        c3 ^= np.uint64((key[1] + r * WEYL[1]) & MASK)
        c1 ^= c2 >> half
        c3 ^= c0 >> half
        c2 &= low
        c0 &= low
        c0, c1, c2, c3 = c1, c2, c3, c0
    return [c.astype(np.uint32) for c in (c0, c1, c2, c3)]


BLOCKS = {"threefry": threefry_numpy, "philox": philox_numpy}


def words_numpy(name: str, key: tuple[int, int], count: int) -> U32:
    """The first `count` words of the stream, in runs of lanes that stay in a core's cache."""
    per, run = PER_BLOCK[name], 1 << 13
    blocks = -(-count // per)
    out = np.empty((blocks, per), np.uint32)
    for start in range(0, blocks, run):
        n = np.arange(start, min(start + run, blocks), dtype=np.uint32)
        for i, column in enumerate(BLOCKS[name]([n, *[np.zeros_like(n)] * (per - 1)], key)):
            out[start : start + n.size, i] = column
    return out.reshape(-1)[:count]


def signs_numpy(words: U32, count: int) -> Array:
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), count=count, bitorder="little")
    return np.float32(1) - np.float32(2) * bits


def check_known_answers() -> None:
    for name, vectors in KNOWN_ANSWERS.items():
        for counter, key, expected in vectors:
            c, k, e = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
            got = BLOCKS[name]([np.array([word], np.uint32) for word in c], (k[0], k[1]))
            if [int(word[0]) for word in got] != e:
                sys.exit(f"{name}: known answer for counter {counter}, key {key} is {expected}, got {got}")


# ---------------------------------------------------------------------------------------------------- ONNX


class OnnxGraph:
    """Collects nodes; `graph("Add", a, b)` returns the name of its output. Equal constants are stored once."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[tuple[Any, ...], Any] = {}

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        import onnx.helper

        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(onnx.helper.make_node(op, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def const(self, value: Any, dtype: Any) -> str:
        import onnx.numpy_helper

        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = onnx.numpy_helper.from_array(array, f"c{len(self.constants)}")
        return str(self.constants[key].name)

    def cast(self, x: str, dtype: Any) -> str:
        import onnx.helper

        return str(self("Cast", x, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def model(self, result: str, dtype: Any, count: int) -> bytes:
        import onnx

        helper, kind = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
        self.nodes.append(helper.make_node("Identity", [result], ["result"]))
        graph = helper.make_graph(
            self.nodes,
            "generator",
            [helper.make_tensor_value_info("key", onnx.TensorProto.INT64, [2])],
            [helper.make_tensor_value_info("result", kind(np.dtype(dtype)), [count])],
            list(self.constants.values()),
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        return bytes(made.SerializeToString())


def threefry_onnx(g: OnnxGraph, key: str, blocks: int, wrap: bool) -> list[str]:
    """A rotation is Mul by 2^r (left part) plus BitShift of the uint32 Cast (right part).

    onnxruntime 1.19 adds and multiplies only signed integers and shifts only unsigned ones; and in every version
    measured its Add and Mul are vectorised, its BitwiseOr and BitShift are not, so the halves are joined by Add.
    With `wrap` the lanes are int32 and sums wrap around, which ONNX leaves open; without, they are int64, nothing
    ever overflows, and a Cast to uint32, which by definition drops the high bits, is the reduction modulo 2^32.
    """
    lane = np.int32 if wrap else np.int64
    k0, k1 = g("Split", key, axis=0, outputs=2, num_outputs=2)
    k2 = g("BitwiseXor", g("BitwiseXor", k0, k1), g.const([PARITY], np.int64))
    picks = [0, 1] + [i for s in range(1, 6) for i in (s % 3, (s + 1) % 3)]
    steps = [0, 0] + [i for s in range(1, 6) for i in (0, s)]
    ks = g("Gather", g("Concat", k0, k1, k2, axis=0), g.const(picks, np.int64))
    ks = g.cast(g("Add", ks, g.const(steps, np.int64)), lane)
    k = g("Split", ks, axis=0, outputs=12, num_outputs=12)
    x0 = g("Add", g("Range", *(g.const(v, lane) for v in (0, blocks, 1))), k[0])
    x1 = k[1]  # the second counter word is 0, so x1 is one number until it meets x0
    for r in range(20):
        x0 = g("Add", x0, x1)
        low = g("BitShift", g.cast(x1, np.uint32), g.const(32 - ROTATIONS[r % 8], np.uint32), direction="RIGHT")
        high = g("Mul", x1, g.const(1 << ROTATIONS[r % 8], lane))
        x1 = g("BitwiseXor", g("Add", high, g.cast(low, lane)), x0)
        if not wrap:
            x1 = g.cast(g.cast(x1, np.uint32), lane)
        if r % 4 == 3:
            s = r // 4 + 1
            x0, x1 = g("Add", x0, k[2 * s]), g("Add", x1, k[2 * s + 1])
    return [g.cast(x0, np.uint32), g.cast(x1, np.uint32)]


def philox_onnx(g: OnnxGraph, key: str, blocks: int, wrap: bool) -> list[str]:
    """With `wrap` the unsigned 64-bit product overflows int64, the only type onnxruntime 1.19 could multiply in.

    Without, the factor is M - 2^32, small and negative so that the product fits; the high half is then short by x.
    High bits are not cleared before the exclusive ors: the Cast to uint32 in front of the next product does it.
    """
    bumps = g.const([[r * w & MASK for w in WEYL] for r in range(10)], np.int64)
    lane = np.uint64 if wrap else np.int64
    ks = g("Reshape", g.cast(g("Add", key, bumps), lane), g.const([20], np.int64))
    k = g("Split", ks, axis=0, outputs=20, num_outputs=20)

    def product(x: str, m: int) -> tuple[str, str]:
        x = g.cast(g.cast(x, np.uint32), np.int64)
        p = g("Mul", x, g.const(m if wrap else m - 2**32, np.int64))
        low = g.cast(p, np.uint64)
        high = g("BitShift", low, g.const(32, np.uint64), direction="RIGHT")
        return (high, low) if wrap else (g("Add", g.cast(high, np.int64), x), p)

    zero = g.const([0], lane)
    u = [g("Range", *(g.const(v, np.int64) for v in (0, blocks, 1))), zero, zero, zero]
    for r in range(10):
        (h0, l0), (h1, l1) = product(u[0], MULTIPLIERS[0]), product(u[2], MULTIPLIERS[1])
        u0 = g("BitwiseXor", h1, g("BitwiseXor", u[1], k[2 * r]))
        u2 = g("BitwiseXor", h0, g("BitwiseXor", u[3], k[2 * r + 1]))
        u = [u0, l1, u2, l0]
    return [g.cast(x, np.uint32) for x in u]


ONNX = {"threefry": threefry_onnx, "philox": philox_onnx}


def onnx_model(name: str, job: str, wrap: bool) -> tuple[bytes, int]:
    count = WORDS if job == "words" else WEIGHTS // 32
    per = PER_BLOCK[name]
    blocks = -(-count // per)
    g = OnnxGraph()
    columns = [g("Unsqueeze", x, g.const([0], np.int64)) for x in ONNX[name](g, "key", blocks, wrap)]
    words = g("Transpose", g("Concat", *columns, axis=0), perm=[1, 0])
    words = g("Reshape", words, g.const([-1, 1], np.int64))
    if blocks * per > count:
        words = g("Slice", words, g.const([0], np.int64), g.const([count], np.int64))
    dtype: Any = np.uint32
    if job == "signs":
        bits = g("BitwiseAnd", words, g.const([1 << b for b in range(32)], np.uint32))
        dtype, one = np.float32, g.const(1, np.float32)
        words = g("Where", g.cast(bits, np.bool_), g.const(-1, np.float32), one)
    flat = g("Reshape", words, g.const([-1], np.int64))
    return g.model(flat, dtype, count if job == "words" else WEIGHTS), len(g.nodes)
