"""Sphinx extension: puts the parts of `parts.py` into pages, and makes docstrings and signatures readable.

Warns, and so fails the build, if a part is unknown, a command has no page, or a public name is on none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from parts import PART, PARTS, constant_docstring, plain_docstring, plain_signature, public_packages
from sphinx.ext.autodoc.mock import mock
from sphinx.util import logging

from seedmask import cli

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

log = logging.getLogger(__name__)


def _expand(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace each part of a page that is about to be read."""

    def part(match: re.Match[str]) -> str:
        kind, argument = match[1], match[2]
        if kind not in PARTS or (kind == "command" and argument not in cli.commands()):
            log.warning("%s: no generated part %r", docname, f"{kind} {argument}".strip())
            return ""
        with mock(app.config.autodoc_mock_imports):
            return PARTS[kind](argument)

    source[0] = PART.sub(part, source[0])


def _docstring(app: Sphinx, what: str, name: str, member: object, options: object, lines: list[str]) -> None:
    """Rewrite one docstring in place; a constant gets the text under it, not the docstring of its type."""
    package, _, constant = name.rpartition(".")
    lines[:] = plain_docstring(constant_docstring(package, constant) if what == "data" else lines)


def _signature(
    app: Sphinx, what: str, name: str, member: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Return the signature and what is returned, as people write them."""

    def plain(text: str | None) -> str | None:
        return None if text is None else plain_signature(text)

    return plain(signature), plain(returned)


def _check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each command and each public name that has no page."""
    for name in cli.commands():
        if f"reference/commands/{name}" not in env.found_docs:
            log.warning("command %r has no page: add docs/reference/commands/%s.md", name, name)
    known = env.domains["py"].data["objects"]
    with mock(app.config.autodoc_mock_imports):
        for package in public_packages():
            for name in package.__all__:
                if not name.startswith("__") and f"{package.__name__}.{name}" not in known:
                    log.warning("%s.%s is public and on no page of docs/reference/api", package.__name__, name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("source-read", _expand)
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-process-signature", _signature)
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": False, "version": "1"}
