"""Random numbers that a device and the aggregator share without sending them.  PROTOCOL 2.

Both generate them from what both know: the model's seed, the job, the round, the device's name and the number of the
mask. The codec `hmrc` draws masks with them, which lets it send a mask in about as many bits as the mask has
information. Every mask has uniforms of its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seedmask.seed import uniforms16, uniforms_key


@dataclass(frozen=True)
class Shared:
    """Identity of the uniforms of one mask: `seed` of the model, 64 bits; `index` of the mask in its update, from 0."""

    seed: int
    round: int
    job: str
    device: str
    index: int = 0

    def uniforms(self, d: int) -> npt.NDArray[np.uint16]:
        """Return the first `d` uniforms, uint16 [d], each uniform on 0 .. 65535."""
        name = hashlib.sha256(f"{self.job}/{self.device}/{self.index}".encode("ascii")).digest()
        return uniforms16(uniforms_key(self.seed, self.round, int.from_bytes(name[:8], "little")), d)
