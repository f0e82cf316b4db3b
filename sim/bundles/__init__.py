"""Bundles that ship with the package, so that a first simulation needs neither torch nor onnx.

The small networks of the exporter's zoo, for onnxruntime and steps of `BATCH` examples, to the byte what the exporter
makes of them: `tests/test_bundles.py` holds them to it, `make zoo` writes them again. Graphs do not depend on the seed
of the frozen weights, so that one file serves every seed.
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
    """Return the networks that ship, by their names in the zoo."""
    return _NAMES


def shipped(name: str, seed: int = SEED) -> Bundle | None:
    """Return the bundle of the zoo's network `name`, or None if it does not ship.

    Its graphs are those for onnxruntime (`RUNTIMES`), its training step takes `BATCH` examples, every parameter is
    masked. `seed`, 0 .. 2**64 - 1, makes the frozen weights: the bundle equals what the exporter makes with it. Raises
    SpecError if `seed` is out of range, BundleError if the installed file is damaged.
    """
    if name not in _NAMES:
        return None
    bundle = from_bytes((files(__name__) / f"{name}.bundle").read_bytes())
    return replace(bundle, spec=replace(bundle.spec, seed=seed))
