"""Codec 3, `hmrc`: one byte for a block of some hundred weights, by minimal random coding.  PROTOCOL 5.5.

What one mask tells the aggregator is its relative entropy to the probabilities that both hold, a few hundredths of a
bit per weight; sending all its bits is waste. Minimal random coding (Havasi, Peharz, Hernandez-Lobato, arXiv
1810.00440; for federated masks: Isik et al., arXiv 2306.12625) sends the number of one of 256 masks that both sides
can draw from theta, chosen so that it is as good as drawn from the device's probabilities.

Ours lets the 256 candidates of a block share one uniform u per weight: candidate j takes u shifted by s/4 (modulo 1),
where s, one of 0 .. 3, is two bits, each a parity of j with a number that the weight's place gives (a Walsh function).
Every candidate is then exactly a draw of Bernoulli(theta), and the log-likelihoods of all 256 come out of one fast
Walsh-Hadamard transform, not of 256 sums. Decoding is integers only and takes two parities, one sum and one comparison
per weight. Any byte per block is a mask, so a sender can do no more harm than choose among 256 plausible ones.

Finite candidates shrink what they carry; `TILT` overweights the log-likelihood ratio so that the first moment of the
mask is right (its slope against the device's probabilities is about 1; `make bench-bits`). Cost: 1.6-1.9 times the
relative entropy at kappa 5. A larger kappa sends less, and shrinks the step that the mask stands
for: slope .8 at kappa 8, .5 at 24 (`make bench-bits`).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seedmask.codec import varint
from seedmask.codec.plan import Plan, check_scores
from seedmask.errors import CodecError, LimitError
from seedmask.mask import F32, ONE, Mask, Theta, table
from seedmask.shared import Shared

ID = 3
NAME = "hmrc"

CANDIDATES: Final = 256
ROWS: Final = 255  # after so many rows of blocks the parities repeat
TILT: Final = 1.5
_SAMPLE: Final = 1 << 16  # weights that the rate is estimated from
_SMALL: Final = 2 * 3 * 5 * 7  # strides that layers have
_CLIP: Final = 30.0
_PIECE: Final = 1 << 16  # weights at a time
_SLAB: Final = 4096  # blocks whose candidates are weighed at a time: 4 MiB


def _double(r: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """2 r in GF(256) modulo x^8 + x^4 + x^3 + x^2 + 1."""
    return np.where(r < 128, r << 1, (r << 1) ^ 0x11D)


_R1: Final = np.arange(1, CANDIDATES)  # [255]: of row p mod 255
_R2: Final = _double(_R1)
_R3: Final = _R1 ^ _R2
_PARITY: Final = np.array([bin(i).count("1") & 1 for i in range(CANDIDATES)])
# Shift of each (row, candidate) in units of 2**-16, uint16 [255, 256].
_SHIFT: Final = ((2 * _PARITY[_R1[:, None] & np.arange(256)] + _PARITY[_R2[:, None] & np.arange(256)]) << 14).astype(
    np.uint16
)
_SIGNS: Final = (1 - 2 * _PARITY[np.arange(16)[:, None] & np.arange(16)]).astype(np.float32)  # Hadamard, 16 x 16


def draw(scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: Plan) -> bytes:
    """Choose a candidate for each block: varint number of blocks | one byte each.

    The number of blocks is the relative entropy over kappa, made coprime to small strides: blocks are strided, and a
    stride in step with a layer's width would give some blocks much more to say than others.
    """
    check_scores(scores, theta.d)
    blocks = _blocks(scores, theta, plan)
    characters = _characters(scores, theta, shared.uniforms(theta.d), blocks)
    picks = []
    for start in range(0, blocks, _SLAB):
        shares = _softmax(_log_likelihoods(characters, start, min(start + _SLAB, blocks)))
        # One uniform per block picks from the cumulated shares: a draw of softmax.
        chance = rng.random((len(shares), 1), np.float32)
        picks.append(np.minimum((shares.cumsum(axis=1) < chance).sum(axis=1), CANDIDATES - 1).astype(np.uint8))
    return varint.put(blocks) + np.concatenate(picks).tobytes()


def decode(payload: bytes, theta: Theta, shared: Shared, max_blocks: int = 0) -> Mask:
    """The mask that the blocks' bytes name, uint8 [d]; integers only.

    Raises CodecError for a length that does not fit, LimitError for no block or more than `limit` allows.
    """
    blocks, at = varint.get(payload, 0)
    if not 1 <= blocks <= limit(theta.d, max_blocks):
        raise LimitError(f"hmrc: {blocks} blocks, 1 .. {limit(theta.d, max_blocks)} are allowed")
    if len(payload) != at + blocks:
        raise CodecError(f"hmrc: {blocks} blocks in {len(payload) - at} bytes")
    j = np.frombuffer(payload, np.uint8, blocks, at)
    moved = shared.uniforms(theta.d)
    rows = min(ROWS, -(-theta.d // blocks))
    shift = _SHIFT[:rows].take(j, axis=1).reshape(-1)  # the shifts of ROWS rows; then they repeat
    for start in range(0, theta.d, shift.size):
        part = moved[start : start + shift.size]
        part += shift[: part.size]  # modulo 2**16, by uint16's nature
    return (moved < theta.q16()).view(np.uint8)


def limit(d: int, max_blocks: int = 0) -> int:
    """How many blocks a mask of `d` weights may have: d div 8, at least 1, and no more than the job's `max_blocks`."""
    most = max(1, d // 8)
    return min(most, max_blocks) if max_blocks else most


def _blocks(scores: F32, theta: Theta, plan: Plan) -> int:
    most = limit(theta.d, plan.max_blocks)
    pick = slice(None, None, max(1, theta.d // _SAMPLE) | 1)
    wanted = round(_relative_entropy(_clipped(scores[pick]), theta, pick) * theta.d / plan.kappa)
    blocks = min(max(wanted, 1), most)
    while math.gcd(blocks, _SMALL) > 1 and blocks < most:
        blocks += 1
    return blocks


def _relative_entropy(scores: F32, theta: Theta, pick: slice) -> float:
    """Mean over some weights of KL(Bernoulli(sigmoid(scores)) || theta) / efficiency, bits."""
    logit = theta.logit()[pick].astype(np.float64)
    s = scores.astype(np.float64)
    divergence = (s - logit) / (1 + np.exp(-s)) - np.logaddexp(0, s) + np.logaddexp(0, logit)
    return float((divergence / _efficiency(theta)[theta.level[pick]]).mean() / math.log(2))


def _efficiency(theta: Theta) -> npt.NDArray[np.float64]:
    """How much of a weight's log-likelihood ratio its four shifted uniforms can express, per level: 0.75 .. 1."""
    t = table(theta.max_level, theta.clamp) / ONE
    both = sum(np.maximum(0, t - s / 4) + (np.maximum(0, t - 1 + s / 4) if s else 0) for s in range(4)) / 4
    out: npt.NDArray[np.float64] = (t - both) / (t * (1 - t))
    return out


def _characters(
    scores: F32, theta: Theta, u: npt.NDArray[np.uint16], blocks: int
) -> list[tuple[npt.NDArray[np.int64], F32]]:
    """What the weights say of Walsh characters: thrice (characters [rows], tilted log-likelihoods [rows, blocks]).

    Summed over the weights of a block whose rows share their parities; a piece of the vectors at a time, because a
    device has just trained and holds a dozen of them.
    """
    rows = min(ROWS, -(-theta.d // blocks))
    sums = [np.zeros(rows * blocks, np.float32) for _ in range(3)]
    steps = TILT / 4 / _efficiency(theta)
    ones, logits = table(theta.max_level, theta.clamp), theta.logits()
    for start in range(0, theta.d, rows * blocks):
        end = min(start + rows * blocks, theta.d)
        for at in range(start, end, _PIECE):
            piece = slice(at, min(at + _PIECE, end))
            level, moved = theta.level[piece], u[piece]
            gain = steps.astype(np.float32)[level]
            gain *= _clipped(scores[piece]) - logits[level]
            signed: list[Any] = []
            for shift in (0, 1 << 14, 1 << 15, 3 << 14):
                inside = moved + np.uint16(shift) < ones[level]
                signed.append(np.where(inside, gain, np.float32(0)))
            odd, even = signed[0] - signed[2], signed[1] - signed[3]
            other = signed[0] + signed[2] - signed[1] - signed[3]
            # A weight in row p speaks of r1, r2 and r3 of that row, and of nothing else.
            for total, values in zip(sums, (odd + even, other, odd - even), strict=True):
                total[at - start : piece.stop - start] += values
    return [(index, each.reshape(rows, blocks)) for index, each in zip((_R1, _R2, _R3), sums, strict=True)]


def _clipped(scores: F32) -> F32:
    return np.clip(scores, -_CLIP, _CLIP).astype(np.float32, copy=False)


def _log_likelihoods(characters: list[tuple[npt.NDArray[np.int64], F32]], start: int, end: int) -> F32:
    """Log-likelihood ratios of the candidates of blocks `start` .. `end` - 1, float32 [n, 256], up to a constant."""
    spectrum = np.zeros((end - start, CANDIDATES), np.float32)
    for index, by_row in characters:
        spectrum[:, index[: len(by_row)]] += by_row[:, start:end].T
    out: F32 = (_SIGNS @ spectrum.reshape(-1, 16, 16) @ _SIGNS).reshape(-1, CANDIDATES)
    return out


def _softmax(x: F32) -> F32:
    """Shares that sum to 1 per row, in place."""
    x -= x.max(axis=1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=1, keepdims=True)
    return x
