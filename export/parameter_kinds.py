"""Which parameters of a torch module are masked, frozen or exact: patterns over their names, `seedmask.spec.KINDS`."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

from seedmask.errors import UserError

NORM, BIAS = "norm", "bias"


@dataclass
class Kinds:
    """Patterns (fnmatch) that say which parameters are `exact` or `frozen`, like "head.*"; all others are masked.

    The word "norm" stands for the scales and shifts of every normalisation, "bias" for the biases of all other layers.
    """

    exact: Sequence[str] = ()
    frozen: Sequence[str] = ()
    _seen: dict[str, bool] = field(default_factory=dict)
    _used: set[tuple[str, str]] = field(default_factory=set)

    def of(self, name: str, norm: bool = False) -> str:
        """Return "masked", "frozen" or "exact" for parameter `name`; `norm`: it belongs to a normalisation.

        Raises UserError if patterns give it two kinds, or freeze a normalisation's.
        """
        self._seen[name] = norm
        patterns = [(kind, pattern) for kind in ("exact", "frozen") for pattern in getattr(self, kind)]
        told = {kind for kind, pattern in patterns if self._hit(kind, pattern, name)}
        if len(told) > 1:
            raise UserError(f"{name} cannot be both exact and frozen")
        if norm and told == {"frozen"}:
            raise UserError(f"{name} belongs to a normalisation: it is exact or left out, not frozen")
        return told.pop() if told else "masked"

    def _hit(self, kind: str, pattern: str, name: str) -> bool:
        norm = self._seen[name]
        if pattern == NORM:
            hit = norm
        elif pattern == BIAS:
            hit = not norm and name.rpartition(".")[2] == "bias"
        else:
            hit = fnmatch.fnmatchcase(name, pattern)
        if hit:
            self._used.add((kind, pattern))
        return hit

    def check(self) -> None:
        """Raise UserError if a pattern named nothing that the model has."""
        for kind in ("exact", "frozen"):
            for pattern in getattr(self, kind):
                if (kind, pattern) not in self._used:
                    raise UserError(f"`{kind}` {pattern!r} names no parameter; there are {', '.join(self._seen)}")
