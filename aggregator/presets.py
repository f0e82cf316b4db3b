"""Named sets of knobs: values of the [work] and [learning] tables that a job begins with; its own keys override them.

`paper` is FedPM (Isik et al., arXiv 2209.15328) as its authors published it, with their estimator, their optimiser that
lives as long as the device, and their aggregation; only the masks are entropy coded, which theirs were by formula.
`default` is what measured best (docs/explanation/learning.md), `thrifty` spends half of its bytes for a point less.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from aggregator.config import AggregateSettings, WorkSettings, check_together
from seedmask.errors import UserError
from seedmask.io import settings


@dataclass(frozen=True)
class Preset:
    """Both tables."""

    work: WorkSettings
    learning: AggregateSettings


PRESETS: Final = {
    "default": Preset(
        WorkSettings(kappa=5.0, kl=3.0, mean_epochs=65535),
        AggregateSettings(weighting="samples", clamp=0.002),
    ),
    "thrifty": Preset(
        WorkSettings(kappa=24.0, kl=3.0, mean_epochs=65535),
        AggregateSettings(weighting="samples", clamp=0.002),
    ),
    "paper": Preset(
        WorkSettings(epochs=3, learning_rate=0.1, codec="rans", keep_optimizer=True, straight_through="theta"),
        AggregateSettings(downlink="exact", weighting="equal", prior=1.0, carry=0.0, init="normal"),
    ),
}


def tables(name: object) -> dict[str, dict[str, Any]]:
    """The tables of preset `name`, as a file would say them. Raises ValueError."""
    if not isinstance(name, str) or name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"preset {name!r} is unknown; {hint}")
    preset: Mapping[str, Any] = asdict(PRESETS[name])
    return dict(preset)


def settings_of(name: str, changes: Mapping[str, Any], where: str) -> tuple[WorkSettings, AggregateSettings]:
    """Preset `name` with `changes`, by key of either table. Raises UserError that names the nearest key."""
    try:
        both = tables(name)
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
    work = settings.build(WorkSettings, both["work"], where, Path())
    learning = settings.build(AggregateSettings, both["learning"], where, Path())
    try:
        check_together(work, learning)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return work, learning
