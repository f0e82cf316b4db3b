"""Interleaved rANS, the entropy coder of `rans`, `tensors`, `counts` and `delta`; integers only.  PROTOCOL 5.3.

Jarek Duda, "Asymmetric numeral systems", arXiv 1311.2540; interleaving after Fabian Giesen, arXiv 1402.3392.
Frequencies sum to 4096, states are below 2**32, words have 16 bits. Symbol i belongs to lane i mod W. NumPy processes
the lanes of one row together, which makes it fast; a scalar loop over i in order reads the same bytes. An ANS coder is
a stack, so the encoder takes the symbols backwards and the decoder forwards. W depends on the number of symbols, unless
the caller states it. Every state must end where the encoder started; so, for given frequencies, a list of symbols has
exactly one payload.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seedmask.errors import CodecError

PRECISION: Final = 12
TOTAL: Final = 1 << PRECISION
_LOW: Final = 1 << 16  # every state rests in _LOW .. 2**32 - 1
_FEW_LANES: Final = 8  # up to so many lanes, a scalar loop is faster than NumPy
_PIECE: Final = 1 << 16  # symbols that the scalar loop holds as a list

Ints = npt.NDArray[Any]


def lanes_of(n: int) -> int:
    """Return W, the number of lanes for `n` symbols: a power of two, 1 .. 1024. A lane adds speed and 4 bytes."""
    return 1 << min(10, max(0, n.bit_length() - 11))


def share_of(ones: Any, size: Any) -> Any:
    """Return the share of `ones` among `size` bits in 4096ths, rounded half up and limited to 1 .. 4095.

    The arguments are integers, or integer arrays of one shape.
    """
    return np.clip((2 * TOTAL * ones + size) // (2 * size), 1, TOTAL - 1)


def normalise(counts: Ints) -> npt.NDArray[np.uint32]:
    """Return frequencies, uint32 [A], for `counts`, int [A] with A <= 4096.

    They sum to 4096, and are at least 1 for every symbol that occurs.
    """
    total = int(counts.sum())
    scaled = counts.astype(np.int64) * TOTAL // max(total, 1)
    frequency = np.where((counts > 0) & (scaled == 0), 1, scaled)
    while spare := TOTAL - int(frequency.sum()):
        # A sum below 4096: the most frequent symbol (the lowest of several) takes the rest. A sum above: it gives one.
        frequency[frequency.argmax()] += max(spare, -1)
    return frequency.astype(np.uint32)


def encode(symbols: Ints, contexts: Ints, frequency: Ints, lanes: int = 0) -> bytes:
    """Return `symbols`, int [n], as a payload; symbol i is coded under row `contexts[i]` of `frequency`.

    `contexts` int [n]; `frequency` uint [C, A], each row sums to 4096; `lanes`: number of lanes, 0 for `lanes_of(n)`.
    The decoder needs the same three.
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
    """Return the symbols in `payload`, uint8 [n]; the other arguments as for `encode`, with A at most 256.

    Raises CodecError for bytes that `encode` cannot write under these frequencies.
    """
    n = contexts.size
    lanes = lanes or lanes_of(n)
    if len(payload) < 4 * lanes or len(payload) % 2:
        raise CodecError(f"rANS payload of {len(payload)} bytes cannot hold {lanes} lanes and whole words")
    state = np.frombuffer(payload, "<u4", lanes).astype(np.int64)
    words = np.frombuffer(payload, "<u2", -1, 4 * lanes).astype(np.int64)
    if int(state.min()) < _LOW:
        raise CodecError("rANS payload: a lane's state is below 2**16")

    # Three tables by slot: the symbol, its frequency, and the offset of the slot within the symbol's range.
    rows, width = frequency.shape
    flat = frequency.reshape(-1).astype(np.int64)
    cumulative = (np.cumsum(frequency, axis=1) - frequency).reshape(-1).astype(np.int64)
    owner = np.repeat(np.tile(np.arange(width, dtype=np.uint8), rows), flat)
    wide = np.repeat(flat, flat)
    inside = np.tile(np.arange(TOTAL), rows) - np.repeat(cumulative, flat)

    slots = contexts.astype(np.int64) * TOTAL
    steps = _one_by_one if lanes <= _FEW_LANES else _row_by_row
    if steps(state, words, slots, wide, inside) != words.size or np.any(state != _LOW):
        raise CodecError("rANS payload does not end where its encoder began")
    return owner[slots]


def _row_by_row(state: Ints, words: Ints, slots: Ints, wide: Ints, inside: Ints) -> int:
    """Decode all lanes of a row at once; replace `slots` by those of the symbols; return the number of words read."""
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
    """Do the same as `_row_by_row` in a scalar loop; for few lanes the calls of NumPy would take ten times as long."""
    states, lanes, at = state.tolist(), state.size, 0
    width, offset, word = wide.data, inside.data, words.data
    for start in range(0, slots.size, _PIECE):  # a list of all slots would take eight times the array's memory
        piece = slots[start : start + _PIECE].tolist()
        for i, base in enumerate(piece):
            lane = i % lanes  # the number of lanes divides _PIECE
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
