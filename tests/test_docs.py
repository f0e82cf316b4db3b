"""The documentation is complete: decisions, commands, public names, errors; `make docs` builds the site itself."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from seedmask import cli, errors

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
STATUS = re.compile(r"accepted|withdrawn|superseded by \[(\d{4})\]\((\d{4}-[a-z0-9-]+\.md)\)")


def _parts() -> ModuleType:
    found = importlib.util.spec_from_file_location("parts", DOCS / "_ext" / "parts.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


parts = _parts()


def test_the_readme_is_one_screen_and_the_glossary_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170
    assert len((DOCS / "reference" / "glossary.md").read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name[:4])
def test_a_decision_has_its_form(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    status = re.search(r"^Status: (.*)\\$", text, re.M)
    assert status is not None
    known = STATUS.fullmatch(status[1])
    assert known is not None, status[1]
    assert known[2] is None or (page.parent / known[2]).exists()
    assert re.search(r"^Date: \d{4}-\d\d-\d\d$", text, re.M)
    assert re.findall(r"^## (.*)$", text, re.M) == ["Question", "Considered", "Chosen", "Cost"]


def test_decisions_are_numbered_without_gaps_in_order_of_date_and_listed() -> None:
    assert [page.name[:4] for page in DECISIONS] == [f"{i:04}" for i in range(1, len(DECISIONS) + 1)]
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    dates = []
    for page in DECISIONS:
        title, *_ = text = page.read_text(encoding="utf-8").splitlines()
        status, date = text[2].removeprefix("Status: ").removesuffix("\\"), text[3].removeprefix("Date: ")
        assert f"| [{page.name[:4]}]({page.name}) | {title[2:]} | {status} | {date} |" in index.splitlines()
        dates.append(date)
    assert dates == sorted(dates)


def generated(folder: str) -> set[tuple[str, str]]:
    pages = sorted((DOCS / "reference" / folder).glob("*.md"))
    return {match for page in pages for match in parts.PART.findall(page.read_text(encoding="utf-8"))}


def test_every_command_has_a_page_and_a_line_in_the_index() -> None:
    pages = {name for kind, name in generated("commands") if kind == "command"}
    assert pages == set(cli.commands())
    index = (DOCS / "reference" / "commands" / "index.md").read_text(encoding="utf-8")
    assert all(f"({name}.md)" in index for name in pages)


@pytest.mark.parametrize("name", sorted(cli.commands()))
def test_a_commands_page_has_every_option_of_its_parser(name: str) -> None:
    parser = argparse.ArgumentParser()
    cli.commands()[name].add_arguments(parser)
    page = parts.command(name)
    waiting = [parser]
    while waiting:
        for action in waiting.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
            elif action.dest != "help" and action.help != argparse.SUPPRESS:
                assert all(f"`{option}" in page for option in action.option_strings)


@pytest.mark.requires("torch", "onnx", "sim")
def test_every_package_that_declares_public_names_has_its_part_in_the_api_pages() -> None:
    parts_of = generated("api")
    assert parts_of == {(kind, package) for kind in ("names", "inside") for package in parts.PACKAGES}
    text = "".join(getattr(parts, kind)(package) for kind, package in sorted(parts_of))
    for package in parts.public_packages():
        names = [name for name in package.__all__ if not name.startswith("__")]
        assert names
        places = [rf"auto\w+:: {package.__name__}\.{name}|py:\w+:: {name}" for name in names]
        assert all(re.search(rf"^\.\. (?:{place})$", text, re.M) for place in places)


def test_a_constant_is_explained_by_the_text_under_it_wherever_it_is_imported_from() -> None:
    told = parts.constant_docstring("edge_client.runtimes.contract", "NOTHING")
    assert told
    assert parts.constant_docstring("edge_client.runtimes", "NOTHING") == told
    assert parts.constant_docstring("seedmask.codec", "by_id") == []


@pytest.mark.parametrize("package", parts.PACKAGES)
def test_each_api_page_begins_with_a_sentence_and_an_example(package: str) -> None:
    text = (DOCS / "reference" / "api" / f"{package}.md").read_text(encoding="utf-8")
    assert re.match(rf"# `{package}`\n\n[A-Z][^#]*?\.[^#]*?```python\n", text)


@pytest.mark.requires("torch", "onnx")
def test_the_api_pages_name_every_public_name() -> None:
    from seedmask import codec

    text = parts.names("seedmask.codec")
    assert all(re.search(rf"^\.\. auto\w+:: seedmask\.codec\.{name}$", text, re.M) for name in codec.__all__)
    assert ".. autofunction:: seedmask.codec.by_id" in text
    assert ".. autoclass:: seedmask.codec.MaskCodec" in text


def test_every_error_code_is_the_protocols_and_says_what_to_do() -> None:
    classes = {e.code: e for e in errors.ProtocolError.__subclasses__()}
    section = (ROOT / "seedmask" / "PROTOCOL.md").read_text(encoding="utf-8").split("\n## 10 ")[1].split("\n## ")[0]
    assert set(classes) == set(re.findall(r"^\| `([a-z-]+)` \|", section, re.M))
    for code, found in classes.items():
        meaning, remedy = (found.__doc__ or "").split("\n\n", 1)
        assert meaning.endswith("."), code
        assert remedy.strip(), code
        assert f"## `{code}`" in parts.error_codes()


def test_docstrings_become_text_in_which_only_backticks_are_markup() -> None:
    lines = ["Return `a*b`, of *args and x_; |y|.", "Example:", "    run(*args)", "", "Then stop."]
    assert parts.plain_docstring(lines) == [
        r"Return `a*b`, of \*args and x\_; \|y\|.",
        "Example:",
        "",
        "::",
        "",
        "    run(*args)",
        "",
        "",
        "Then stop.",
    ]


def test_signatures_show_the_names_that_the_code_has() -> None:
    shown = "(data: TypeAliasForwardRef('Arrays') | str, keys: ~typing.Any = <factory>, base: Path = PosixPath('.'))"
    assert parts.plain_signature(shown) == "(data: Arrays | str, keys: Any = ..., base: Path = '.')"
