"""Which counter-based integer generator: Threefry-2x32-20 or Philox4x32-10?

Both come from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC'11); their
reference code is Random123, whose known-answer vectors (`tests/kat_vectors`) are checked here before
anything is timed. Each generator is written four times: for NumPy, as an ONNX graph, as an ExecuTorch program
and in plain JavaScript. All of them must give the same bits, or the script stops.

Two jobs are timed, in CPU milliseconds of one thread, as the median of alternating repetitions:

* `words`: 2^20 words of 32 bits from a key of two words;
* `signs`: the +-1 signs of CONV-4's 1,932,352 weights, float32, one bit each. Bit b of word w (least
  significant first) belongs to weight 32 w + b; a set bit means -1.

Block n is the generator applied to the counter (n, 0, ...); its words follow each other in the stream.

    python bench/generators.py [--json FILE] [--only numpy,onnxruntime,executorch,node] [--repeats N]

A place whose packages are missing (onnx and onnxruntime; torch and executorch; node) is skipped with a line.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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


JOBS = ("words", "signs")


@dataclass
class Row:
    """One generator in one place: what to run, and what was found."""

    place: str
    generator: str
    lines: int
    jobs: dict[str, Job] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=lambda: {job: [] for job in JOBS})
    nodes: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)


def count_lines(text: str, comment: str) -> int:
    return sum(bool(line.strip()) and not line.strip().startswith(comment) for line in text.splitlines())


def code_lines(function: Callable[..., Any]) -> int:
    text = inspect.getsource(function)
    return count_lines(text.replace(f'"""{function.__doc__}"""', ""), "#")


def must_equal(row: Row, job: str, expected: Array) -> None:
    got = row.jobs[job]()
    if got.dtype == np.int32:
        got = got.view(np.uint32)
    if got.dtype != expected.dtype or not np.array_equal(got, expected):
        sys.exit(f"{row.place}: {row.generator} {job} differs from NumPy")


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


def weight_signs_numpy(name: str, key: tuple[int, int], count: int) -> Array:
    return signs_numpy(words_numpy(name, key, count // 32), count)


def check_known_answers() -> None:
    for name, vectors in KNOWN_ANSWERS.items():
        for counter, key, expected in vectors:
            c, k, e = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
            got = BLOCKS[name]([np.array([word], np.uint32) for word in c], (k[0], k[1]))
            if [int(word[0]) for word in got] != e:
                sys.exit(f"{name}: known answer for counter {counter}, key {key} is {expected}, got {got}")


# ---------------------------------------------------------------------------------------------------- ONNX


class OnnxGraph:
    """Collects nodes; `graph("Add", a, b)` returns its output's name. Equal constants are stored once."""

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

    onnxruntime 1.19 adds and multiplies only signed integers and shifts only unsigned ones. In 1.19 and 1.32
    BitwiseOr takes three to eight times as long as Add, so the two parts are joined by Add.
    With `wrap` the lanes are int32 and sums wrap around, which ONNX leaves open; without, they are int64,
    nothing ever overflows, and a Cast to uint32, which by definition drops the high bits, reduces mod 2^32.
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
        bits = ROTATIONS[r % 8]
        low = g("BitShift", g.cast(x1, np.uint32), g.const(32 - bits, np.uint32), direction="RIGHT")
        high = g("Mul", x1, g.const(1 << bits, lane))
        x1 = g("BitwiseXor", g("Add", high, g.cast(low, lane)), x0)
        if not wrap:
            x1 = g.cast(g.cast(x1, np.uint32), lane)
        if r % 4 == 3:
            s = r // 4 + 1
            x0, x1 = g("Add", x0, k[2 * s]), g("Add", x1, k[2 * s + 1])
    return [g.cast(x0, np.uint32), g.cast(x1, np.uint32)]


def philox_onnx(g: OnnxGraph, key: str, blocks: int, wrap: bool) -> list[str]:
    """With `wrap` the unsigned product overflows int64, the only 64-bit type onnxruntime 1.19 multiplies.

    Without, the factor is M - 2^32, small and negative so that the product fits; the high half is then short
    by x. High bits are not cleared before the exclusive ors but by the Cast to uint32 before the next one.
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


def run_onnx(session: Any, feed: dict[str, Array]) -> Array:
    return np.asarray(session.run(None, feed)[0])


def place_onnxruntime(expected: dict[tuple[str, str], Array]) -> list[Row]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    rows, feed = [], {"key": np.array(KEY, np.int64)}
    for wrap in (True, False):
        for name in BLOCKS:
            place = f"onnxruntime {ort.__version__}" + ("" if wrap else ", no wrap")
            row = Row(place, name, code_lines(ONNX[name]))
            for job in JOBS:
                model, row.nodes[job] = onnx_model(name, job, wrap)
                session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
                row.bytes[job] = len(model)
                row.jobs[job] = partial(run_onnx, session, feed)
                must_equal(row, job, expected[name, job])
            rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------- ExecuTorch


def threefry_torch(key: Any, blocks: int) -> list[Any]:
    """int32 lanes: sums wrap, and a mask after the arithmetic right shift makes it a logical one."""
    import torch

    k0, k1 = key[0:1].to(torch.int32), key[1:2].to(torch.int32)
    ks = (k0, k1, (k0 ^ k1) ^ PARITY)
    x0, x1 = torch.arange(blocks, dtype=torch.int32) + ks[0], ks[1]
    for r in range(20):
        x0 = x0 + x1
        bits = ROTATIONS[r % 8]
        low = torch.bitwise_right_shift(x1, 32 - bits) & ((1 << bits) - 1)
        x1 = (torch.bitwise_left_shift(x1, bits) | low) ^ x0
        if r % 4 == 3:
            s = r // 4 + 1
            x0, x1 = x0 + ks[s % 3], x1 + (ks[(s + 1) % 3] + s)
    return [x0, x1]


def philox_torch(key: Any, blocks: int) -> list[Any]:
    """int64 lanes; the product wraps. Exclusive ors in int32 lanes cost more in casts than they save."""
    import torch

    zero = key[0:1] & 0
    c0, c1, c2, c3 = torch.arange(blocks, dtype=torch.int64), zero, zero, zero
    for r in range(10):
        p, q = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        k0, k1 = key[0:1] + (r * WEYL[0] & MASK), key[1:2] + (r * WEYL[1] & MASK)
        c0 = (torch.bitwise_right_shift(q, 32) ^ (c1 ^ k0)) & MASK
        c2 = (torch.bitwise_right_shift(p, 32) ^ (c3 ^ k1)) & MASK
        c1, c3 = q, p  # their high bits go when they are next used
    return [c.to(torch.int32) for c in (c0, c1, c2, c3)]


TORCH = {"threefry": threefry_torch, "philox": philox_torch}


def executorch_program(name: str, job: str) -> tuple[bytes, int]:
    import torch
    from executorch.exir import EdgeCompileConfig, to_edge

    count = WORDS if job == "words" else WEIGHTS // 32

    class Program(torch.nn.Module):
        def forward(self, key: Any) -> Any:
            columns = TORCH[name](key, -(-count // PER_BLOCK[name]))
            words = torch.stack(columns, 1).reshape(-1)[:count]
            if job == "words":
                return words
            bits = torch.bitwise_right_shift(words[:, None], torch.arange(32, dtype=torch.int32)) & 1
            return 1.0 - 2.0 * bits.reshape(-1).to(torch.float32)

    exported = torch.export.export(Program(), (torch.zeros(2, dtype=torch.int64),))
    # Integer shifts are not in the core operator set, hence no validity check; their kernels exist.
    edge = to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    nodes = sum(node.op == "call_function" for node in edge.exported_program().graph.nodes)
    return bytes(edge.to_executorch().buffer), nodes


def run_executorch(module: Any, program: bytes, key: Any) -> Array:
    """`program` is not used, only kept: the module reads it in place and does not keep it alive itself."""
    return np.asarray(module.run_method("forward", (key,))[0].numpy())


def place_executorch(expected: dict[tuple[str, str], Array]) -> list[Row]:
    import torch
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(1)
    version = importlib.metadata.version("executorch")
    rows, key = [], torch.tensor(KEY, dtype=torch.int64)
    for name in BLOCKS:
        row = Row(f"executorch {version}", name, code_lines(TORCH[name]))
        for job in JOBS:
            program, row.nodes[job] = executorch_program(name, job)
            module = portable_lib._load_for_executorch_from_buffer(program)
            row.bytes[job] = len(program)
            row.jobs[job] = partial(run_executorch, module, program, key)
            must_equal(row, job, expected[name, job])
        rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------- JavaScript

# Between the markers: what counts as lines of code. Writes one JSON object to its output.
JAVASCRIPT = r"""
"use strict";
const crypto = require("node:crypto");
const [count, weights, key, repeats] = JSON.parse(process.argv[process.argv.length - 1]);

const generators = {
  // begin threefry
  threefry(k0, k1, out) {
    const ks = [k0 | 0, k1 | 0, k0 ^ k1 ^ 0x1BD11BDA];
    for (let n = 0, i = 0; i < out.length; n++) {
      let x0 = (n + ks[0]) | 0, x1 = ks[1];
      for (let s = 1; s <= 5; s++) {
        const odd = s & 1;
        x0 = (x0 + x1) | 0; x1 = (odd ? x1 << 13 | x1 >>> 19 : x1 << 17 | x1 >>> 15) ^ x0;
        x0 = (x0 + x1) | 0; x1 = (odd ? x1 << 15 | x1 >>> 17 : x1 << 29 | x1 >>> 3) ^ x0;
        x0 = (x0 + x1) | 0; x1 = (odd ? x1 << 26 | x1 >>> 6 : x1 << 16 | x1 >>> 16) ^ x0;
        x0 = (x0 + x1) | 0; x1 = (odd ? x1 << 6 | x1 >>> 26 : x1 << 24 | x1 >>> 8) ^ x0;
        x0 = (x0 + ks[s % 3]) | 0; x1 = (x1 + ks[(s + 1) % 3] + s) | 0;
      }
      out[i++] = x0;
      if (i < out.length) out[i++] = x1;
    }
  },
  // end threefry
  // begin philox
  philox(k0, k1, out) {
    // High half of a 32x32-bit product from 16-bit parts; every partial sum stays below 2^53.
    const high = (a, b) => {
      const al = a & 0xffff, ah = a >>> 16, bl = b & 0xffff, bh = b >>> 16;
      const mid = ah * bl + (Math.imul(al, bl) >>> 16);
      return (ah * bh + Math.floor(mid / 65536) + ((al * bh + (mid % 65536)) / 65536 | 0)) | 0;
    };
    for (let n = 0, i = 0; i < out.length; n++) {
      let c0 = n, c1 = 0, c2 = 0, c3 = 0, a = k0 | 0, b = k1 | 0;
      for (let r = 0; r < 10; r++) {
        const h0 = high(0xD2511F53, c0), h1 = high(0xCD9E8D57, c2);
        const l0 = Math.imul(0xD2511F53, c0), l1 = Math.imul(0xCD9E8D57, c2);
        c0 = h1 ^ c1 ^ a; c1 = l1; c2 = h0 ^ c3 ^ b; c3 = l0;
        a = (a + 0x9E3779B9) | 0; b = (b + 0xBB67AE85) | 0;
      }
      out[i++] = c0;
      if (i < out.length) out[i++] = c1;
      if (i < out.length) out[i++] = c2;
      if (i < out.length) out[i++] = c3;
    }
  },
  // end philox
};

const jobs = {
  words(name) {
    const out = new Uint32Array(count);
    generators[name](key[0], key[1], out);
    return out;
  },
  signs(name) {
    const words = new Uint32Array(weights / 32), out = new Float32Array(weights);
    generators[name](key[0], key[1], words);
    for (let w = 0, i = 0; w < words.length; w++)
      for (let b = 0, word = words[w]; b < 32; b++) out[i++] = 1 - 2 * (word >>> b & 1);
    return out;
  },
};

const report = { version: process.version };
for (let r = -3; r < repeats; r++)
  for (const name of Object.keys(generators))
    for (const job of Object.keys(jobs)) {
      const entry = (report[name] ??= {})[job] ??= { ms: [] };
      const start = process.cpuUsage();
      const out = jobs[job](name);
      const used = process.cpuUsage(start);
      if (r >= 0) entry.ms.push((used.user + used.system) / 1000);  // the first three runs let it compile
      else entry.sha256 = crypto.createHash("sha256").update(new Uint8Array(out.buffer)).digest("hex");
    }
console.log(JSON.stringify(report));
"""


def place_node(expected: dict[tuple[str, str], Array], repeats: int) -> list[Row]:
    arguments = json.dumps([WORDS, WEIGHTS, KEY, repeats])
    command = ["node", "-e", JAVASCRIPT, "--", arguments]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report, rows = json.loads(run.stdout), []
    for name in BLOCKS:
        text = JAVASCRIPT.split(f"// begin {name}\n")[1].split(f"// end {name}")[0]
        row = Row(f"node {report['version']}", name, count_lines(text, "//"))
        for job in JOBS:
            row.times[job] = report[name][job]["ms"]
            if report[name][job]["sha256"] != hashlib.sha256(expected[name, job].tobytes()).hexdigest():
                sys.exit(f"{row.place}: {name} {job} differs from NumPy")
        rows.append(row)
    return rows


# ----------------------------------------------------------------------------------------------- The table


def place_numpy() -> list[Row]:
    rows = []
    for name, block in BLOCKS.items():
        row = Row(f"numpy {np.__version__}", name, code_lines(block))
        row.jobs["words"] = partial(words_numpy, name, KEY, WORDS)
        row.jobs["signs"] = partial(weight_signs_numpy, name, KEY, WEIGHTS)
        rows.append(row)
    return rows


def measure(rows: list[Row], repeats: int) -> None:
    """Repetition by repetition in turn, so that a busy moment of the machine falls on all alike."""
    for turn in range(-1, repeats):
        for row in rows:
            for job, run in row.jobs.items():
                start = time.process_time()
                run()
                spent = (time.process_time() - start) * 1e3
                if turn >= 0:
                    row.times[job].append(spent)


def table(rows: list[Row]) -> str:
    lines = [
        f"{'place':<30} {'kind':<8} {'words':>7} {'signs':>7} {'nodes':>9} {'bytes':>12} {'lines':>4}",
        f"{'':<30} {'':<8} {'ms':>7} {'ms':>7} {'w / s':>9} {'w / s':>12} {'':>4}",
    ]
    for row in rows:
        nodes = " / ".join(str(row.nodes[job]) for job in JOBS if job in row.nodes) or "-"
        size = " / ".join(str(row.bytes[job]) for job in JOBS if job in row.bytes) or "-"
        words, signs = (statistics.median(row.times[job]) for job in JOBS)
        lines.append(f"{row.place:<30} {row.generator:8} {words:7.2f} {signs:7.2f} {nodes:>9} {size:>12} {row.lines:4}")
    return "\n".join(lines)


def main() -> None:
    places = ("numpy", "onnxruntime", "executorch", "node")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--only", default=",".join(places), help="places to run, separated by commas")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(places):
        parser.error(f"unknown place: {', '.join(sorted(unknown))}; there are {', '.join(places)}")

    check_known_answers()
    expected: dict[tuple[str, str], Array] = {}
    for name in BLOCKS:
        expected[name, "words"] = words_numpy(name, KEY, WORDS)
        expected[name, "signs"] = signs_numpy(expected[name, "words"], WEIGHTS)

    rows: list[Row] = []
    for place in only:
        needs = {"onnxruntime": ("onnx", "onnxruntime"), "executorch": ("torch", "executorch")}.get(place, ())
        missing = [package for package in needs if importlib.util.find_spec(package) is None]
        if place == "node" and shutil.which("node") is None:
            missing = ["node"]
        if missing:
            print(f"{place}: skipped, {' and '.join(missing)} not installed")
        elif place == "numpy":
            rows += place_numpy()
        elif place == "onnxruntime":
            rows += place_onnxruntime(expected)
        elif place == "executorch":
            rows += place_executorch(expected)
        else:
            rows += place_node(expected, arguments.repeats)
    measure(rows, arguments.repeats)
    print("Known answers hold; every place gives the bits of NumPy. CPU ms, one thread, medians.")
    print(table(rows))
    if arguments.json:
        figures = [
            {
                "place": row.place,
                "generator": row.generator,
                "cpu_ms": {job: statistics.median(row.times[job]) for job in JOBS},
                "samples_ms": row.times,
                "nodes": row.nodes,
                "bytes": row.bytes,
                "lines": row.lines,
            }
            for row in rows
        ]
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
