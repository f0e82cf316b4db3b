"""`python -m sim.bundles`: write the bundles that ship with the package again. It needs torch and onnx."""

from __future__ import annotations

from pathlib import Path

from export.make import make_bundle
from export.trace import trace
from export.zoo import ZOO
from seedmask.bundle import to_bytes
from seedmask.io.files import write_atomic
from sim.bundles import BATCH, RUNTIMES, SEED, names


def exported(name: str, seed: int = SEED) -> bytes:
    """Return the file that the exporter makes now of the zoo's network `name`."""
    entry = ZOO[name]
    spec = trace(entry.factory(), name, seed, entry.input, classes=entry.classes)
    return to_bytes(make_bundle(spec, BATCH, RUNTIMES))


def main() -> None:
    """Write every bundle beside this file, and remove those of networks that no longer ship."""
    folder = Path(__file__).parent
    for path in folder.glob("*.bundle"):
        if path.stem not in names():
            path.unlink()
    for name in names():
        data = exported(name)
        write_atomic(folder / f"{name}.bundle", data)
        print(f"{name:<8}{len(data):>9,} bytes")


if __name__ == "__main__":
    main()
