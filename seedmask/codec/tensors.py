"""Codec 19, `tensors`: any mask by each tensor's number of ones; for the file of a finished model.  PROTOCOL 5.8.

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
    parts = np.split(mask, np.cumsum(sizes)[:-1])
    size, ones = np.array(sizes, np.int64), np.array([part.sum(dtype=np.int64) for part in parts])
    head = b"".join(varint.put(int(k)) for k in ones)
    mixed = _mixed(size, ones)
    if not mixed.any():
        return head
    contexts, frequency = _model(size[mixed], ones[mixed])
    symbols = rans.symbols_of([parts[i] for i in np.flatnonzero(mixed)])
    return head + ans.encode(symbols, contexts, frequency, lanes_of(size, ones))


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
    symbols = ans.decode(payload[at:], contexts, frequency, lanes_of(size, ones))
    parts, begins = rans.bits_of(symbols, size[mixed].tolist()), np.cumsum(size) - size
    for i, part in zip(np.flatnonzero(mixed).tolist(), parts, strict=True):
        if (found := int(part.sum(dtype=np.int64))) != ones[i]:
            raise CodecError(f"tensors mask: tensor {i} has {found} ones, the payload says {ones[i]}")
        mask[begins[i] : begins[i] + part.size] = part
    return mask


def lanes_of(size: Ints, ones: Ints) -> int:
    """W: as in `ans`, but by how many bits are of the rarer kind, so that a lane's 4 bytes stay below a percent."""
    rare = int(np.minimum(ones, size - ones).sum())
    return 1 << min(10, max(0, rare.bit_length() - 11))


def _mixed(size: Ints, ones: Ints) -> npt.NDArray[np.bool_]:
    """Which tensors have both kinds of bit; only these are coded."""
    return (ones > 0) & (ones < size)


def _model(size: Ints, ones: Ints) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
    """(row of each symbol, frequencies of each row); tensors of equal share have one row, so rows stay few."""
    distinct, row = np.unique(ans.share_of(ones, size), return_inverse=True)
    return np.repeat(row, (size + 3) // 4), rans.frequencies(distinct)
