"""Command `seedmask settings`: explanations of every setting, generated from its declaration.

Programs announce their settings files by entry points of the group `seedmask.settings`, each with its settings class:
`run` for run.toml, `edge` for edge.toml.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from seedmask.errors import UserError
from seedmask.io import plugins, schema
from seedmask.io.commands import Command
from seedmask.knobs import REQUIRED, Knob, about, knobs, tables, variants

GROUP: Final = "seedmask.settings"
BEGIN: Final = "default"
"""The preset that a file begins with unless it names another: tables show its values."""


@dataclass(frozen=True)
class Place:
    """Table of a settings file.

    `file`: name of the entry point; `table`: name of the table, "" for the top of the file; `kind`: settings class;
    `choice`: line of the table, such as `format = "npz"`, with which it has the keys of `kind`, "" if it always has.
    """

    file: str
    table: str
    kind: type
    choice: str = ""

    @property
    def title(self) -> str:
        """Return the table as a file names it, with the line that chooses its keys: `[data] with format = "npz"`."""
        return f"[{self.table}]" + (f" with {self.choice}" if self.choice else "")

    def __str__(self) -> str:
        return f"{self.file}.toml" + (f" {self.title}" if self.table else "")


def files() -> dict[str, type]:
    """Return the settings classes of this installation by file name, "run" and "edge" first."""
    entries = importlib.metadata.entry_points(group=GROUP)
    order = {"run": 0, "edge": 1}
    return {entry.name: entry.load() for entry in sorted(entries, key=lambda one: (order.get(one.name, 2), one.name))}


def places(file: str, kind: type) -> list[Place]:
    """Return the tables of one file, its top first; after a table come its variants, chosen by one of its keys."""
    found = []
    for table, inner in {"": kind, **tables(kind)}.items():
        found.append(Place(file, table, inner))
        key, choices = variants(inner)
        found += [Place(file, table, chosen, f'{key} = "{name}"') for name, chosen in choices.items()]
    return found


def everything() -> Iterator[tuple[Place, Knob]]:
    """Yield every setting of every file, with its table."""
    for file, kind in files().items():
        for place in places(file, kind):
            yield from ((place, one) for one in knobs(place.kind))


def presets() -> dict[str, str]:
    """Return the presets, the named sets of settings from which a run.toml may start, each with its meaning."""
    for _, one in everything():
        if one.name == "preset":
            return dict(one.choices)
    return {}


def as_dict(place: Place, one: Knob) -> dict[str, Any]:
    """Return the declaration of a setting as JSON values, an entry of `seedmask settings --json`."""
    needed = one.default is REQUIRED
    number = {"least": one.least, "most": one.most} if one.least > -float("inf") else {}
    return {
        "file": f"{place.file}.toml",
        "table": place.table,
        "with": place.choice,
        "name": one.name,
        "type": " or ".join(_TYPES.get(kind.__name__, "path") for kind in one.kinds if kind is not type(None)),
        "required": needed,
        "default": None if needed else schema.plain(one, one.default),
        **number,
        "unit": one.unit,
        "choices": dict(one.choices),
        "presets": {name: schema.plain(one, value) for name, value in one.presets.items()},
        "option": one.wire,
        "scale": one.scale if one.wire else 1,
        "meaning": one.meaning,
    }


_TYPES: Final = {"int": "integer", "float": "number", "str": "text", "bool": "true or false"}


def _default(one: Knob, preset: str = "") -> str:
    value = one.of_preset(preset)
    return "must be given" if value is REQUIRED else one.said(value)


def listing() -> str:
    """Return a table of every setting, for a terminal."""
    lines = []
    for file, kind in files().items():
        lines += [f"{file}.toml: {about(kind)}"]
        for place in places(file, kind):
            lines += ["", f"{place.title}: {about(place.kind)}"] if place.table else []
            lines += [_line(one) for one in knobs(place.kind)]
        lines += [""]
    return "\n".join([*lines, *_compared(), "", "seedmask settings NAME says more of one."])


def _line(one: Knob) -> str:
    return f"  {one.name:<17} {_default(one, BEGIN):<14} {one.range:<42} {one.meaning}"


def _compared() -> list[str]:
    """Return a table of the settings in which presets differ, as lines."""
    names = presets()
    differing = [(place, one) for place, one in everything() if one.presets]
    rows = [["preset", *names]]
    rows += [[f"[{place.table}] {one.name}", *(_default(one, name) for name in names)] for place, one in differing]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    meanings = [f"preset {name}: {meaning}" for name, meaning in names.items()]
    return meanings + ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def explanation(name: str) -> str:
    """Return a text that explains the setting `name`, once for each table that has it.

    Raises UserError, which suggests similar names, if there is no such setting.
    """
    found = [(place, one) for place, one in everything() if one.name == name]
    if not found:
        known = sorted({one.name for _, one in everything()})
        table = name.strip("[]")
        if inside := list(dict.fromkeys(one.name for place, one in everything() if place.table == table != "")):
            raise UserError(f"[{table}] is a table; its settings: {', '.join(inside)}")
        near = difflib.get_close_matches(name, known, 3)
        raise UserError(f"no setting {name!r}; " + (f"did you mean {' or '.join(near)}?" if near else ", ".join(known)))
    return "\n\n".join("\n".join(_explained(place, one)) for place, one in found)


def _explained(place: Place, one: Knob) -> list[str]:
    lines = [f"{one.name}, {place}: {one.meaning}", f"  possible  {one.range}"]
    lines += [f"            {text}: {meaning}" for text, meaning in one.choices.items() if meaning]
    lines += [f"  here      {', '.join(plugins.names(one.group))}"] if one.group else []
    lines += [f"  default   {_default(one, BEGIN)}"]
    lines += [f"  preset    {name}: {_default(one, name)}" for name in presets() if one.presets and name != BEGIN]
    if one.wire:
        scale = f", in units of 1/{one.scale:,}" if one.scale > 1 else ""
        numbered = ", ".join(f"{one.number(text)} {text}" for text in one.choices)
        lines += [f"  travels   as option {one.wire}{scale}" + (f": {numbered}" if numbered else "")]
        lines += [f"            left out of an announcement: {_default(one)}"] if BEGIN in one.presets else []
    return lines


def markdown() -> str:
    """Return the page of settings in Markdown: each file and its tables, then the presets side by side."""
    lines = ["# Settings", ""]
    for file, kind in files().items():
        lines += [f"## `{file}.toml`", "", _sentence(about(kind)), ""]
        for place in places(file, kind):
            lines += [f"### `{place.title}`", "", _sentence(about(place.kind)), ""] if place.table else []
            lines += _rows(["key", "default", "possible", "meaning"], map(_cells, knobs(place.kind)))
    names = presets()
    differing = [(place, one) for place, one in everything() if one.presets]
    rows = [
        [f"`[{place.table}] {one.name}`", *(_code(_default(one, name)) for name in names)] for place, one in differing
    ]
    lines += ["## Presets", "", *(f"- `{name}`: {meaning}." for name, meaning in names.items()), ""]
    return "\n".join([*lines, *_rows(["key", *names], rows)])


def _cells(one: Knob) -> list[str]:
    scale = f", in units of 1/{one.scale:,}" if one.scale > 1 else ""
    texts = "".join(f"; {text}: {meaning}" for text, meaning in one.choices.items() if meaning)
    travels = f" Option {one.wire} on the wire{scale}." if one.wire else ""
    return [f"`{one.name}`", _code(_default(one, BEGIN)), one.range, f"{_sentence(one.meaning + texts)}{travels}"]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _code(text: str) -> str:
    return text if text in ("must be given", "none") else f"`{text}`"


def _rows(head: list[str], rows: Any) -> list[str]:
    table = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table), ""]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "    seedmask settings                        every setting, and the presets side by side\n"
        "    seedmask settings kappa                  one setting: range, default, presets, meaning\n"
        "    seedmask settings --schema > run.json    for an editor that checks run.toml while it is written\n"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the setting to explain")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--schema", nargs="?", const="run", metavar="FILE", help="JSON Schema of run.toml, or of FILE: run, edge"
    )
    how.add_argument("--json", action="store_true", help="everything as JSON")
    how.add_argument("--markdown", action="store_true", help="everything as a page in Markdown")


def _run(options: argparse.Namespace) -> int:
    if options.schema is not None:
        known = files()
        if options.schema not in known:
            raise UserError(f"there is no {options.schema}.toml; --schema takes {', '.join(known)}")
        kind = known[options.schema]
        print(json.dumps(schema.schema(kind, f"{options.schema}.toml of Seedmask"), indent=1))
    elif options.json:
        wanted = [as_dict(place, one) for place, one in everything() if options.name in (None, one.name)]
        print(json.dumps(wanted, indent=1))
    elif options.markdown:
        print(markdown())
    else:
        print(listing() if options.name is None else explanation(options.name))
    return 0


COMMAND = Command("settings", "explain every setting, or print a schema of the files", (), "", _arguments, _run)
