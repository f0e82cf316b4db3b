"""Settings that are declared once: a dataclass field that carries its range, unit, number on the wire and meaning.

    @dataclass(frozen=True)
    class Training:
        kappa: float = knob(5.0, "bits per byte", least=0.001, most=1000, scale=1000, wire=12)

        def __post_init__(self) -> None:
            settle(self)

Checks, options on the wire, the command line's options, the JSON schema and the page of settings all follow from such a
field. A number with a fraction lies on a grid, the integers over `scale`: people write 0.1, the wire carries 100000 of
a million, and both are the same value, so that two machines which must agree never compare rounded floats.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, TypeVar

T = TypeVar("T")
_KEY: Final = "knob"
REQUIRED: Final = object()
"""Stands for the default of a knob that has none and must be given."""


@dataclass(frozen=True)
class Knob:
    """One setting: all there is to say of it.

    `meaning`: one line. `unit` of a number, `least` .. `most` its range, `zero` what 0 stands for if that is special;
    `scale`: a float is an integer over it. `choices`: the texts that are possible, each with its meaning, numbered from
    0 or by `numbers`; `unnamed`: the wire may carry other numbers up to this one, whose text is "#" and the number.
    `words`: texts that may stand in place of a number. `pattern`: of a free text, for the schema; whoever takes the
    text checks it. `group`: entry point group of which the text is a name. `wire`: id of the option that carries it, 0:
    it does not travel. `presets`: its value in named sets of settings, where that is not `default`. `name`, `kinds`
    (types it may have) and `default` (REQUIRED if it has none) are those of the field.
    """

    meaning: str = ""
    unit: str = ""
    least: float = -math.inf
    most: float = math.inf
    zero: str = ""
    scale: int = 1
    choices: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, int] | None = None
    unnamed: int = -1
    words: tuple[str, ...] = ()
    pattern: str = ""
    group: str = ""
    wire: int = 0
    presets: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    kinds: tuple[type, ...] = ()
    default: Any = REQUIRED

    def settled(self, value: Any) -> Any:
        """Return `value` on the knob's grid. Raises ValueError: what was found, what was possible."""
        if value is None and types.NoneType in self.kinds:
            return None
        if isinstance(value, str) and str in self.kinds:
            return self._text(value)
        if bool in self.kinds and not isinstance(value, bool):
            raise ValueError(f"{self.name} is true or false, found {value!r}")
        if str in self.kinds and not {int, float} & set(self.kinds):
            raise ValueError(f"{self.name} is {self.range}, found {value!r}")
        if bool in self.kinds or not {int, float} & set(self.kinds):
            return value
        fits = isinstance(value, float | int) and not isinstance(value, bool)
        if not fits or not (float in self.kinds or isinstance(value, int)) or not self.least <= value <= self.most:
            raise ValueError(f"{self.name} is {self.range}, found {value!r}")
        return round(value * self.scale) / self.scale if float in self.kinds else int(value)

    def _text(self, value: str) -> str:
        if self.choices and value not in self.choices and not self._has_number(value):
            raise ValueError(f"{self.name} {value!r} is unknown; there are {', '.join(self.choices)}")
        if self.words and value not in self.words:
            raise ValueError(f"{self.name} is {self.range}, found {value!r}")
        return value

    def _has_number(self, value: str) -> bool:
        number = int(value[1:]) if value[:1] == "#" and value[1:].isdecimal() else -1
        return 0 <= number <= self.unnamed and self.value(number) == value

    def number(self, value: Any) -> int:
        """Return the integer that carries a settled `value` on the wire."""
        if self.choices:
            return self._numbered[value] if value in self._numbered else int(value[1:])
        number: int = round(value * self.scale)
        return number

    def value(self, number: int) -> Any:
        """Return the settled value that `number`, within `span`, stands for."""
        if self.choices:
            return next((text for text, n in self._numbered.items() if n == number), f"#{number}")
        if bool in self.kinds:
            return bool(number)
        return number / self.scale if float in self.kinds else number

    @property
    def span(self) -> tuple[int, int]:
        """Least and largest integer on the wire."""
        if self.choices:
            return 0, max(self.unnamed, *self._numbered.values())
        if bool in self.kinds:
            return 0, 1
        return round(self.least * self.scale), round(self.most * self.scale)

    @property
    def _numbered(self) -> Mapping[str, int]:
        return self.numbers or {text: number for number, text in enumerate(self.choices)}

    @property
    def range(self) -> str:
        """Possible values, in words."""
        if self.choices:
            return ", ".join(self.choices)
        if bool in self.kinds:
            return "true, false"
        if not {int, float} & set(self.kinds):
            return "a path" if str not in self.kinds else "a text"
        if math.isinf(self.least):
            return "a number" if float in self.kinds else "an integer"
        zero = f" ({self.zero})" if self.zero else ""
        unit = f" {self.unit}" if self.unit else ""
        words = "".join(f"{json.dumps(word)} or " for word in self.words)
        return f"{words}{_decimal(self.least)}{zero} .. {_decimal(self.most)}{unit}"

    @property
    def hint(self) -> str:
        """Its meaning with its unit, and what 0 stands for."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.meaning}{unit}" + (f"; 0: {self.zero}" if self.zero else "")

    @property
    def metavar(self) -> str:
        """Stand for a value in the usage line of a command."""
        if self.choices:
            return "|".join(self.choices)
        if bool in self.kinds:
            return "true|false"
        number = "X" if float in self.kinds else "N" if int in self.kinds else "TEXT"
        return "|".join((number, *self.words))

    def said(self, value: Any) -> str:
        """Write `value` as a file would say it: the shortest number that means the same, texts in quotes."""
        if value is None:
            return "none"
        if isinstance(value, bool) or not isinstance(value, float):
            return json.dumps(value if isinstance(value, bool | int) else str(value))
        number = round(value * self.scale)
        texts = (f"{value:.{digits}g}" for digits in range(1, 18))
        return _decimal(float(next(text for text in texts if round(float(text) * self.scale) == number)))

    def of_preset(self, preset: str) -> Any:
        """Return its value in the named set of settings `preset`."""
        return self.presets.get(preset, self.default)


def knob(
    default: T,
    meaning: str,
    *,
    unit: str = "",
    least: float = -math.inf,
    most: float = math.inf,
    zero: str = "",
    scale: int = 1,
    choices: Mapping[str, str] | None = None,
    numbers: Mapping[str, int] | None = None,
    unnamed: int = -1,
    words: tuple[str, ...] = (),
    pattern: str = "",
    group: str = "",
    wire: int = 0,
    presets: Mapping[str, T] | None = None,
) -> T:
    """Declare a field of a settings class that has a `default`; everything else is as in Knob.

    To a type checker this is the default, so that the class is typed as if nothing were said beside it.
    """
    known = Knob(
        *(meaning, unit, least, most, zero, scale, choices or {}, numbers, unnamed, words, pattern, group, wire),
        presets=presets or {},
    )
    declared: T = field(default=default, metadata={_KEY: known})
    return declared


def needed(meaning: str, *, pattern: str = "") -> dict[str, Knob]:
    """Return the metadata of a field that must be given: `job: str = field(metadata=needed("..."))`."""
    return {_KEY: Knob(meaning, pattern=pattern)}


def unlisted() -> dict[str, None]:
    """Return the metadata of a field that no file says: a program fills it in."""
    return {_KEY: None}


def knobs(kind: type) -> tuple[Knob, ...]:
    """Return every field of a settings class that a file may say and that is no table, in order."""
    return _knobs(kind)


@functools.cache
def _knobs(kind: Any) -> tuple[Knob, ...]:
    hints = typing.get_type_hints(kind)
    found = []
    for one in dataclasses.fields(kind):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint):
            continue
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        declared: Knob | None = one.metadata.get(_KEY, Knob())
        if declared is None:
            continue
        default = REQUIRED if one.default is dataclasses.MISSING else one.default
        found.append(dataclasses.replace(declared, name=one.name, kinds=kinds, default=default))
    return tuple(found)


def tables(kind: type) -> dict[str, type]:
    """Return every field of a settings class that is a table, with its class."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if dataclasses.is_dataclass(hints[f.name])}


def variants(kind: type) -> tuple[str, Mapping[str, type]]:
    """Return the key that chooses what else a table has, and the settings class of each choice; "" where none does.

    Such a table is a settings class with a class method `variants()` that returns both.
    """
    own = getattr(kind, "variants", None)
    return ("", {}) if own is None else own()


def about(kind: type) -> str:
    """Return the sentence with which the documentation of a settings class begins, without the table's name."""
    first = (kind.__doc__ or "").split("\n\n")[0].partition(". ")[0].strip().rstrip(".")
    return first.partition(": ")[2] or first


def settle(config: object) -> None:
    """Check every knob of a frozen `config` and put its numbers on their grids; for `__post_init__`.

    Raises ValueError: what was found, what was possible.
    """
    for one in knobs(type(config)):
        object.__setattr__(config, one.name, one.settled(getattr(config, one.name)))


def preset_of(kind: type[T], preset: str) -> T:
    """Make a settings class of the values that its knobs have in the named set `preset`."""
    return kind(**{one.name: one.of_preset(preset) for one in knobs(kind)})


def changes(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Any]) -> list[str]:
    """Say what differs between the tables `now`, by name, and their values `before`: "[rounds] deadline_s: 600 -> 300".

    A knob that `before` does not know has not changed.
    """
    out = []
    for table, config in now.items():
        known = before.get(table, {})
        for one in knobs(type(config)):
            value = getattr(config, one.name)
            if one.name in known and known[one.name] != value:
                out.append(f"[{table}] {one.name}: {one.said(known[one.name])} -> {one.said(value)}")
    return out


def _decimal(number: float) -> str:
    """A number without an exponent and without zeros behind it."""
    text = format(Decimal(repr(number)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
