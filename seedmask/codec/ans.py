"""Interleaved rANS over integers: the entropy coder under `rans` (masks) and `counts` (theta).  PROTOCOL 5.3.

Jarek Duda, "Asymmetric numeral systems", arXiv 1311.2540; interleaving after Fabian Giesen, arXiv 1402.3392.
Frequencies sum to 4096, states are below 2**32, words have 16 bits. Symbol i belongs to lane i mod W, and the lanes of
one row step together, which is what makes it fast in NumPy; a scalar loop over i in order reads the same bytes.
The surprise of any ANS coder: it is a stack, so the encoder walks backwards and the decoder forwards.
W follows from the number of symbols, or is what a caller knows to be worth it, and every state must end where the
encoder began, so that for given frequencies one list of symbols has one payload and no other bytes decode to it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seedmask.errors import CodecError

PRECISION: Final = 12
TOTAL: Final = 1 << PRECISION
_LOW: Final = 1 << 16  # every state rests in _LOW .. 2**32 - 1
_FEW: Final = 8  # lanes
_PIECE: Final = 1 << 16  # symbols

Ints = npt.NDArray[Any]


def lanes_of(n: int) -> int:
    """W, the number of lanes for `n` symbols, 1 .. 1024 and a power of two: speed against 4 bytes a lane."""
    return 1 << min(10, max(0, n.bit_length() - 11))


def share_of(ones: Any, size: Any) -> Any:
    """Share of ones among `size` bits in 4096ths, rounded half up, kept off 0 and 4096; integers or arrays of them."""
    return np.clip((2 * TOTAL * ones + size) // (2 * size), 1, TOTAL - 1)


def normalise(counts: Ints) -> npt.NDArray[np.uint32]:
    """Frequencies that sum to 4096, at least 1 wherever a symbol occurs, from counts int [A], A <= 4096."""
    total = int(counts.sum())
    scaled = counts.astype(np.int64) * TOTAL // max(total, 1)
    frequency = np.where((counts > 0) & (scaled == 0), 1, scaled)
    while spare := TOTAL - int(frequency.sum()):
        # What rounding left over goes to the commonest symbol, lowest first; what it took comes from there one by one.
        frequency[frequency.argmax()] += max(spare, -1)
    return frequency.astype(np.uint32)


def encode(symbols: Ints, contexts: Ints, frequency: Ints, lanes: int = 0) -> bytes:
    """Code `symbols` int [n], each under row `contexts[i]` of `frequency` uint [C, A] (rows sum to 4096).

    In `lanes` lanes, 0 for `lanes_of(n)`; the decoder is told the same.
    """
    n = symbols.size
    lanes = lanes or lanes_of(n)
    cumulative = np.cumsum(frequency, axis=1) - frequency
    f = frequency[contexts, symbols].astype(np.int64)
    c = cumulative[contexts, symbols].astype(np.int64)
    ceiling = f << (32 - PRECISION)
    state = np.full(lanes, _LOW, np.int64)
    emitted: list[Ints] = []
    for start in reversed(range(0, n, lanes)):
        row = slice(start, start + lanes)
        x = state[: n - start]  # a view: the last row may be shorter than the rest
        full = (x >= ceiling[row]).nonzero()[0]
        if full.size:
            words = x[full]
            emitted.append(words.astype("<u2"))
            x[full] = words >> 16
        quotient, rest = np.divmod(x, f[row])
        quotient <<= PRECISION
        quotient += rest
        np.add(quotient, c[row], out=x)
    tail = [words.tobytes() for words in reversed(emitted)]
    return b"".join([state.astype("<u4").tobytes(), *tail])


def decode(payload: bytes, contexts: Ints, frequency: Ints, lanes: int = 0) -> npt.NDArray[np.uint8]:
    """The symbols, uint8 [len(contexts)], that `encode` put into `payload`; A is at most 256. Raises CodecError."""
    n = contexts.size
    lanes = lanes or lanes_of(n)
    if len(payload) < 4 * lanes or len(payload) % 2:
        raise CodecError(f"rANS payload of {len(payload)} bytes cannot hold {lanes} lanes and whole words")
    state = np.frombuffer(payload, "<u4", lanes).astype(np.int64)
    words = np.frombuffer(payload, "<u2", -1, 4 * lanes).astype(np.int64)
    if int(state.min()) < _LOW:
        raise CodecError("rANS payload: a lane's state is below 2**16")

    # Three look-ups a symbol: which symbol owns a slot, how wide it is, how far the slot lies inside it.
    rows, width = frequency.shape
    flat = frequency.reshape(-1).astype(np.int64)
    cumulative = (np.cumsum(frequency, axis=1) - frequency).reshape(-1).astype(np.int64)
    owner = np.repeat(np.tile(np.arange(width, dtype=np.uint8), rows), flat)
    wide = np.repeat(flat, flat)
    inside = np.tile(np.arange(TOTAL), rows) - np.repeat(cumulative, flat)

    slots = contexts.astype(np.int64) * TOTAL
    steps = _one_by_one if lanes <= _FEW else _row_by_row
    if steps(state, words, slots, wide, inside) != words.size or np.any(state != _LOW):
        raise CodecError("rANS payload does not end where its encoder began")
    return owner[slots]


def _row_by_row(state: Ints, words: Ints, slots: Ints, wide: Ints, inside: Ints) -> int:
    """Step the lanes of one row together; `slots` become those of the symbols. How many words it took."""
    n, lanes, at = slots.size, state.size, 0
    for start in range(0, n, lanes):
        x = state[: n - start]  # a view: the last row may be shorter than the rest
        slot = slots[start : start + lanes]  # a view as well
        slot += x & (TOTAL - 1)
        x >>= PRECISION
        x *= wide.take(slot)
        x += inside.take(slot)
        short = (x < _LOW).nonzero()[0]
        if short.size:
            if at + short.size > words.size:
                raise CodecError("rANS payload ends before its last symbol")
            x[short] = x[short] << 16 | words[at : at + short.size]
            at += short.size
    return at


def _one_by_one(state: Ints, words: Ints, slots: Ints, wide: Ints, inside: Ints) -> int:
    """The same in plain integers: for a few lanes a row is not worth NumPy's calls, ten times as long."""
    states, lanes, at = state.tolist(), state.size, 0
    width, offset, word = wide.data, inside.data, words.data
    for start in range(0, slots.size, _PIECE):  # a list of all would be eight times the array
        piece = slots[start : start + _PIECE].tolist()
        for i, base in enumerate(piece):
            lane = i % lanes  # lanes divide a piece
            x = states[lane]
            slot = base + (x & (TOTAL - 1))
            x = (x >> PRECISION) * width[slot] + offset[slot]
            if x < _LOW:
                if at == len(word):
                    raise CodecError("rANS payload ends before its last symbol")
                x = x << 16 | word[at]
                at += 1
            states[lane], piece[i] = x, slot
        slots[start : start + _PIECE] = piece
    state[:] = states
    return at
