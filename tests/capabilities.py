"""What a test may need of a machine, in one place: `requires("torch")`.

On a developer's machine a test whose capability is absent is skipped and says what to install. Where `CI` is set it
fails, unless the environment that runs it (`CI_ENVIRONMENT`) declares in .ci/must-run.toml that it lacks just that.
conftest.py turns every other way of skipping into a failure there, and records what ran for .ci/what-ran.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from _pytest.outcomes import Skipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
MUST_RUN = ROOT / ".ci" / "must-run.toml"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
ONNXRUNTIME_WEB = ROOT / ".venvs" / "onnxruntime-web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Debian puts Mosquitto into sbin, which is not on every user's PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])


class Lacking(Skipped):
    """A skip for want of a capability, which `requires` has allowed."""


@dataclass(frozen=True)
class Capability:
    """If it is here, and how to get it."""

    present: Callable[[], bool]
    install: str


def _packages(*names: str) -> Callable[[], bool]:
    def present() -> bool:
        try:
            return all(importlib.util.find_spec(name) is not None for name in names)
        except ModuleNotFoundError:  # not even the package that it would be a part of
            return False

    return present


def _program(*names: str) -> Callable[[], bool]:
    return lambda: any(shutil.which(name, path=_PATH) for name in names)


def _browser() -> bool:
    return _program(*BROWSERS)() and (ONNXRUNTIME_WEB / "version").exists()


CAPABILITIES: Mapping[str, Capability] = {
    "torch": Capability(_packages("torch"), "make setup"),
    "onnx": Capability(_packages("onnx"), "pip install onnx"),
    "onnxruntime": Capability(_packages("onnxruntime"), "pip install 'seedmask[onnxruntime]'"),
    "executorch": Capability(_packages("executorch", "torchao"), "make setup"),
    "ort-training": Capability(_packages("onnxruntime.training"), "an environment of its own: make mixed"),
    "hatchling": Capability(_packages("hatchling", "pip"), "pip install 'seedmask[dev]'"),
    "sim": Capability(_packages("matplotlib", "pooch", "rich", "sklearn"), "pip install 'seedmask[sim]'"),
    "mosquitto": Capability(_program("mosquitto"), "apt install mosquitto"),
    "iotcore": Capability(_packages("iotcore"), "pip install 'seedmask[broker]'"),
    "node": Capability(_program("node"), "apt install nodejs"),
    "browser": Capability(_browser, "make browser (Chromium and onnxruntime-web)"),
    "fashion-mnist": Capability(FASHION_MNIST.is_dir, "apt install dataset-fashion-mnist"),
    "openssl": Capability(_program("openssl"), "apt install openssl"),
    "proc": Capability(Path("/proc/self/status").exists, "Linux, whose /proc tells a process's memory and sockets"),
}
# Runtimes by the capabilities that they need; the reference needs none.
RUNTIMES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "onnxruntime_cuda": ("onnxruntime",),
    "torch": ("torch",),
    "executorch": ("executorch",),
    "ort_training": ("ort-training",),
}


def requires(*names: str) -> None:
    """Skip the test or the module that calls this where a capability of `names` is absent; fail if CI promises it."""
    unknown = [name for name in names if name not in CAPABILITIES]
    if unknown:
        raise ValueError(f"no capability {', '.join(unknown)}; there are {', '.join(CAPABILITIES)}")
    absent = [name for name in names if not _present(name)]
    if not absent:
        return
    told = "; ".join(f"needs {name}: {CAPABILITIES[name].install}" for name in absent)
    promised = [name for name in absent if name not in lacks()]
    if in_ci() and promised:
        pytest.fail(f"{environment()} promises {', '.join(promised)} ({MUST_RUN.relative_to(ROOT)}). {told}", False)
    raise Lacking(told, allow_module_level=True)


@cache
def _present(name: str) -> bool:
    return CAPABILITIES[name].present()


def in_ci() -> bool:
    """True where `CI` is set to anything but nothing, 0 or false."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def environment() -> str:
    """Return the name of this environment in .ci/must-run.toml."""
    return os.environ.get("CI_ENVIRONMENT", "workbench")


@cache
def lacks() -> frozenset[str]:
    """Return the capabilities that this environment declares absent. ValueError: no such environment, or capability."""
    declared: dict[str, Any] = tomllib.loads(MUST_RUN.read_text(encoding="utf-8"))
    if environment() not in declared:
        raise ValueError(f"no environment {environment()} in {MUST_RUN}; there are {', '.join(declared)}")
    found = frozenset(declared[environment()].get("lacks", ()))
    if unknown := found - CAPABILITIES.keys():
        raise ValueError(f"{MUST_RUN}: {environment()} lacks {', '.join(sorted(unknown))}, which no test can need")
    return found
