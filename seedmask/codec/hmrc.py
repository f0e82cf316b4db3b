"""Codec 3, `hmrc`: one byte for a block of some hundred weights, by minimal random coding.  PROTOCOL 5.5.

The information in a device's mask is its relative entropy to theta, which both sides hold: a few hundredths of a bit
per weight. Sending one bit per weight is wasteful. In minimal random coding (Havasi, Peharz, Hernandez-Lobato, arXiv
1810.00440; for federated masks: Isik et al., arXiv 2306.12625) both sides can draw the same 256 candidate masks from
theta, and the device sends the index of one. It chooses the index so that the mask is distributed nearly as if it were
drawn from the device's own probabilities.

In our variant, the 256 candidates of a block share one uniform u per weight: candidate j uses u shifted by s/4 (modulo
1), with s in 0 .. 3. The two bits of s are parities of j with numbers that depend on the weight's position (Walsh
functions). So every candidate is exactly a draw from Bernoulli(theta), and one fast Walsh-Hadamard transform gives the
log-likelihoods of all 256 candidates, in place of 256 sums. Decoding uses integers only: two parities, an addition and
a comparison per weight. Every byte stands for a valid mask, so a malicious sender can only choose among 256 plausible
ones.

With a finite number of candidates, the mean of the chosen mask moves less than the device's probabilities did. `TILT`
overweights the log-likelihood ratio to correct this: at kappa 5 the slope of the mask's mean against the probabilities
is about 1, at a cost of 1.6-1.9 times the relative entropy. A larger kappa sends fewer bytes, and the slope becomes
smaller: 0.8 at kappa 8, 0.5 at kappa 24 (`make bench-bits` measures all of these).
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
ROWS: Final = 255  # the parities repeat after so many rows of blocks
TILT: Final = 1.5
_SAMPLE: Final = 1 << 16  # weights from which the relative entropy is estimated
_SMALL: Final = 2 * 3 * 5 * 7  # small factors that the widths of layers often have
_CLIP: Final = 30.0  # largest magnitude of a score that is used
_PIECE: Final = 1 << 16  # weights processed at a time
_SLAB: Final = 4096  # blocks whose candidates are compared at a time: 4 MiB


def _double(r: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return 2 r in GF(256) modulo x^8 + x^4 + x^3 + x^2 + 1."""
    return np.where(r < 128, r << 1, (r << 1) ^ 0x11D)


_R1: Final = np.arange(1, CANDIDATES)  # [255], by row p mod 255: the number r1 of PROTOCOL 5.5
_R2: Final = _double(_R1)
_R3: Final = _R1 ^ _R2
_PARITY: Final = np.array([bin(i).count("1") & 1 for i in range(CANDIDATES)])
# Shift of each (row, candidate) in units of 2**-16, uint16 [255, 256].
_SHIFT: Final = ((2 * _PARITY[_R1[:, None] & np.arange(256)] + _PARITY[_R2[:, None] & np.arange(256)]) << 14).astype(
    np.uint16
)
_SIGNS: Final = (1 - 2 * _PARITY[np.arange(16)[:, None] & np.arange(16)]).astype(np.float32)  # Hadamard, 16 x 16


def draw(scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: Plan) -> bytes:
    """Choose a candidate for each block, and return them: varint number of blocks | one byte each.

    The number of blocks is the relative entropy divided by kappa, then raised until it has none of the factors 2, 3, 5
    and 7. Blocks are strided: if the stride shared a factor with a layer's width, some blocks would have to carry much
    more information than others. Raises ValueError if scores are not finite or not of length d.
    """
    check_scores(scores, theta.d)
    blocks = _blocks(scores, theta, plan)
    characters = _characters(scores, theta, shared.uniforms(theta.d), blocks)
    picks = []
    for start in range(0, blocks, _SLAB):
        shares = _softmax(_log_likelihoods(characters, start, min(start + _SLAB, blocks)))
        # Draw from the softmax: compare one uniform per block with the cumulative shares.
        chance = rng.random((len(shares), 1), np.float32)
        picks.append(np.minimum((shares.cumsum(axis=1) < chance).sum(axis=1), CANDIDATES - 1).astype(np.uint8))
    return varint.put(blocks) + np.concatenate(picks).tobytes()


def decode(payload: bytes, theta: Theta, shared: Shared, max_blocks: int = 0) -> Mask:
    """Return the mask that the candidates of `payload` make, uint8 [d], by integer arithmetic only.

    Raises CodecError if the length does not fit, LimitError if there is no block or more than `limit` allows.
    """
    blocks, at = varint.get(payload, 0)
    if not 1 <= blocks <= limit(theta.d, max_blocks):
        raise LimitError(f"hmrc: {blocks} blocks, 1 .. {limit(theta.d, max_blocks)} are allowed")
    if len(payload) != at + blocks:
        raise CodecError(f"hmrc: {blocks} blocks in {len(payload) - at} bytes")
    j = np.frombuffer(payload, np.uint8, blocks, at)
    moved = shared.uniforms(theta.d)
    rows = min(ROWS, -(-theta.d // blocks))
    shift = _SHIFT[:rows].take(j, axis=1).reshape(-1)  # the shifts of the first ROWS rows; later rows repeat them
    for start in range(0, theta.d, shift.size):
        part = moved[start : start + shift.size]
        part += shift[: part.size]  # modulo 2**16, because the arrays are uint16
    return (moved < theta.q16()).view(np.uint8)


def limit(d: int, max_blocks: int = 0) -> int:
    """Return the maximum number of blocks for `d` weights: d div 8, at least 1, and at most the job's `max_blocks`.

    `max_blocks` 0: the job has no limit.
    """
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
    """Return the mean of KL(Bernoulli(sigmoid(scores)) || theta) / efficiency over the weights of `pick`, in bits."""
    logit = theta.logit()[pick].astype(np.float64)
    s = scores.astype(np.float64)
    divergence = (s - logit) / (1 + np.exp(-s)) - np.logaddexp(0, s) + np.logaddexp(0, logit)
    return float((divergence / _efficiency(theta)[theta.level[pick]]).mean() / math.log(2))


def _efficiency(theta: Theta) -> npt.NDArray[np.float64]:
    """Return the share of a weight's log-likelihood ratio that its four shifts can express, by level: 0.75 .. 1."""
    t = table(theta.max_level, theta.clamp) / ONE
    both = sum(np.maximum(0, t - s / 4) + (np.maximum(0, t - 1 + s / 4) if s else 0) for s in range(4)) / 4
    out: npt.NDArray[np.float64] = (t - both) / (t * (1 - t))
    return out


def _characters(
    scores: F32, theta: Theta, u: npt.NDArray[np.uint16], blocks: int
) -> list[tuple[npt.NDArray[np.int64], F32]]:
    """Return the coefficients of each block's log-likelihood ratio in the Walsh functions r1, r2 and r3 of each row.

    Three times (numbers r [rows], coefficients float32 [rows, blocks]), summed over the rows that have the same r. The
    vectors are processed in pieces to save memory: after training, a device holds a dozen vectors of this length.
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
            # A weight in row p contributes to r1, r2 and r3 of that row only.
            for total, values in zip(sums, (odd + even, other, odd - even), strict=True):
                total[at - start : piece.stop - start] += values
    return [(index, each.reshape(rows, blocks)) for index, each in zip((_R1, _R2, _R3), sums, strict=True)]


def _clipped(scores: F32) -> F32:
    return np.clip(scores, -_CLIP, _CLIP).astype(np.float32, copy=False)


def _log_likelihoods(characters: list[tuple[npt.NDArray[np.int64], F32]], start: int, end: int) -> F32:
    """Return log-likelihood ratios, up to a constant, of blocks `start` .. `end` - 1, float32 [n, 256]."""
    spectrum = np.zeros((end - start, CANDIDATES), np.float32)
    for index, by_row in characters:
        spectrum[:, index[: len(by_row)]] += by_row[:, start:end].T
    out: F32 = (_SIGNS @ spectrum.reshape(-1, 16, 16) @ _SIGNS).reshape(-1, CANDIDATES)
    return out


def _softmax(x: F32) -> F32:
    """Replace each row of `x` by its softmax, and return `x`."""
    x -= x.max(axis=1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=1, keepdims=True)
    return x
