"""The uniforms that one device and the aggregator have in common, without sending them.  PROTOCOL 2.

Both regenerate them from what they know anyway: the model's seed, the job, the round, the device's name. The codec
`hmrc` draws its masks with them, which is what makes a mask cost its information only. Each (job, round, device, number
of the mask) has uniforms of its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seedmask.seed import uniforms16, uniforms_key


@dataclass(frozen=True)
class Shared:
    """Names the uniforms of one mask: `seed` the model's, 64 bits; `index` which mask of the device's update."""

    seed: int
    round: int
    job: str
    device: str
    index: int = 0

    def uniforms(self, d: int) -> npt.NDArray[np.uint16]:
        """Return `d` uniforms, uint16 [d], each uniform on 0 .. 65535."""
        name = hashlib.sha256(f"{self.job}/{self.device}/{self.index}".encode("ascii")).digest()
        return uniforms16(uniforms_key(self.seed, self.round, int.from_bytes(name[:8], "little")), d)
