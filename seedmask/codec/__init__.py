"""Codecs of masks and theta.  PROTOCOL 5.

Each mask codec is one module of this folder and one entry of `CODECS`. A codec both draws the mask and codes it,
because the most compact codec, `hmrc`, can only code masks that it has drawn itself. For any bytes, `decode` returns a
mask or raises a ProtocolError. `counts`, `delta` and `relay` code theta; `tensors` codes the mask of a finished model;
`exact` codes exact values.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from seedmask.codec import hmrc, packed, rans
from seedmask.codec.plan import Plan
from seedmask.errors import KindError
from seedmask.mask import F32, Mask, Theta
from seedmask.shared import Shared

__all__ = ["CODECS", "NAMES", "MaskCodec", "Plan", "by_id"]


class MaskCodec(Protocol):
    """Interface of a mask codec; each module in `CODECS` has it."""

    @property
    def ID(self) -> int:  # noqa: N802 - a module constant
        """Codec id on the wire."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a module constant
        """Name of the codec in settings files."""

    def draw(self, scores: F32, theta: Theta, shared: Shared, rng: np.random.Generator, plan: Plan) -> bytes:
        """Draw a mask from Bernoulli(sigmoid(`scores`)), `scores` float32 [d], and return it coded under `theta`.

        `shared`: uniforms that the decoder has too; `rng`: private to this machine; `plan`: coding parameters. Raises
        ValueError if scores are not finite or not of length d.
        """

    def decode(self, payload: bytes, theta: Theta, shared: Shared, max_blocks: int = 0) -> Mask:
        """Return the mask in `payload`, uint8 [d] of 0/1. Raises a ProtocolError for bytes that `draw` cannot write.

        `theta` and `shared` are those that `draw` used. `max_blocks`: the job's limit on blocks of `hmrc`, 0: d div 8.
        """


CODECS: dict[int, MaskCodec] = {codec.ID: codec for codec in (packed, rans, hmrc)}
NAMES: dict[str, int] = {codec.NAME: codec.ID for codec in CODECS.values()}


def by_id(number: int) -> MaskCodec:
    """Return the mask codec with the id `number`. Raises KindError if there is none."""
    try:
        return CODECS[number]
    except KeyError:
        known = ", ".join(f"{codec.ID} {codec.NAME}" for codec in CODECS.values())
        raise KindError(f"codec {number} is unknown; known: {known}") from None
