"""What the README and the docs tell people to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from capabilities import requires

from aggregator.config import RunConfig
from edge_client.config import EdgeConfig
from seedmask import cli
from seedmask.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "DECISIONS.md", *sorted((ROOT / "docs").glob("*.md"))]
# Capabilities without which a command is not there; the others are everywhere.
NEEDS = {
    "simulate": ("sim",),
    "compare": ("sim", "torch"),
    "export": ("torch", "onnx"),
    "export-model": ("torch", "onnx"),
}


def commands() -> list[str]:
    """Every line after a `$ ` in the console blocks of the pages."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            lines += [line.strip()[2:] for line in block.splitlines() if line.strip().startswith("$ ")]
    return lines


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

    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for layer in (nn.Upsample(scale_factor=2), nn.BatchNorm2d(8)):
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), layer, nn.Flatten(), nn.LazyLinear(10))
        net(torch.zeros(1, 1, 28, 28))
        with pytest.raises(UserError) as refused:
            trace(net, "net", 1, (1, 28, 28), (0, 255), 10)
        message, supported = str(refused.value).splitlines()
        assert f"\nseedmask export: {message}\n" in page
        assert f"\n{supported}\n" in page


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
            assert (page.parent / target).exists() or (ROOT / target).exists(), f"{page.name} links to {target}"


def test_no_placeholder_is_left_in_the_pages() -> None:
    for page in PAGES:
        assert "@@" not in page.read_text(encoding="utf-8"), page


def test_the_examples_in_help_are_settings_that_load(tmp_path: Path) -> None:
    from aggregator.config import EXAMPLE as RUN
    from edge_client.config import EXAMPLE as EDGE
    from seedmask.io import settings

    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / "edge.toml").write_text(EDGE)
    assert settings.load(RunConfig, tmp_path / "run.toml").rounds.devices == 4
    assert settings.load(EdgeConfig, tmp_path / "edge.toml").bundle == tmp_path / "mlp.bundle"
