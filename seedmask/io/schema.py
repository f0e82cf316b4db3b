"""JSON Schema of a settings file (draft 2020-12), for editors and for programs that write such files.

The schema accepts every file that `seedmask.io.settings.build` accepts. Rules about more than one key (a minimum above
its quorum) are not in the schema; only the program checks them.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Final

from seedmask.io import plugins
from seedmask.knobs import REQUIRED, Knob, about, knobs, tables, variants

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
PRESET: Final = "default"
"""Preset that a file starts from if it names none; the schema's defaults are its values."""


def schema(kind: type, title: str) -> dict[str, Any]:
    """Return the schema of the files that are read into the settings class `kind`, as JSON values."""
    return {"$schema": DIALECT, "title": title, **_table(kind)}


def _table(kind: type) -> dict[str, Any]:
    inner = tables(kind)
    fields = dataclasses.fields(kind)
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    made: dict[str, Any] = {
        "description": about(kind),
        "type": "object",
        "properties": {one.name: _value(one) for one in knobs(kind)} | {name: _table(inner[name]) for name in inner},
        "additionalProperties": False,
    }
    if required := [field.name for field in fields if (field.default, field.default_factory) == missing]:
        made["required"] = required
    key, choices = variants(kind)
    if not choices:
        return made
    # The table's other settings depend on one of its keys, or on the key's default if it is left out.
    chooser = next(one for one in knobs(kind) if one.name == key)
    made["oneOf"] = [_variant(key, name, inner, chooser.default == name) for name, inner in choices.items()]
    made.pop("additionalProperties")
    return made


def _variant(key: str, name: str, kind: type, usual: bool) -> dict[str, Any]:
    made = _table(kind)
    made["properties"] = {key: {"const": name}, **made["properties"]}
    made["required"] = [*made.get("required", []), *([] if usual else [key])]
    return made


def _value(one: Knob) -> dict[str, Any]:
    kinds = [_of(one, kind) for kind in one.kinds if kind is not type(None)]
    made = {"description": describe(one), **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})}
    if one.default not in (REQUIRED, None):
        made["default"] = plain(one, one.of_preset(PRESET))
    return made


def _of(one: Knob, kind: type) -> dict[str, Any]:
    if kind is Path:
        return {"type": "string", "minLength": 1}
    if kind is str:
        if one.choices:
            return {"enum": list(one.choices)}
        if one.words:
            return {"enum": list(one.words)}
        pattern = {"pattern": f"^{one.pattern}$"} if one.pattern else {}
        # Others may be installed where the file is read.
        return {"type": "string", **pattern, **({"examples": plugins.names(one.group)} if one.group else {})}
    if kind is bool:
        return {"type": "boolean"}
    ends = {"minimum": one.least, "maximum": one.most}
    return {
        "type": "integer" if kind is int else "number",
        **{name: value for name, value in ends.items() if not math.isinf(value)},
    }


def describe(one: Knob) -> str:
    """Return the meaning of a setting and of its choices, in one line."""
    return "; ".join([one.hint, *(f"{text}: {meaning}" for text, meaning in one.choices.items() if meaning)])


def plain(one: Knob, value: Any) -> Any:
    """Return a value as it stands in a file: the shortest number that gives the same value, a path as a text."""
    return float(one.said(value)) if isinstance(value, float) else str(value) if isinstance(value, Path) else value
