"""One version, stated once, and typed packages; `make release-check` tries what is built."""

from __future__ import annotations

import json
import re
from pathlib import Path

import seedmask

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_version_is_stated_in_one_place() -> None:
    assert 'dynamic = ["version"]' in PYPROJECT
    assert '[tool.hatch.version]\npath = "seedmask/__init__.py"' in PYPROJECT
    assert not re.search(r"^version = ", PYPROJECT, re.M)


def test_the_web_package_has_the_same_version() -> None:
    package = json.loads((ROOT / "web" / "package.json").read_text(encoding="utf-8"))
    assert (package["name"], package["version"]) == ("seedmask", seedmask.__version__)


def test_every_package_that_is_installed_is_marked_as_typed() -> None:
    packages = re.search(r"targets\.wheel\]\npackages = \[(.*)\]", PYPROJECT)
    assert packages is not None
    names = re.findall(r'"(\w+)"', packages[1])
    assert len(names) == 5
    for name in names:
        assert (ROOT / name / "py.typed").exists(), name
