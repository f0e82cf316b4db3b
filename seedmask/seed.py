"""Threefry-2x32-20, the random number generator whose output all machines share.  PROTOCOL 2.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. It is counter-based: word n is a
pure function of (key, n), so order, chunking and threads cannot change it. It needs only 32-bit addition, rotation and
xor, which NumPy, ONNX graphs, ExecuTorch and JavaScript all compute exactly (docs/decisions/0001). Randomness that is
private to one machine, such as the noise of training, comes from NumPy's generators instead.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Key = tuple[int, int]
"""Two uint32 words, the Threefry key."""

U32 = npt.NDArray[np.uint32]

# Numbers of streams. A use of the generator folds its number into the seed's key, so that no two uses share a word.
WEIGHTS: Final = 1
UNIFORMS: Final = 2

# Threefry's constants; graphs made by `export` use them too.
ROTATIONS: Final = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY: Final = 0x1BD11BDA
_MASK: Final = 0xFFFFFFFF
_PIECE: Final = 1 << 14


def threefry2x32(key: Key, c0: U32, c1: U32) -> tuple[U32, U32]:
    """Encrypt the counters (c0, c1), uint32 [n] each, under `key` in 20 rounds. Return two arrays, uint32 [n] each."""
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
    """Return the key of a 64-bit seed, (low word, high word). Raises ValueError outside 0 .. 2**64 - 1."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"a seed is an integer in 0 .. 2**64 - 1, found {seed}")
    return seed & _MASK, seed >> 32


def fold(key: Key, number: int) -> Key:
    """Return a new key derived from `key` and a 64-bit `number` (a stream, a round, a slot)."""
    low, high = key_of(number)
    x0, x1 = threefry2x32(key, np.array([low], np.uint32), np.array([high], np.uint32))
    return int(x0[0]), int(x1[0])


def words(key: Key, n: int) -> U32:
    """Return the first `n` words of the key's stream, uint32 [n]; counter (i, 0) gives words 2i and 2i+1."""
    blocks = (n + 1) // 2
    out = np.empty((blocks, 2), np.uint32)
    zeros = np.zeros(min(blocks, _PIECE), np.uint32)
    for start in range(0, blocks, _PIECE):  # a piece at a time stays in the processor's cache: four times faster
        end = min(start + _PIECE, blocks)
        counter = np.arange(start, end, dtype=np.uint32)
        out[start:end, 0], out[start:end, 1] = threefry2x32(key, counter, zeros[: end - start])
    return out.reshape(-1)[:n]


def weights_key(seed: int) -> Key:
    """Return the key whose stream holds the sign bits of a model's random weights."""
    return fold(key_of(seed), WEIGHTS)


def sign_bits(seed: int, d: int) -> npt.NDArray[np.uint8]:
    """Return the sign bits of the first `d` random weights, uint8 [d]: 0 plus, 1 minus; bit j%32 of word j//32."""
    stream = words(weights_key(seed), (d + 31) // 32).astype("<u4", copy=False)
    return np.unpackbits(stream.view(np.uint8), count=d, bitorder="little")


def uniforms_key(seed: int, round_: int, slot: int) -> Key:
    """Return the key of the shared uniforms of one slot (a device's mask) in one round; each pair has its own key."""
    return fold(fold(fold(key_of(seed), UNIFORMS), round_), slot)


def uniforms16(key: Key, n: int) -> npt.NDArray[np.uint16]:
    """Return `n` shared uniforms, uint16 [n]: of each word the low half, then the high half."""
    stream = words(key, (n + 1) // 2).astype("<u4", copy=False)
    return stream.view("<u2")[:n].astype(np.uint16, copy=False)
