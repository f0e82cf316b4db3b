"""The JavaScript client as a package: version, modules, lock file. What it computes: test_vectors and test_browser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import seedmask

WEB = Path(__file__).resolve().parent.parent / "web"


def test_both_clients_have_one_version() -> None:
    for name in ("package.json", "package-lock.json"):
        assert json.loads((WEB / name).read_text(encoding="utf-8"))["version"] == seedmask.__version__


def test_the_lock_file_names_digests_and_no_registry() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert packages
    for name, entry in packages.items():
        assert entry["integrity"].startswith("sha512-"), name
        assert "resolved" not in entry, name


@pytest.mark.requires("node")
def test_the_modules_keep_their_promises() -> None:
    command = ["node", "--test", "test/modules.test.mjs"]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
