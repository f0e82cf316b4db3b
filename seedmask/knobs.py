"""Settings, each declared once: as a dataclass field with its range, unit, meaning and id on the wire.

    @dataclass(frozen=True)
    class Training:
        kappa: float = knob(5.0, "bits per byte", least=0.001, most=1000, scale=1000, wire=12)

        def __post_init__(self) -> None:
            settle(self)

Checks, options on the wire, options of commands, the JSON schema and the page of settings are all derived from such a
field. A setting with a fraction is a multiple of 1/`scale`: with a scale of 1,000,000, people write 0.1, the wire
carries 100000, and both give exactly the same value. So two machines never compare floats that were rounded
differently.
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
"""Default of a knob that has none and must be given."""


@dataclass(frozen=True)
class Knob:
    """Declaration of one setting.

    `meaning`: one line. For numbers, `unit`; `least` .. `most`, the range; `zero`, the special meaning of 0, if any;
    `scale`: a float is an integer divided by it. For texts, `choices`: the possible ones, each with its meaning,
    numbered from 0 or by `numbers`; `unnamed`: the wire may also carry numbers without a name up to this one, written
    as "#" and the number. `words`: texts allowed in place of a number. `pattern`: regular expression of a free text,
    for the schema only. `group`: entry point group of which the text is a name. `wire`: id of the option on the
    wire, 0 if it is not sent. `presets`: its values in the presets where they differ from `default`. `name`,
    `kinds` (allowed types) and `default` (REQUIRED if there is none) are taken from the field.
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
        """Return `value`, a float rounded to a multiple of 1/`scale`. Raises ValueError if it is not allowed."""
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
        """Return the integer that stands for `value`, a result of `settled`, on the wire."""
        if self.choices:
            return self._numbered[value] if value in self._numbered else int(value[1:])
        number: int = round(value * self.scale)
        return number

    def value(self, number: int) -> Any:
        """Return the value that the integer `number`, within `span`, stands for on the wire."""
        if self.choices:
            return next((text for text, n in self._numbered.items() if n == number), f"#{number}")
        if bool in self.kinds:
            return bool(number)
        return number / self.scale if float in self.kinds else number

    @property
    def span(self) -> tuple[int, int]:
        """Smallest and largest integer on the wire."""
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
        """Meaning of the setting with its unit, and the meaning of 0 if that is special."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.meaning}{unit}" + (f"; 0: {self.zero}" if self.zero else "")

    @property
    def metavar(self) -> str:
        """Placeholder for a value in the usage line of a command."""
        if self.choices:
            return "|".join(self.choices)
        if bool in self.kinds:
            return "true|false"
        number = "X" if float in self.kinds else "N" if int in self.kinds else "TEXT"
        return "|".join((number, *self.words))

    def said(self, value: Any) -> str:
        """Return `value` as TOML: the shortest number that gives the same value, texts in quotes, "none" for None."""
        if value is None:
            return "none"
        if isinstance(value, bool) or not isinstance(value, float):
            return json.dumps(value if isinstance(value, bool | int) else str(value))
        number = round(value * self.scale)
        texts = (f"{value:.{digits}g}" for digits in range(1, 18))
        return _decimal(float(next(text for text in texts if round(float(text) * self.scale) == number)))

    def of_preset(self, preset: str) -> Any:
        """Return the setting's value in the preset `preset`."""
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
    """Declare a field of a settings class with a `default`; the other arguments are as in Knob.

    A type checker sees only the type of the default, as in an ordinary dataclass.
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
    """Return the metadata of a field that is filled in by a program and may not stand in a file."""
    return {_KEY: None}


def knobs(kind: type) -> tuple[Knob, ...]:
    """Return the settings of a settings class that a file may contain, in order; its tables are not among them."""
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
    """Return the tables of a settings class: field name to settings class."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if dataclasses.is_dataclass(hints[f.name])}


def variants(kind: type, table: Mapping[str, Any] | None = None) -> tuple[str, Mapping[str, type]]:
    """Return (key, classes) of a table whose other settings depend on one key; ("", {}) for any other table.

    `classes`: settings class by value of the key. `table`: values of such a table, where only what they choose is
    wanted. The settings class of such a table has a class method `variants(table)` that returns both.
    """
    own = getattr(kind, "variants", None)
    return ("", {}) if own is None else own(table)


def about(kind: type) -> str:
    """Return the first sentence of a settings class's docstring, without the table's name in front."""
    first = (kind.__doc__ or "").split("\n\n")[0].partition(". ")[0].strip().rstrip(".")
    return first.partition(": ")[2] or first


def settle(config: object) -> None:
    """Check every setting of the frozen `config` and round its floats as `Knob.settled` does; for `__post_init__`.

    Raises ValueError, which names the setting, the value found and the possible ones.
    """
    for one in knobs(type(config)):
        object.__setattr__(config, one.name, one.settled(getattr(config, one.name)))


def preset_of(kind: type[T], preset: str) -> T:
    """Return an instance of a settings class with the values of the preset `preset`."""
    return kind(**{one.name: one.of_preset(preset) for one in knobs(kind)})


def changes(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that changed, such as "[rounds] deadline_s: 600 -> 300".

    `now`: settings by table; `before`: their earlier values by table and name. A setting that `before` does not have
    counts as unchanged.
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
    """Return a number as decimal text without an exponent and without trailing zeros."""
    text = format(Decimal(repr(number)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
