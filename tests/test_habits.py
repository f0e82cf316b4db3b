"""What CONTRIBUTING.md asks of a commit is what its hook checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def check(message: str, folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "COMMIT_EDITMSG"
    file.write_text(message, encoding="utf-8")
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / "commit-subject", file], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "message",
    [
        "Add a page for every command\n\nReaders looked for it.\n",
        "Fix " + "x" * 68,
        "README: name the figures' command",
        "Seed the generator once\n# a comment of git's\n",
        "Merge branch 'web' into a line that is longer than seventy-two characters are",
    ],
)
def test_a_good_message_passes(message: str, tmp_path: Path) -> None:
    result = check(message, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("", "empty"),
        ("Fix " + "x" * 69, "73 characters"),
        ("Fix the gradient.", "full stop"),
        ("fix the gradient", "capital"),
        ("Fixed the gradient", "imperative"),
        ("README: adding figures", "imperative"),
        ("Fix the gradient\nbecause it was wrong", "second line"),
    ],
)
def test_a_bad_message_is_refused_with_the_reason(message: str, fault: str, tmp_path: Path) -> None:
    result = check(message, tmp_path)
    assert result.returncode == 1
    assert fault in result.stderr
