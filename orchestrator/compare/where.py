"""Conditions that pick runs: ``clean_accuracy >= 0.8``, ``objective.accuracy = trades``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from morel_core.errors import ConfigError
from orchestrator.compare.runs import RunRecord

_CONDITION = re.compile(r"\s*([A-Za-z_][\w.\-/]*)\s*(>=|<=|!=|=|<|>)\s*(.*?)\s*", re.ASCII)
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne,
    "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_OF_A_RUN: dict[str, Callable[[RunRecord], Any]] = {
    "name": lambda run: run.name,
    "kind": lambda run: run.kind,
    "search": lambda run: run.search,
    "status": lambda run: run.status.lower(),
    "stopped": lambda run: run.stop_reason,
    "epochs": lambda run: run.epochs,
    "seconds": lambda run: run.seconds,
    "baseline": lambda run: run.tags.get("morel.baseline"),
    "method": lambda run: run.tags.get("morel.method"),
    "clean_accuracy": lambda run: _value(run.clean("holdout")),
    "test_clean_accuracy": lambda run: _value(run.clean("test")),
    "verified_accuracy": lambda run: _value(run.verified()),
    "robust_accuracy": lambda run: _least(run, "holdout"),
    "test_robust_accuracy": lambda run: _least(run, "test"),
}


@dataclass(frozen=True)
class Condition:
    """One condition on a run.

    Attributes:
        key: of `_OF_A_RUN`, or any setting; robust accuracies are those under the strongest attack
            that was measured in the ball of the run's own evaluation.
        sign: numbers are compared as numbers, all else as text, by = and != alone.
        value: what the run's is compared with; of numbers also a fraction, as in ``8/255``.
    """

    key: str
    sign: str
    value: str

    @staticmethod
    def parse(text: str) -> Condition:
        """Raises `ConfigError` for anything but ``key sign value``."""
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise ConfigError("--where", text, "as in 'clean_accuracy >= 0.8' or 'method = mart'")
        condition = Condition(match[1], match[2], match[3])
        if condition.sign in ("<", ">", "<=", ">=") and _number(condition.value) is None:
            raise ConfigError("--where", text, f"a number after {condition.sign}")
        return condition

    def holds(self, run: RunRecord) -> bool:
        """Whether the run meets it; what a run does not have meets nothing but !=."""
        of_a_run = _OF_A_RUN.get(self.key)
        found = of_a_run(run) if of_a_run else run.params.get(self.key)
        if found is None:
            return self.sign == "!="
        mine, wanted = _number(str(found)), _number(self.value)
        if mine is None or wanted is None:
            return self.sign in ("=", "!=") and _SIGNS[self.sign](str(found), self.value)
        return _SIGNS[self.sign](mine, wanted)


def pick(runs: Sequence[RunRecord], conditions: Sequence[str]) -> list[RunRecord]:
    """Those of ``runs`` that meet every condition; raises `ConfigError` for a key none knows."""
    parsed = [Condition.parse(text) for text in conditions]
    known = {*_OF_A_RUN, *(key for run in runs for key in run.params)}
    for condition in parsed:
        if condition.key not in known and runs:
            allowed = f"a setting of these runs, or one of {', '.join(_OF_A_RUN)}"
            raise ConfigError("--where", condition.key, allowed)
    return [run for run in runs if all(condition.holds(run) for condition in parsed)]


def _value(score: Any) -> float | None:
    return None if score is None else score.value


def _least(run: RunRecord, split: Any) -> float | None:
    return min((score.value for score in run.judged(split).values()), default=None)


def _number(text: str) -> float | None:
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
