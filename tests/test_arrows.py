"""The architecture's arrows: who may import whom, and where the heavy and the worldly things live."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {
    "seedmask": set[str](),
    "export": {"seedmask"},
    "edge_client": {"seedmask"},
    "aggregator": {"seedmask"},
    "sim": {"seedmask", "edge_client", "aggregator", "export"},
}
# A heavy package and the places that may import it; a trailing slash is a folder.
HOMES = {
    "torch": ("export/", "edge_client/runtimes/torch.py"),
    "onnx": ("export/",),
    "onnxruntime": ("edge_client/runtimes/", "export/targets/"),
    "executorch": ("edge_client/runtimes/", "export/targets/"),
    "paho": ("seedmask/io/mqtt.py",),
}
WORLD = {"time", "socket", "os", "random"}
# cli.py is the one program in the library: it starts the others, and nothing imports it.
WORLDLY = ("seedmask/io/", "seedmask/cli.py")

FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Top-level package of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield str(node.module).split(".")[0]


def at_home(name: str, places: tuple[str, ...]) -> bool:
    return any(name.startswith(place) if place.endswith("/") else name == place for place in places)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_arrows(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    package, used = name.split("/")[0], set(imports(path))
    assert used & OURS.keys() <= OURS[package] | {package}
    for heavy, places in HOMES.items():
        assert heavy not in used or at_home(name, places), f"{heavy} lives in {', '.join(places)}"
    if package == "seedmask" and not at_home(name, WORLDLY):
        assert not used & WORLD, "the shared library touches the world in io/ only"


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == OURS.keys()


def test_nothing_imports_the_command_line() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "import seedmask.cli" not in text
        assert "from seedmask.cli" not in text
