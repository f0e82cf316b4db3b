"""Bundles that ship with the package, so that a first simulation needs neither torch nor onnx.

They hold the small networks of the exporter's zoo, for onnxruntime and batches of `BATCH` examples, byte for byte as
the exporter writes them: `tests/test_bundles.py` checks that, and `make zoo` writes them again. One file serves every
seed, because the graphs do not depend on the seed of the random weights.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import Final

from seedmask.bundle import Bundle, from_bytes

__all__ = ["BATCH", "RUNTIMES", "SEED", "names", "shipped"]

BATCH: Final = 128
RUNTIMES: Final = ("onnx",)
SEED: Final = 1
_NAMES: Final = ("mlpn", "mlp", "conv4", "conv4s", "conv4n", "lenet5")


def names() -> tuple[str, ...]:
    """Return the names, in the exporter's zoo, of the networks that ship with the package."""
    return _NAMES


def shipped(name: str, seed: int = SEED) -> Bundle | None:
    """Return the bundle of the zoo's network `name`, or None if it does not ship with the package.

    The bundle has graphs for the targets RUNTIMES, a batch of `BATCH` examples, and a mask on every parameter. `seed`,
    0 .. 2**64 - 1, is that of the random weights; the bundle equals the one that the exporter makes with this seed.
    Raises SpecError if `seed` is out of range, BundleError if the installed file is damaged.
    """
    if name not in _NAMES:
        return None
    bundle = from_bytes((files(__name__) / f"{name}.bundle").read_bytes())
    return replace(bundle, spec=replace(bundle.spec, seed=seed))
