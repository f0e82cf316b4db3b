"""Parts of the documentation's pages that are made from the code, as text; no Sphinx in here.

A page says `<!-- generated: command export -->` where the part belongs; a code host shows nothing there. Parts are

    command NAME    usage, options and examples of a sub-command, from its own parser
    names PACKAGE   every name of the package's `__all__`, from its docstring
    inside PACKAGE  a section for each package in it that has an `__all__`: its docstring, and its names
    errors          a section for each error code, from `seedmask.errors`
    settings        what `seedmask settings --markdown` prints, without its title
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import itertools
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType

from seedmask import cli, errors

PACKAGES = ("seedmask", "export", "edge_client", "aggregator", "sim")
PART = re.compile(r"^<!-- generated: (\w+) ?([\w.-]*) -->$", re.M)


def command(name: str) -> str:
    """Return Markdown for one sub-command and its actions. KeyError if there is no such command."""
    found = cli.commands()[name]
    parser = argparse.ArgumentParser(prog=f"seedmask {name}", description=found.summary)
    found.add_arguments(parser)
    return "\n".join(_parser(parser, level=2))


def _parser(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    usage = argparse.HelpFormatter(prog=parser.prog, width=84)
    usage.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    yield f"```text\n{usage.format_help().strip()}\n```\n"
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        listed = [a for a in shown if not isinstance(a, argparse._SubParsersAction | argparse._HelpAction)]
        if listed:
            title = (group.title or "options").replace("positional arguments", "arguments")
            yield f"{'#' * level} {title[:1].upper()}{title[1:]}\n"
        for action in listed:
            yield f"{_spelling(parser, action)}\n: {_plain(usage._expand_help(action) if action.help else '')}\n"
    if parser.epilog:
        yield f"```text\n{inspect.cleandoc(parser.epilog)}\n```\n"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, sub in action.choices.items():
                yield f"{'#' * level} `{sub.prog}`\n\n{_plain(summaries.get(word, ''))}\n"
                yield from _parser(sub, level + 1)


def _spelling(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    value = argparse.HelpFormatter(prog=parser.prog)._format_args(
        action, str(action.metavar or action.dest).upper() if action.option_strings else str(action.dest)
    )
    if action.choices is not None and action.metavar is None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(f"`{option} {value}`" if value else f"`{option}`" for option in action.option_strings)


def _plain(text: str) -> str:
    """Escape what Markdown would read as markup; code in backticks stays code."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(p if p.startswith("`") else re.sub(r"([\\`*_{}\[\]<>|$~])", r"\\\1", p) for p in pieces)


def names(package: str, head: str = "module") -> str:
    """Return reStructuredText in Markdown for every public name of a package; `head`: the directive that opens it."""
    module = importlib.import_module(package)
    members = [(name, getattr(module, name)) for name in getattr(module, "__all__", ())]
    lines = [f".. {head}:: {package}", f"   :{'no-members' if head == 'automodule' else 'no-index-entry'}:", ""]
    for name, member in members:
        if name.startswith("__"):
            continue
        kind = "data"
        if inspect.isclass(member):
            kind = "class"
        elif inspect.isroutine(member):
            kind = "function"
        elif inspect.ismodule(member):
            kind = "module"
        if inner := _inner_home(package, name, member):  # described once, where it is at home
            lines += [f".. py:{kind}:: {name}", f"   :module: {package}", "", f"   The same as :py:obj:`{inner}`.", ""]
            continue
        lines.append(f".. auto{kind}:: {package}.{name}")
        if kind == "data" and not isinstance(member, int | float):
            lines.append("   :no-value:")  # a value may show paths of the machine that builds the site
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```\n"


def _inner_home(package: str, name: str, member: object) -> str:
    """Return the full name of `member` in a package inside `package` that offers it as well, "" where none does."""
    for module in public_packages():
        if module.__name__.startswith(f"{package}.") and name in module.__all__ and getattr(module, name) is member:
            return f"{module.__name__}.{name}"
    return ""


def inside(package: str) -> str:
    """Return a section in Markdown for each package inside `package` that declares `__all__`."""
    found = [module.__name__ for module in public_packages() if module.__name__.startswith(f"{package}.")]
    return "\n".join(f"## `{name}`\n\n{names(name, 'automodule')}" for name in found)


def error_codes(_: str = "") -> str:
    """Return Markdown with a section for every error code: its meaning, and what to do."""
    lines = []
    for found in vars(errors).values():
        if inspect.isclass(found) and issubclass(found, errors.ProtocolError) and found is not errors.ProtocolError:
            lines.append(f"## `{found.code}`\n\n{inspect.cleandoc(found.__doc__ or '')}\n")
    return "\n".join(lines)


def settings(_: str = "") -> str:
    """Return what `seedmask settings --markdown` prints, without its title: the page has one."""
    found = cli.commands()["settings"]
    parser = argparse.ArgumentParser()
    found.add_arguments(parser)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        found.run(parser.parse_args(["--markdown"]))
    return re.sub(r"\A# .*\n", "", printed.getvalue())


PARTS: dict[str, Callable[[str], str]] = {
    "command": command,
    "names": names,
    "inside": inside,
    "errors": error_codes,
    "settings": settings,
}


def public_packages() -> Iterator[ModuleType]:
    """Yield every package of ours, and every package inside one, that declares `__all__`."""
    for root in PACKAGES:
        package = importlib.import_module(root)
        for found in (package, *_inside(package)):
            if hasattr(found, "__all__"):
                yield found


def _inside(package: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=lambda _: None):
        if info.ispkg:
            yield importlib.import_module(info.name)


def constant_docstring(package: str, name: str) -> list[str]:
    """Return the lines of the text that follows a constant where it is assigned, [] if there is none.

    The constant is `package.name`, assigned there or in a module of ours that it is imported from.
    """
    tree = ast.parse(inspect.getsource(importlib.import_module(package)))
    for node, after in itertools.pairwise([*tree.body, ast.Pass()]):
        if isinstance(node, ast.ImportFrom) and node.module and name in (alias.name for alias in node.names):
            return constant_docstring(node.module, name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            text = after.value if isinstance(after, ast.Expr) else None
            found = text.value if isinstance(text, ast.Constant) else ""
            return inspect.cleandoc(found).splitlines() if isinstance(found, str) else []
    return []


def plain_docstring(lines: list[str]) -> list[str]:
    """Return a docstring as reStructuredText.

    Ours are plain text with code in single backticks; indented blocks are examples. Stars, bars and final underscores
    outside of backticks are not markup.
    """
    out: list[str] = []
    inside = False
    for line in lines:
        example = line.startswith("    ") or (inside and not line.strip())
        if example and not inside:
            out += ["", "::", ""]
        elif inside and not example:
            out.append("")
        inside = example
        out.append(line if example else _escape(line))
    return out


def plain_signature(text: str) -> str:
    """Return a signature without what only Sphinx and dataclasses put there.

    `TypeAliasForwardRef('Arrays')` becomes `Arrays`, `=<factory>` is `= ...`, a path is its text.
    """
    text = re.sub(r"TypeAliasForwardRef\('([\w.]+)'\)", r"\1", text)
    text = re.sub(r"(?:Posix|Windows)Path\(('[^']*')\)", r"\1", text)
    return text.replace("<factory>", "...").replace("~typing.", "")


def _escape(line: str) -> str:
    bullet = re.match(r"\s*[*-] ", line)
    start = bullet.end() if bullet else 0
    pieces = re.split(r"(`[^`]*`)", line[start:])
    return line[:start] + "".join(
        piece if piece.startswith("`") else re.sub(r"([*|]|_(?=\W|$))", r"\\\1", piece) for piece in pieces
    )
