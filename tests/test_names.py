"""Names and first words: one class per name, and docstrings that begin with what a thing does."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("seedmask", "edge_client", "aggregator", "export", "sim")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# A source of data has its settings under this name, whoever wrote it (edge_client.data).
SHARED = {"Settings"}
# A noun clause keeps the reader waiting for the verb.
CLAUSE = re.compile(r"(The|What|Whether|Those|That|Where|Who|How|Which|As|Of|With|Without)\b")


def defined(path: Path) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, str]]:
    """Functions and classes of a file with their docstrings; not errors, whose docstrings make the page of codes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.endswith("Error")
        if named and (text := ast.get_docstring(node)):
            yield node, text


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in SHARED} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_docstring_says_what_it_does_from_its_first_word(path: Path) -> None:
    assert [f"{node.name}: {text.splitlines()[0]}" for node, text in defined(path) if CLAUSE.match(text)] == []
