"""The ball in which a search's decisive numbers are measured, and what else was measured in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.report.data import Measured, Recorded

CLOSE = 1e-9
"""Radii no farther apart are the same."""


@dataclass(frozen=True, kw_only=True)
class Ball:
    """A norm and a radius."""

    norm: str
    eps: float

    def same(self, entry: Mapping[str, Any]) -> bool:
        """Whether an outcome or worst case of an evaluation's record is of this very ball."""
        return entry["norm"] == self.norm and abs(float(entry["eps"]) - self.eps) <= CLOSE

    def holds(self, entry: Mapping[str, Any]) -> bool:
        """The same of this ball or a smaller one; clean images are in every ball."""
        return entry["norm"] in (None, self.norm) and float(entry["eps"]) <= self.eps + CLOSE

    def named(self, attack: str) -> bool:
        """Whether an attack's name, as in ``pgd20_linf_8-255``, is of this very ball."""
        from morel_core.attacks.base import size_label

        return attack.endswith(f"_{self.norm}_{size_label(self.eps)}")

    def radius(self, share: float = 1.0) -> str:
        """So much of the radius for a command line, ``8/255`` where it is such a number."""
        size = share * self.eps
        level = 255 * size
        whole = size < 1 and abs(level - round(level)) < 1e-6
        return f"{round(level)}/255" if whole else f"{size:.6g}"

    def attacks(self, each: Measured) -> list[str]:
        """The attacks of an evaluation in this very ball."""
        return [name for name, outcome in each.record["outcomes"].items() if self.same(outcome)]


def ball_of(recorded: Recorded) -> Ball | None:
    """That of ``evaluation.attack``; None where no config tells."""
    config = recorded.config or recorded.definition.get("base", {})
    attack = config.get("evaluation", {}).get("attack", {})
    norm, eps = attack.get("norm"), attack.get("eps")
    if not isinstance(norm, str) or not isinstance(eps, int | float):
        return None
    return Ball(norm=norm, eps=float(eps))
