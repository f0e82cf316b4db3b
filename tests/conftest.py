"""Fixtures for several test files: a network small enough for NumPy, its bundle, and data that it can learn.

Nothing here needs torch, onnx or onnxruntime, so that a device's own environment can run the tests of its parts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
from capabilities import ROOT, Lacking, environment, in_ci, requires

from edge_client.data import Dataset
from seedmask import wire
from seedmask.bundle import Bundle
from seedmask.spec import Flatten, Linear, ModelSpec, ReLU, Tensor, scale_bits

# Background jobs of a shell ignore SIGINT, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

with contextlib.suppress(ImportError):
    from hypothesis import HealthCheck, settings
    from hypothesis.database import DirectoryBasedExampleDatabase

    # No wall clock, and the same examples every time: a test that fails here fails on every machine.
    settings.register_profile("seedmask", deadline=None, derandomize=True)
    # `make fuzz`: other examples every time, and those that failed once first of all.
    settings.register_profile(
        "fuzz",
        deadline=None,
        derandomize=False,
        database=DirectoryBasedExampleDatabase(ROOT / "out" / "fuzz" / "examples"),
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile(os.environ.get("SEEDMASK_HYPOTHESIS", "seedmask"))


class Record:
    """Outcome of every test of this session, written to out/ran for .ci/what-ran."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.not_passed: set[str] = set()

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Note tests that this session was told to leave out."""
        self.not_passed.update(item.nodeid for item in items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test as passed if its call passed, or failed as its xfail mark expects."""
        if report.when == "call" and (report.passed or hasattr(report, "wasxfail")):
            self.passed.add(report.nodeid)
        elif not report.passed:
            self.not_passed.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note modules that were skipped or failed as a whole."""
        if not report.passed:
            self.not_passed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the record to out/ran."""
        folder = ROOT / "out" / "ran"
        folder.mkdir(parents=True, exist_ok=True)
        found = {
            "environment": environment(),
            "status": int(exitstatus),
            "passed": sorted(self.passed - self.not_passed),
            "not_passed": sorted(self.not_passed),
        }
        (folder / f"{environment()}.json").write_text(json.dumps(found, indent=0))


def pytest_configure(config: pytest.Config) -> None:
    """Record which tests run, if CI is set."""
    if in_ci() and not config.option.collectonly:
        config.pluginmanager.register(Record(), "what-ran")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Carry out `@pytest.mark.requires(...)`, before any fixture is made."""
    for mark in item.iter_markers("requires"):
        requires(*mark.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skip a failure if CI is set, unless `requires` allowed it."""
    report = yield
    if in_ci() and report.skipped and not hasattr(report, "wasxfail"):
        _forbid(report, call)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Make the skip of a module a failure if CI is set, unless `requires` allowed it."""
    report = yield
    if in_ci() and report.skipped and report.call is not None:  # type: ignore[attr-defined]
        _forbid(report, report.call)  # type: ignore[attr-defined]
    return report


def _forbid(report: pytest.TestReport | pytest.CollectReport, call: pytest.CallInfo[object]) -> None:
    if call.excinfo is not None and not isinstance(call.excinfo.value, Lacking):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI, and not by tests/capabilities.py: {call.excinfo.value}"


wire.CHECK = True  # every frame that a test's own process makes is read again


@pytest.fixture(scope="session")
def tiny_spec() -> ModelSpec:
    """Return a network 16-16-4 with one bias, 324 weights in all, for inputs of 16 bytes."""
    return ModelSpec(
        "tiny",
        0x7E57,
        (1, 4, 4),
        (0, 255),
        4,
        (Flatten(), Linear("a.weight", None), ReLU(), Linear("b.weight", "b.bias")),
        (
            Tensor("a.weight", (16, 16), scale_bits(0.5)),
            Tensor("b.weight", (4, 16), scale_bits(0.5)),
            Tensor("b.bias", (4,), scale_bits(0.5)),
        ),
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny_spec: ModelSpec) -> Bundle:
    """Return a bundle of `tiny_spec` for the reference runtime, which needs no graph."""
    return Bundle(tiny_spec, 8, {})


@pytest.fixture(scope="session")
def tiny_data() -> Dataset:
    """Return 96 images of 4x4 bytes, whose class is the quadrant that is bright."""
    rng = np.random.default_rng(7)
    y = np.arange(96) % 4
    x = rng.integers(0, 90, (96, 1, 4, 4))
    for image, k in zip(x, y, strict=True):
        image[0, 2 * (k // 2) : 2 * (k // 2) + 2, 2 * (k % 2) : 2 * (k % 2) + 2] += 160
    return Dataset(x.astype(np.uint8), y.astype(np.int64))


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip installed tests/plugin; on PYTHONPATH, or on sys.path, its plug-ins are installed."""
    requires("hatchling")
    site, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(ROOT / "tests" / "plugin", source)  # a build leaves nothing in the tree
    quiet = ["-q", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", "install", *quiet, "--target", site, source], check=True)
    return site


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync in tests of the order of events, which lose no power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
