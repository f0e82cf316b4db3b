"""CI cannot skip: what is promised and absent fails, and what ran is compared with what must."""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import capabilities
import pytest

from seedmask import cli

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = "[pytest]\ntestpaths = tests\npythonpath = tests\naddopts = --import-mode=importlib --strict-markers\n"
MARKERS = "markers =\n    requires: x\n    slow: x\n"
LIST = '[workbench]\nlacks = []\nleast = { "tests/" = 1 }\n[small]\nlacks = ["no-such"]\nleast = { "tests/" = 1 }\n'
# A capability that no machine has.
ABSENT = (
    'import capabilities\ncapabilities.CAPABILITIES["no-such"] = capabilities.Capability(lambda: False, "go without")\n'
)
HEAD = f"import pytest\nfrom capabilities import requires\n{ABSENT}\n"

Suite = Callable[..., tuple[int, str, dict[str, Any] | None]]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Run files of tests under this suite's conftest.py: status, output, and the record if there is one."""
    (tmp_path / "tests").mkdir()
    (tmp_path / ".ci").mkdir()
    for name in ("conftest.py", "capabilities.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    (tmp_path / ".ci" / "must-run.toml").write_text(LIST)
    (tmp_path / "pytest.ini").write_text(SETTINGS + MARKERS)

    def run(files: Mapping[str, str], *arguments: str, ci: str = "1", environment: str = "workbench") -> Any:
        for name, body in files.items():
            (tmp_path / "tests" / f"test_{name}.py").write_text(HEAD + body)
        env = {**os.environ, "CI": ci, "CI_ENVIRONMENT": environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-ra", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )
        record = tmp_path / "out" / "ran" / f"{environment}.json"
        return done.returncode, done.stdout + done.stderr, json.loads(record.read_text()) if record.exists() else None

    return run


WAYS = {
    "marker": '@pytest.mark.requires("no-such")\ndef test_a():\n    pass\n',
    "call": 'def test_a():\n    requires("no-such")\n',
    "module": 'requires("no-such")\ndef test_a():\n    pass\n',
}
PRESENT = {"present": "def test_a():\n    pass\n"}


def test_what_is_absent_skips_at_home_and_says_what_to_install(suite: Suite) -> None:
    status, said, record = suite({**WAYS, **PRESENT}, ci="")
    assert (status, record) == (0, None), said
    assert "1 passed, 3 skipped" in said
    assert "needs no-such: go without" in said


def test_what_is_absent_fails_under_ci(suite: Suite) -> None:
    status, said, record = suite({**WAYS, **PRESENT}, "--continue-on-collection-errors")
    assert status == 1
    assert "1 failed, 1 passed, 2 errors" in said
    assert said.count("workbench promises no-such (.ci/must-run.toml). needs no-such: go without") >= 3
    assert record is not None
    assert (record["status"], record["passed"]) == (1, ["tests/test_present.py::test_a"])


def test_an_environment_may_lack_what_it_declares(suite: Suite) -> None:
    status, said, record = suite({**WAYS, **PRESENT}, environment="small")
    assert status == 0, said
    assert record is not None
    assert record["passed"] == ["tests/test_present.py::test_a"]
    assert {"tests/test_marker.py::test_a", "tests/test_call.py::test_a"} <= set(record["not_passed"])


OTHER_WAYS = {
    "call": "def test_a():\n    pytest.skip('not today')\n",
    "mark": "@pytest.mark.skipif(True, reason='not today')\ndef test_a():\n    pass\n",
    "package": "def test_a():\n    pytest.importorskip('no_such_package_today', reason='not today')\n",
    "module": "pytest.skip('not today', allow_module_level=True)\n",
    "fixture": "@pytest.fixture\ndef f():\n    pytest.skip('not today')\ndef test_a(f):\n    pass\n",
    "method": "import unittest as u\nclass T(u.TestCase):\n    def test_a(self):\n        self.skipTest('not today')\n",
}


def test_no_other_skip_passes_under_ci(suite: Suite) -> None:
    status, said, _ = suite({**OTHER_WAYS, **PRESENT}, ci="false")
    assert status == 0
    assert "1 passed, 6 skipped" in said
    # Whatever the environment lacks: nobody knows what such a test would need.
    status, said, record = suite({}, "--continue-on-collection-errors", environment="small")
    assert status == 1, said
    assert "skipped" not in said.splitlines()[-1]
    assert said.count("skipped under CI, and not by tests/capabilities.py: not today") >= 6
    assert record is not None
    assert (record["status"], record["passed"]) == (1, ["tests/test_present.py::test_a"])


def test_what_passed_what_did_not_and_what_was_left_out_is_recorded(suite: Suite) -> None:
    body = """
def test_good(): pass
def test_bad(): assert 0
@pytest.fixture
def after():
    yield
    assert 0
def test_ends_badly(after): pass
@pytest.mark.slow
def test_slow(): pass
@pytest.mark.xfail(strict=True)
def test_of_a_fault_elsewhere(): assert 0
"""
    status, _, record = suite({"it": body}, "-m", "not slow")
    assert record == {
        "environment": "workbench",
        "status": 1,
        "passed": ["tests/test_it.py::test_good", "tests/test_it.py::test_of_a_fault_elsewhere"],
        "not_passed": [f"tests/test_it.py::{name}" for name in ("test_bad", "test_ends_badly", "test_slow")],
    }
    assert status == 1


def test_an_environment_or_a_capability_that_is_not_declared_is_an_error(suite: Suite) -> None:
    status, said, _ = suite({"call": WAYS["call"]}, environment="elsewhere")
    assert status == 1
    assert "no environment elsewhere in" in said
    status, said, _ = suite({"call": 'def test_a():\n    requires("nonsense")\n'}, ci="")
    assert status == 1
    assert "no capability nonsense; there are torch, " in said


@pytest.fixture(scope="module")
def what_ran() -> ModuleType:
    """.ci/what-ran, which has no suffix."""
    path = str(ROOT / ".ci" / "what-ran")
    loader = importlib.machinery.SourceFileLoader("what_ran", path)
    spec = importlib.util.spec_from_loader("what_ran", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


MUST: Mapping[str, Any] = {
    "big": {"lacks": [], "least": {"tests/": 2, "tests/test_b.py": 1}},
    "small": {"lacks": ["x"], "least": {"tests/": 1}},
}
FILES = ["tests/test_a.py", "tests/test_b.py"]


def record(passed: str, not_passed: str = "", status: int = 0) -> dict[str, Any]:
    return {
        "status": status,
        "passed": [f"tests/test_{n}" for n in passed.split()],
        "not_passed": [f"tests/test_{n}" for n in not_passed.split()],
    }


RAN: Mapping[str, Any] = {"big": record("a.py::1 b.py::1", "a.py::2"), "small": record("a.py::2", "b.py::1 b.py")}


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        ({}, []),
        ({"small": None}, ["small: no test ran", "tests/test_a.py::2: passed nowhere; big knows it"]),
        ({"small": record("a.py::2", status=1)}, ["small: pytest ended with status 1"]),
        (
            {"big": record("a.py::1 a.py::3", "a.py::2")},
            [
                "big: 0 tests of tests/test_b.py passed, at least 1 must",
                "tests/test_b.py: no test of it passed anywhere",
                "tests/test_b.py::1: passed nowhere; small knows it",
            ],
        ),
        ({"big": record("b.py::1")}, ["big: 1 tests of tests/ passed, at least 2 must"]),
        ({"other": record("a.py::1")}, ["other: it has a record, and no table in the list"]),
        ({"small": record("a.py::2", "a.py::x[1]")}, ["tests/test_a.py::x[1]: passed nowhere; small knows it"]),
    ],
)
def test_what_must_run_and_did_not_is_named(what_ran: ModuleType, change: dict[str, Any], sentences: list[str]) -> None:
    records = {name: found for name, found in {**RAN, **change}.items() if found is not None}
    assert list(what_ran.missing(MUST, records, FILES)) == sentences


def test_the_comparison_ends_with_1_where_something_is_missing(tmp_path: Path) -> None:
    def compare() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, ROOT / ".ci" / "what-ran"),
                *("--records", tmp_path, "--must", tmp_path / "must.toml", "--tests", tmp_path),
            ],
            capture_output=True,
            text=True,
        )

    (tmp_path / "must.toml").write_text('[big]\nleast = { "tests/" = 1 }\n')
    (tmp_path / "test_a.py").write_text("")
    done = compare()
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "big: no test ran")
    (tmp_path / "big.json").write_text(json.dumps(record("a.py::1")))
    done = compare()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all that must run ran: 1 environments, 1 files")


def test_every_environment_that_ci_runs_is_on_the_list() -> None:
    declared = capabilities.tomllib.loads((ROOT / ".ci" / "must-run.toml").read_text())
    pythons = re.search(r"for version in ([\d. ]+);", (ROOT / ".ci" / "pythons").read_text())
    assert pythons is not None
    halves = re.findall(r"CI_ENVIRONMENT=(\S+)", (ROOT / "Makefile").read_text())
    assert len(halves) == 2
    others = {f"python{each}" for each in pythons[1].split()}
    assert declared.keys() == {*halves, "ort-training", "sdist", *others}
    for table in declared.values():
        assert set(table["lacks"]) <= capabilities.CAPABILITIES.keys()
        assert min(table["least"].values()) > 0


@pytest.mark.parametrize("script", ["pythons", "ort-training"])
@pytest.mark.parametrize(("ci", "status"), [("1", 1), ("", 0)])
def test_a_python_that_is_not_here_is_an_error_under_ci(tmp_path: Path, script: str, ci: str, status: int) -> None:
    (tmp_path / ".ci").mkdir()
    for name in (script, "lacking"):
        shutil.copy(ROOT / ".ci" / name, tmp_path / ".ci")
    (tmp_path / ".ci" / "find-python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / ".ci" / "find-python").chmod(0o755)
    done = subprocess.run(
        [tmp_path / ".ci" / script], cwd=tmp_path, env={**os.environ, "CI": ci}, capture_output=True, text=True
    )
    assert done.returncode == status
    assert "not tried" in done.stdout + done.stderr


def called() -> list[tuple[str, str, list[str]]]:
    """Each `seedmask COMMAND ...` of .ci and the Makefile: file, command, option names."""
    files = [ROOT / "Makefile", *sorted((ROOT / ".ci").iterdir())]
    found = []
    for path in files:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for command, rest in re.findall(r"^\S*bin/seedmask\"? ([a-z][\w-]*)(.*)$", text.replace("\t", ""), re.M):
            found.append((path.name, command, re.findall(r"(?<=\s)--[a-z][\w-]*", rest)))
    return found


def test_scripts_call_seedmask_with_options_that_exist() -> None:
    calls = called()
    assert {(name, command) for name, command, _ in calls} >= {
        ("Makefile", "simulate"),
        ("ort-training", "simulate"),
        ("ort-training", "export"),
    }
    for name, command, options in calls:
        parser = argparse.ArgumentParser()
        cli.commands()[command].add_arguments(parser)
        unknown = set(options) - parser._option_string_actions.keys()
        assert not unknown, f"{name}: seedmask {command} has no {', '.join(unknown)}"
