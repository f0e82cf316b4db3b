"""The uniforms that one device and the aggregator have in common, without sending them.  PROTOCOL 2.

Both regenerate them from what they know anyway: the model's seed, the job, the round, the device's name. The codecs
`crn` and `hmrc` draw their masks with them, which is what makes a mask cost its information only. Each (job, round,
device, number of the mask) has uniforms of its own. Stratified uniforms go together instead: those of the K devices of
a round hit each of K equal intervals once at every weight, so that the mean of the masks varies less.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seedmask.seed import uniforms16, uniforms_key

MAX_STRATA = 65535


@dataclass(frozen=True)
class Shared:
    """Names the uniforms of one mask.

    `seed` the model's, 64 bits; `index` which mask of the device's update; `stratum` (k, K): this device is the k-th
    (from 0) of K whose uniforms are stratified, None: on its own.
    """

    seed: int
    round: int
    job: str
    device: str
    index: int = 0
    stratum: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.stratum is not None:
            k, of = self.stratum
            if not 0 <= k < of <= MAX_STRATA:
                raise ValueError(f"a stratum is (k, K) with 0 <= k < K <= {MAX_STRATA}, found {self.stratum}")

    def uniforms(self, d: int) -> npt.NDArray[np.uint16]:
        """`d` uniforms, uint16 [d], each alone uniform on 0 .. 65535."""
        who = self.device if self.stratum is None else ""
        name = hashlib.sha256(f"{self.job}/{who}/{self.index}".encode("ascii")).digest()
        key = uniforms_key(self.seed, self.round, int.from_bytes(name[:8], "little"))
        if self.stratum is None:
            return uniforms16(key, d)
        k, of = self.stratum
        pairs = uniforms16(key, 2 * d).astype(np.int64)
        turn = (pairs[1::2] * of) >> 16
        inside = (k + turn) % of * 65536 + pairs[::2]
        return (inside // of).astype(np.uint16)
