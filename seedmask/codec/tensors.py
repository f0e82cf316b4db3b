"""Codec 19, `tensors`: a mask coded under each tensor's share of ones, for the file of a finished model.  PROTOCOL 5.8.

The reader of such a file has no theta. So the payload states the number of ones in each tensor, and then takes one or
two percent more than the entropy of the bits under these shares. All-zero and all-one tensors take no payload. `rans`
uses many lanes for speed, which would be several percent of a small or sparse mask; here the number of lanes grows with
the number of bits of the rarer kind.
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
    """Return `mask`, uint8 [sum of sizes] of 0/1, as a payload; `sizes`: number of weights of each tensor.

    varint ones of each tensor | rANS payload of the bits. Raises ValueError for another mask.
    """
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
    """Return the mask, uint8 [sum of sizes]. Raises CodecError for bytes that `encode` cannot write."""
    size, ones, at = np.array(sizes, np.int64), np.zeros(len(sizes), np.int64), 0
    for i, n in enumerate(sizes):
        ones[i], at = varint.get(payload, at)
        if ones[i] > n:
            raise CodecError(f"tensors mask: tensor {i} has {n} weights, the payload says {ones[i]} ones")
    mixed = _mixed(size, ones)
    mask = np.repeat((ones == size).astype(np.uint8), size)
    if not mixed.any():
        if at != len(payload):
            raise CodecError(f"tensors mask: no tensor needs a payload, found {len(payload) - at} bytes of it")
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
    """Return W, the number of lanes, from the number of bits of the rarer kind in all tensors.

    `ans.lanes_of` uses the number of symbols; here the lanes' 4 bytes each stay below one percent of the payload.
    """
    rare = int(np.minimum(ones, size - ones).sum())
    return 1 << min(10, max(0, rare.bit_length() - 11))


def _mixed(size: Ints, ones: Ints) -> npt.NDArray[np.bool_]:
    """Return which tensors have both zeros and ones, bool [tensors]; only these are coded."""
    return (ones > 0) & (ones < size)


def _model(size: Ints, ones: Ints) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
    """Return (row of each symbol, intp [symbols]; frequencies, uint32 [rows, 16]); equal shares use the same row."""
    distinct, row = np.unique(ans.share_of(ones, size), return_inverse=True)
    return np.repeat(row, (size + 3) // 4), rans.frequencies(distinct)
