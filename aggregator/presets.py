"""Presets: named values of [training] and [aggregation] that a job begins with; its own settings override them.

`paper` is FedPM (Isik et al., arXiv 2209.15328) as its authors published it, with their estimator, an optimiser state
that is kept between rounds, and their aggregation; but masks are really entropy coded, where the authors computed their
size by a formula. `default` is what measured best (docs/explanation/learning.md). `thrifty` sends half of its bytes, at
a cost of one point of accuracy. Each setting declares its value in every preset (`seedmask.training`,
`aggregator.settings`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from aggregator.settings import AggregationConfig
from seedmask.codec import NAMES
from seedmask.errors import UserError
from seedmask.io import settings
from seedmask.knobs import preset_of
from seedmask.training import TrainingConfig


@dataclass(frozen=True)
class Preset:
    """One preset's values for both tables."""

    training: TrainingConfig
    aggregation: AggregationConfig


MEANINGS: Final = {
    "default": "what measured best",
    "thrifty": "half of the bytes of default, for a point of accuracy less",
    "paper": "FedPM as its authors published it",
}
PRESETS: Final = {
    name: Preset(preset_of(TrainingConfig, name), preset_of(AggregationConfig, name)) for name in MEANINGS
}

RENAMED: Final = {"work": "training", "learning": "aggregation"}
GONE: Final = ("stratified", "entropy", "control_variate", "hysteresis")
GONE_CODECS: Final = ("crn",)


def tables(name: object) -> dict[str, dict[str, Any]]:
    """Return both tables of preset `name` as a file would have them. Raises ValueError if there is no such preset."""
    if not isinstance(name, str) or name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"preset {name!r} is unknown; {hint}")
    return asdict(PRESETS[name])


def completed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a file's `values`, with the preset's value for every setting that it leaves out.

    Raises ValueError for a setting that was renamed or removed, or that belongs to the other table.
    """
    for old, new in RENAMED.items():
        if old in values:
            raise ValueError(f"table [{old}] is called [{new}] now")
    begun = tables(values.get("preset", "default"))
    said = {table: found for table in begun if isinstance(found := values.get(table, {}), Mapping)}
    for table, found in said.items():
        for key, value in found.items():
            _refuse_gone(key, value)
            place = next((other for other, known in begun.items() if key in known), table)
            if place != table:
                raise ValueError(f"{key} stands in [{place}], not in [{table}]")
    return {**values, **{table: {**begun[table], **found} for table, found in said.items()}}


def settings_of(name: str, changes: Mapping[str, Any], where: str) -> tuple[TrainingConfig, AggregationConfig]:
    """Return both tables of preset `name`, changed by `changes`, whose keys may be of either table.

    `where` begins error messages. Raises UserError that names the nearest known key.
    """
    try:
        both = tables(name)
        for key, value in changes.items():
            _refuse_gone(key, value)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    for key, value in changes.items():
        table = next((table for table in both.values() if key in table), None)
        if table is None:
            known = [key for table in both.values() for key in table]
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
        table[key] = value
    training = settings.build(TrainingConfig, both["training"], where, Path())
    if training.codec not in NAMES:  # the wire may carry others, which no device has
        raise UserError(f"{where}: codec {training.codec!r} is unknown; there are {', '.join(NAMES)}")
    return training, settings.build(AggregationConfig, both["aggregation"], where, Path())


def _refuse_gone(key: str, value: Any) -> None:
    """Raise ValueError for a setting of earlier versions that was removed because it measured worse."""
    if key in GONE or (key == "codec" and value in GONE_CODECS):
        what = f"codec {value!r}" if key == "codec" else key
        raise ValueError(f"{what} is gone: measured, it cost more than it brought (docs/explanation/learning.md)")
