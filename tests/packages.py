"""Packages of others, as pip leaves them behind: for tests of what plug-ins may offer."""

from __future__ import annotations

from pathlib import Path

import pytest


def install(patch: pytest.MonkeyPatch, site: Path, name: str, entry_points: str, **modules: str) -> None:
    """Put a package into folder `site` and that on the path; `modules`: the source of each, by its name."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source)
    patch.syspath_prepend(str(site))
