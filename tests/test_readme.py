"""What the README and the docs tell people to type exists."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from capabilities import requires

from aggregator.config import RunConfig
from edge_client.config import EdgeConfig
from seedmask import cli
from seedmask.errors import UserError
from seedmask.io import settings
from seedmask.io.commands import as_options

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
OURS = ("seedmask", "export", "edge_client", "aggregator", "sim")
# Capabilities without which a command is not there; the others are everywhere.
NEEDS = {
    "simulate": ("sim",),
    "compare": ("sim", "torch"),
    "export": ("torch", "onnx"),
    "export-model": ("torch", "onnx"),
}


def blocks(language: str) -> list[tuple[str, str]]:
    """Every code block of one language in the pages, with the name of its page."""
    return [
        (str(page.relative_to(ROOT)), block)
        for page in PAGES
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    ]


def commands() -> list[str]:
    """Every line after a `$ ` in the console and text blocks of the pages."""
    lines = [line.strip() for _, block in blocks("console") + blocks("text") for line in block.splitlines()]
    return [line[2:] for line in lines if line.startswith("$ ")]


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("seedmask ")])
def test_every_seedmask_command_in_the_pages_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index(">")] if ">" in words else words
    known = cli.commands()
    requires(*NEEDS.get(words[0], ()))
    if "--help" in words:
        return
    cli._parser(known, {}).parse_args(words)  # exits, and so fails, on an unknown option


@pytest.mark.export
def test_refusals_of_export_are_quoted_as_they_are() -> None:
    requires("torch", "onnx")
    import torch
    from torch import nn

    from export.trace import trace

    page = (ROOT / "docs" / "how-to" / "export-a-model.md").read_text(encoding="utf-8")
    for layer in (nn.Upsample(scale_factor=2), nn.BatchNorm2d(8)):
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), layer, nn.Flatten(), nn.LazyLinear(10))
        net(torch.zeros(1, 1, 28, 28))
        with pytest.raises(UserError) as refused:
            trace(net, "net", 1, (1, 28, 28), (0, 255), 10)
        message, supported = as_options(str(refused.value)).splitlines()
        assert f"\nseedmask export: {message}\n" in page
        assert f"\n{supported}\n" in page


@pytest.mark.requires("torch", "onnx", "sim")
def test_python_in_the_pages_compiles_and_imports_names_that_exist() -> None:
    found = blocks("python")
    assert found
    for page, block in found:
        for node in ast.walk(ast.parse(block, page)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page}: {node.module} has no {alias.name}"


def marked(page: Path) -> str:
    """The Python blocks of a page that are marked to be run, one behind the other."""
    return "\n".join(re.findall(r"^<!-- run -->\n```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S))


@pytest.mark.export
@pytest.mark.sim
@pytest.mark.parametrize("page", [p for p in PAGES if marked(p)], ids=lambda page: str(page.relative_to(ROOT)))
def test_python_that_a_page_marks_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    requires("sim", "onnxruntime", *(("torch", "onnx") if "torch" in marked(page) else ()))
    done = subprocess.run(
        [sys.executable, "-"],
        input=marked(page),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^round \d+: accuracy ", done.stdout, re.M)) >= 3


def test_toml_in_the_pages_parses() -> None:
    for page, block in blocks("toml"):
        assert tomllib.loads(block), page


def test_every_make_target_in_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        m for page in PAGES for m in re.findall(r"`make ([a-z-]+)`|\$ make ([a-z-]+)", page.read_text()) for m in m if m
    }
    assert named
    assert named <= targets


def test_every_file_the_pages_link_to_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


# What pages name that a user or a build makes, by its first folder or its name.
MADE = ("out/", ".venv", "web/dist/", "state/", "onnx/")
FILE = re.compile(r"`((?:[\w.-]+/)+(?:[\w.-]+\.(?:py|md|mjs|json|toml|png|cpp|ini))?)`")


def test_every_file_of_the_repository_that_the_pages_name_exists() -> None:
    """Decisions tell of the day on which they were made, and the changelog of what went."""
    current = [page for page in PAGES if page.parent.name != "decisions" and page.name != "CHANGELOG.md"]
    named = {(page, name) for page in current for name in FILE.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 50
    absent = {
        (str(page.relative_to(ROOT)), name)
        for page, name in named
        if not name.startswith(MADE)
        and "NAME" not in name
        and not any((place / name).exists() for place in (ROOT, page.parent, *(ROOT / ours for ours in OURS)))
    }
    assert not absent


@pytest.mark.export
def test_every_option_that_the_pages_name_is_one_of_a_command() -> None:
    requires("sim", "torch", "onnx")  # or commands have no parser
    known = {"--help", "--version"}
    waiting: list[argparse.ArgumentParser] = [cli._parser(cli.commands(), {})]
    while waiting:
        for action in waiting.pop()._actions:
            known.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
    current = [page for page in PAGES if page.parent.name != "decisions" and page.name != "CHANGELOG.md"]
    named = {
        (str(page.relative_to(ROOT)), option)
        for page in current
        for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S))
        if not code.startswith(("pip ", "python ", "npm ", "make "))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)
    }
    assert len(named) > 20
    assert {found for found in named if found[1] not in known} == set()


def test_no_placeholder_is_left_in_the_pages() -> None:
    for page in PAGES:
        assert "@@" not in page.read_text(encoding="utf-8"), page


def test_the_examples_in_help_are_settings_that_load(tmp_path: Path) -> None:
    from aggregator.config import EXAMPLE as RUN
    from edge_client.config import EXAMPLE as EDGE

    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / "edge.toml").write_text(EDGE)
    assert settings.load(RunConfig, tmp_path / "run.toml").rounds.devices == 4
    edge = settings.load(EdgeConfig, tmp_path / "edge.toml")
    assert edge.bundle == tmp_path / "mlp.bundle"
    assert edge.data.keys == {"path": "mine.npz"}  # without which the example would not train
