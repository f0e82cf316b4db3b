"""What the README and the docs tell people to type exists."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from capabilities import requires

from aggregator.config import RunConfig
from edge_client.config import EdgeConfig
from seedmask import cli
from seedmask.errors import UserError
from seedmask.io import settings

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
        message, supported = str(refused.value).splitlines()
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


def test_no_placeholder_is_left_in_the_pages() -> None:
    for page in PAGES:
        assert "@@" not in page.read_text(encoding="utf-8"), page


def test_the_examples_in_help_are_settings_that_load(tmp_path: Path) -> None:
    from aggregator.config import EXAMPLE as RUN
    from edge_client.config import EXAMPLE as EDGE

    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / "edge.toml").write_text(EDGE)
    assert settings.load(RunConfig, tmp_path / "run.toml").rounds.devices == 4
    assert settings.load(EdgeConfig, tmp_path / "edge.toml").bundle == tmp_path / "mlp.bundle"
