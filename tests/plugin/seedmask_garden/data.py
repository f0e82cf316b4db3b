"""Data source `stripes`: images of four kinds of stripes, drawn from a seed; in edge.toml `format = "stripes"`."""

from dataclasses import dataclass

import numpy as np

from edge_client.data import Dataset


@dataclass(frozen=True)
class Settings:
    """Keys of [data] beside `format`."""

    seed: int
    count: int = 64
    side: int = 28

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is 1 or more, found {self.count}")


def load(settings: Settings) -> Dataset:
    """Return `count` images [n, 1, side, side] of bytes, and their kinds 0 .. 3."""
    if settings.seed < 0:
        raise RuntimeError("no light")
    rng = np.random.default_rng(settings.seed)
    y = np.arange(settings.count) % 4
    at = np.arange(settings.side)
    waves = [at[:, None] + 0 * at, 0 * at[:, None] + at, at[:, None] + at, at[:, None] - at]
    images = np.stack(waves)[y] % 4 < 2
    noise = rng.integers(0, 60, images.shape)
    return Dataset((images * 190 + noise).astype(np.uint8)[:, None], y)
