"""The uniforms that one device and the aggregator have in common for one mask.  PROTOCOL 2."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seedmask.seed import uniforms16, uniforms_key


@dataclass(frozen=True)
class Shared:
    """Names them. `index`: which mask of the update; `stratum` (k, K): the k-th of the K devices of a stratified round."""

    seed: int
    round: int
    job: str
    device: str
    index: int = 0
    stratum: tuple[int, int] | None = None

    def uniforms(self, d: int) -> npt.NDArray[np.uint16]:
        """Uniforms in units of 2**-16, uint16 [d]."""
        if self.stratum is None:
            return uniforms16(self._key(self.device), d)
        k, of = self.stratum
        w = uniforms16(self._key(""), 2 * d).astype(np.int64)
        v, r = w[::2], (w[1::2] * of) >> 16
        return (((k + r) % of * 65536 + v) // of).astype(np.uint16)

    def _key(self, device: str) -> tuple[int, int]:
        slot = hashlib.sha256(f"{self.job}/{device}/{self.index}".encode()).digest()[:8]
        return uniforms_key(self.seed, self.round, int.from_bytes(slot, "little"))
