"""From a seed to integers that every machine agrees on: the project's only generator, Threefry-2x32-20.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. Counter-based: word n is a pure
function of (key, n), so order, chunking and threads cannot change it, and it needs only 32-bit add, rotate and xor,
which NumPy, ONNX graphs, ExecuTorch and JavaScript all compute exactly (`bench/generators.py` measures each).
What is private to one machine (the noise of its training, its mask's draw) does not come from here.  PROTOCOL 2.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Key = tuple[int, int]
"""Two uint32 words, the Threefry key."""

U32 = npt.NDArray[np.uint32]

# Streams: a stream number is folded into the seed's key so that no two uses ever share a word.
WEIGHTS: Final = 1
UNIFORMS: Final = 2

# Threefry's own constants; the graphs that `export` makes take them from here.
ROTATIONS: Final = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY: Final = 0x1BD11BDA
_MASK: Final = 0xFFFFFFFF
_PIECE: Final = 1 << 14


def threefry2x32(key: Key, c0: U32, c1: U32) -> tuple[U32, U32]:
    """Encrypt the counters (c0, c1), uint32 [n] each, under `key`; 20 rounds. Returns two uint32 [n]."""
    k = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x0 = c0 + np.uint32(k[0])
    x1 = c1 + np.uint32(k[1])
    high = np.empty_like(x1)
    for group in range(5):
        for rotation in ROTATIONS[4 * (group % 2) :][:4]:
            np.add(x0, x1, out=x0)
            np.right_shift(x1, np.uint32(32 - rotation), out=high)
            np.left_shift(x1, np.uint32(rotation), out=x1)
            np.bitwise_or(x1, high, out=x1)
            np.bitwise_xor(x1, x0, out=x1)
        # Key injection after every fourth round, in the order Random123 gives.
        x0 += np.uint32(k[(group + 1) % 3])
        x1 += np.uint32((k[(group + 2) % 3] + group + 1) & _MASK)
    return x0, x1


def key_of(seed: int) -> Key:
    """The key of a 64-bit seed: (low word, high word). Raises ValueError outside 0 .. 2**64 - 1."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"a seed is an integer in 0 .. 2**64 - 1, found {seed}")
    return seed & _MASK, seed >> 32


def fold(key: Key, number: int) -> Key:
    """A new key that depends on `key` and on one 64-bit `number` (a stream, a round, a slot)."""
    low, high = key_of(number)
    x0, x1 = threefry2x32(key, np.array([low], np.uint32), np.array([high], np.uint32))
    return int(x0[0]), int(x1[0])


def words(key: Key, n: int) -> U32:
    """The first `n` words of the key's stream, uint32 [n]: block i has counter (i, 0) and gives words 2i and 2i+1."""
    blocks = (n + 1) // 2
    out = np.empty((blocks, 2), np.uint32)
    zeros = np.zeros(min(blocks, _PIECE), np.uint32)
    for start in range(0, blocks, _PIECE):  # a piece at a time stays in the processor's cache: four times faster
        end = min(start + _PIECE, blocks)
        counter = np.arange(start, end, dtype=np.uint32)
        out[start:end, 0], out[start:end, 1] = threefry2x32(key, counter, zeros[: end - start])
    return out.reshape(-1)[:n]


def weights_key(seed: int) -> Key:
    """The key whose stream holds the sign bits of a model's frozen weights."""
    return fold(key_of(seed), WEIGHTS)


def sign_bits(seed: int, d: int) -> npt.NDArray[np.uint8]:
    """The sign bit of each of `d` frozen weights, uint8 [d] of 0 (plus) or 1 (minus): bit j%32 of word j//32."""
    stream = words(weights_key(seed), (d + 31) // 32).astype("<u4", copy=False)
    return np.unpackbits(stream.view(np.uint8), count=d, bitorder="little")


def uniforms_key(seed: int, round_: int, slot: int) -> Key:
    """The key of the shared uniforms of one device's slot in one round; fresh for each (round, slot)."""
    return fold(fold(fold(key_of(seed), UNIFORMS), round_), slot)


def uniforms16(key: Key, n: int) -> npt.NDArray[np.uint16]:
    """`n` shared uniforms, uint16 [n]: the low and then the high half of each word."""
    stream = words(key, (n + 1) // 2).astype("<u4", copy=False)
    return stream.view("<u2")[:n].astype(np.uint16, copy=False)
