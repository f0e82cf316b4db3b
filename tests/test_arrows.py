"""The architecture's arrows: who may import whom, and where the heavy and the worldly things live."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Collection, Iterable, Iterator
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
    "torch": ("export/", "edge_client/runtimes/torch.py", "sim/compare/dense.py"),
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


def modules(root: Path, packages: Iterable[str]) -> dict[str, Path]:
    """Every file of `packages` by the name it is imported by."""
    paths = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def needs(path: Path, known: Collection[str]) -> set[str]:
    """The modules of `known` that a file imports: on top, in a function, or for its types alone."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from a import b` needs a.b where that is a file; what else is in a is of a itself.
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else str(node.module) for name in whole}
    return found & set(known)


def circles(root: Path, packages: Iterable[str]) -> list[list[str]]:
    """Files that import each other, directly or by way of others: for each such knot its shortest circle, in order."""
    known = modules(root, packages)
    graph = {name: sorted(needs(path, known.keys()) - {name}) for name, path in known.items()}
    found: list[list[str]] = []
    told = set[str]()
    for name in graph:
        circle = _way_back(graph, name)
        if circle and not told & set(circle):
            told |= set(circle)
            found.append([known[module].relative_to(root).as_posix() for module in circle])
    return found


def _way_back(graph: dict[str, list[str]], start: str) -> list[str]:
    """The shortest way from `start` to itself, both ends named; empty if there is none."""
    before: dict[str, str] = {}
    queue = deque([start])
    while queue:
        at = queue.popleft()
        for other in graph[at]:
            if other == start:
                way = [start]
                while at != start:
                    way.append(at)
                    at = before[at]
                return [start, *way[:0:-1], start]
            if other not in before:
                before[other] = at
                queue.append(other)
    return []


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


@pytest.mark.parametrize("package", OURS)
def test_no_file_needs_itself(package: str) -> None:
    found = circles(ROOT, [package])
    assert not found, "imports in a circle:\n" + "\n".join(" -> ".join(circle) for circle in found)


@pytest.mark.parametrize(
    "back",
    [
        "from room.first import start",
        "import room.first",
        "from room import first",
        "def late():\n    from room.first import start",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from room.first import Start",
    ],
)
def test_a_circle_is_found_however_it_is_closed(tmp_path: Path, back: str) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").touch()
    (room / "first.py").write_text("from room.second import go")
    (room / "second.py").write_text("from room import third")
    (room / "third.py").write_text("")
    assert circles(tmp_path, ["room"]) == []
    (room / "third.py").write_text(back)
    assert circles(tmp_path, ["room"]) == [["room/first.py", "room/second.py", "room/third.py", "room/first.py"]]


def test_a_package_that_offers_what_its_files_hold_is_no_circle_until_one_asks_back(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text("from room.first import start")
    (room / "first.py").write_text("from room import second")
    (room / "second.py").write_text("")
    assert circles(tmp_path, ["room"]) == []
    (room / "second.py").write_text("from room import start")
    assert circles(tmp_path, ["room"]) == [["room/__init__.py", "room/first.py", "room/second.py", "room/__init__.py"]]
