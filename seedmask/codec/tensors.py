"""Codec 19, `tensors`: any mask by each tensor's number of ones; for the file of a finished model.  PROTOCOL 5.9.

A reader of that file holds no probabilities, so the mask states how many ones each tensor has and then costs its
entropy under these shares, plus one or two percent. What `rans` spends on lanes for speed would be several percent of a
small or sparse mask: here a tensor of one kind of bit costs nothing, and lanes follow from how much there is to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from seedmask.codec import ans, rans, varint
from seedmask.errors import CodecError
from seedmask.mask import Mask, check_mask

ID: Final = 19
NAME: Final = "tensors"

Ints = npt.NDArray[np.int64]


def encode(mask: Mask, sizes: Sequence[int]) -> bytes:
    """varint ones of each tensor | rANS payload of their bits, for tensors of `sizes`, the mask uint8 [sum] of 0/1."""
    check_mask(mask, sum(sizes))
    size = np.array(sizes, np.int64)
    ones = np.add.reduceat(mask, np.cumsum(size) - size, dtype=np.int64)
    head = b"".join(varint.put(int(k)) for k in ones)
    mixed = _mixed(size, ones)
    if not mixed.any():
        return head
    padded = np.zeros(4 * int(_symbols(size[mixed]).sum()), np.uint8)
    padded[_places(size[mixed])] = mask[np.repeat(mixed, size)]
    nibbles = padded.reshape(-1, 4) @ np.array([1, 2, 4, 8], np.uint8)
    contexts, frequency = _model(size[mixed], ones[mixed])
    return head + ans.encode(nibbles, contexts, frequency, lanes_of(size, ones))


def decode(payload: bytes, sizes: Sequence[int]) -> Mask:
    """The mask, uint8 [sum of sizes]. Raises CodecError for bytes that `encode` could not have written."""
    size, ones, at = np.array(sizes, np.int64), np.zeros(len(sizes), np.int64), 0
    for i, n in enumerate(sizes):
        ones[i], at = varint.get(payload, at)
        if ones[i] > n:
            raise CodecError(f"tensors mask: tensor {i} has {n} weights, the payload says {ones[i]} ones")
    mixed = _mixed(size, ones)
    mask = np.repeat((ones == size).astype(np.uint8), size)
    if not mixed.any():
        if at != len(payload):
            raise CodecError(f"tensors mask: nothing is left to tell, found {len(payload) - at} bytes more")
        return mask
    contexts, frequency = _model(size[mixed], ones[mixed])
    nibbles = ans.decode(payload[at:], contexts, frequency, lanes_of(size, ones))
    padded = np.unpackbits(nibbles[:, None], axis=1, count=4, bitorder="little").reshape(-1)
    bits = padded[_places(size[mixed])]
    if int(padded.sum()) != int(bits.sum()):
        raise CodecError("tensors mask: padding bits must be zero")
    mask[np.repeat(mixed, size)] = bits
    found = np.add.reduceat(mask, np.cumsum(size) - size, dtype=np.int64)
    if not np.array_equal(found, ones):
        i = int(np.flatnonzero(found != ones)[0])
        raise CodecError(f"tensors mask: tensor {i} has {found[i]} ones, the payload says {ones[i]}")
    return mask


def lanes_of(size: Ints, ones: Ints) -> int:
    """W: as in `ans`, but by how many bits are of the rarer kind, so that a lane's 4 bytes stay below a percent."""
    rare = int(np.minimum(ones, size - ones).sum())
    return 1 << min(10, max(0, rare.bit_length() - 11))


def _mixed(size: Ints, ones: Ints) -> npt.NDArray[np.bool_]:
    """Which tensors have both kinds of bit; only these are coded."""
    return (ones > 0) & (ones < size)


def _symbols(size: Ints) -> Ints:
    """Four-bit symbols of each tensor."""
    return (size + 3) // 4


def _places(size: Ints) -> Ints:
    """Where each weight stands among the bits, when every tensor begins on a symbol."""
    padding = np.cumsum(-size % 4) - (-size % 4)
    return np.arange(int(size.sum())) + np.repeat(padding, size)


def _model(size: Ints, ones: Ints) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
    """(row of each symbol, frequencies of each row); tensors of equal share have one row, so rows stay few."""
    share = np.clip((2 * ans.TOTAL * ones + size) // (2 * size), 1, ans.TOTAL - 1)
    distinct, row = np.unique(share, return_inverse=True)
    return np.repeat(row, _symbols(size)), rans.frequencies(distinct)
