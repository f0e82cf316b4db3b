"""Reading of a TOML file into a frozen dataclass; the error for an unknown key suggests the most similar one."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from seedmask.errors import UserError
from seedmask.knobs import Knob, about, knobs, tables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
KINDS: Final = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def load(kind: type[T], path: Path) -> T:
    """Read the file `path` into the settings class `kind`. Raises UserError.

    Relative paths in the file are relative to the file's folder.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    return build(kind, values, str(path), path.resolve().parent)


def build(kind: type[T], values: Mapping[str, Any], where: str, base: Path) -> T:
    """Return an instance of the settings class `kind` with `values`; nested tables become nested dataclasses.

    `where`: name of the file or table for messages; `base`: folder that relative paths are relative to. Raises
    UserError, which names the key.

    A class with a class method `from_table(values, where, base)` reads the values itself, because only it knows their
    keys. A class with a class method `completed(values)` returns the values with what is missing filled in; a
    ValueError that it raises becomes a UserError.
    """
    if (own := getattr(kind, "from_table", None)) is not None:
        return typing.cast("T", own(values, where, base))
    if (completed := getattr(kind, "completed", None)) is not None:
        try:
            values = completed(values)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    out: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            out[name] = _convert(hints[name], values[name], f"{where}: {name}", base)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: {name!r} is missing")
    try:
        return kind(**out)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str, base: Path) -> Any:
    if isinstance(hint, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if len(options) > 1 and type(value) not in options:
            raise UserError(f"{where} is {' or '.join(KINDS[option] for option in options)}, found {value!r}")
        hint = type(value) if len(options) > 1 else options[0]
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is a table, found {value!r}")
        return build(typing.cast("type[Any]", hint), value, where, base)
    if hint is Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise UserError(f"{where} is a path, found {value!r}")
        try:
            return base / Path(value).expanduser()
        except RuntimeError as error:  # ~somebody
            raise UserError(f"{where}: {error}") from None
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{where} is {KINDS.get(hint, hint)}, found {value!r}")
    return value


def literal(text: str) -> Any:
    """Return `text` read as a TOML value; if it is not one, return `text` itself."""
    try:
        values = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return values["value"] if len(values) == 1 else text


def add_options(parser: argparse.ArgumentParser, title: str, known: Iterable[Knob], preset: str = "") -> None:
    """Add a group `title` to `parser`, with an option for each setting in `known`.

    The value of an option is read as in a file, and is None if the option is not given; `build` checks it. `preset`:
    preset whose values the help shows as defaults.
    """
    group = parser.add_argument_group(title)
    for one in known:
        default = one.said(one.of_preset(preset)).strip('"')
        group.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=literal,
            metavar=one.metavar,
            help=f"{one.hint} ({default})".replace("%", "%%"),
        )


def example(kind: type[Any], values: Mapping[str, Any], hinted: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Return `values` as a TOML file of the settings class `kind`; a comment in each line gives the setting's meaning.

    `hinted`: values by table, "" for the top of the file, that are added as comments.
    """
    lines: list[str] = []
    for table, inner in {"": kind, **tables(kind)}.items():
        said = values if not table else values.get(table)
        if said is None:
            continue
        known = {one.name: one for one in knobs(inner)}
        lines += ["", f"{f'[{table}]':<31} # {about(inner)}"] if table else []
        for name, value in said.items():
            if name in known:
                lines.append(_line(known[name], value))
            elif not isinstance(value, Mapping):  # a key that another chooses; nothing is loaded to write an example
                lines.append(f"{name} = {json.dumps(value)}".ljust(31) + f" # `seedmask settings {name}`")
        lines += [_line(known[name], value, "# ") for name, value in (hinted or {}).get(table, {}).items()]
    return "".join(f"{line}\n" for line in lines)


def _line(one: Knob, value: Any, before: str = "") -> str:
    choices = f": {', '.join(one.choices)}" if one.choices else ""
    return f"{before}{one.name} = {one.said(value)}".ljust(31) + f" # {one.hint}{choices}"
