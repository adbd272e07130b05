"""Runs as rows, in the order asked for, with what a reader must know about the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from morel_core.errors import ConfigError
from orchestrator.compare.pareto import front
from orchestrator.compare.runs import (
    LINEAGE,
    RunRecord,
    Score,
    measured_differently,
    shared_attacks,
    varied_params,
)

Sort = Literal[
    "robust_accuracy",
    "clean_accuracy",
    "verified_accuracy",
    "test_robust_accuracy",
    "test_clean_accuracy",
    "name",
    "epochs",
    "seconds",
]

_BIASED = (
    "Held-out accuracies are those of each run's best epoch, chosen on the same images: they are "
    "biased upwards, the more so for the best run of a search. Test accuracies are not."
)
_VERIFIED = (
    "Verified accuracies are those of the search's best trials under stronger attacks, again on "
    "held-out images."
)
_FRONT = (
    "+ on the Pareto front of clean and robust accuracy among these runs, of those that came to "
    "their end, keep the constraints of their search and mask no gradients."
)
_WINNER = "★ the winner of its search."
_UNFINISHED = "* latest epoch of a run that has recorded no best epoch."
_ATTACKS_DIFFER = (
    "The runs were measured with different attacks: robust accuracies compare only within one "
    "attack, and rows are sorted within it."
)


@dataclass(frozen=True)
class Row:
    """One run in the table; ``None`` is what was not measured."""

    name: str
    run_id: str
    kind: str
    search: str | None
    clean_accuracy: Score | None
    robust_accuracy: Score | None
    attack: str | None
    test_clean_accuracy: Score | None
    test_robust_accuracy: Score | None
    test_attack: str | None
    test_attacks: dict[str, Score]
    """Robust accuracy on the test set under every attack that was measured there."""
    verified_accuracy: Score | None
    """Robust accuracy under all attacks of a search's verification, on held-out images."""
    verified_attacks: str | None
    on_front: bool
    """It was judged by the attack that decides, and may win; and no other such row is better in one
    of clean and robust held-out accuracy, and as good in the other."""
    winner: bool
    """Of its search."""
    selected: bool
    """Held-out numbers of the best epoch (True) or of the latest (False)."""
    epochs: int | None
    seconds: float | None
    stopped: str
    status: str
    baseline: str | None
    method: str | None
    """Of a campaign."""
    params: dict[str, str]
    """Those that differ between the runs of the table."""


@dataclass(frozen=True)
class Comparison:
    """Rows in the order asked for, and what a reader must know about the numbers."""

    rows: list[Row]
    params: list[str] = field(default_factory=lambda: list[str]())
    """Keys that differ between the runs, in order."""
    notes: list[str] = field(default_factory=lambda: list[str]())


def comparison_table(
    runs: Sequence[RunRecord], sort: str = "robust_accuracy", attack: str | None = None
) -> Comparison:
    """The trials and trainings among ``runs`` as rows; searches and campaigns have no numbers.

    The highest accuracy comes first, otherwise the lowest value or the first name; what was not
    measured comes last. Robust accuracies of different attacks are never ranked against each other:
    those under the attack that decides come first (`shared_attacks`), or under ``attack``. Raises
    `ConfigError` for a ``sort`` that there is not, or an attack that no run was measured with.
    """
    if sort not in get_args(Sort):
        raise ConfigError("sort", sort, f"one of {', '.join(get_args(Sort))}")
    shown_runs = [run for run in runs if run.trained]
    params = varied_params(shown_runs)
    holdout_attacks = shared_attacks(shown_runs, "holdout", attack)
    test_attacks = shared_attacks(shown_runs, "test", attack)
    rows = [_row(run, params, holdout_attacks, test_attacks) for run in shown_runs]
    differences = measured_differently(shown_runs)
    if not differences and holdout_attacks:
        could = {run.run_id for run in shown_runs if run.eligible}
        rows = _with_front(rows, could, holdout_attacks[0])
    rows.sort(key=_sort_key(sort, test_attacks if sort.startswith("test_") else holdout_attacks))

    notes: list[str] = []
    if any(row.selected for row in rows):
        notes.append(_BIASED)
    if any(row.verified_accuracy for row in rows):
        notes.append(_VERIFIED)
    if any(row.on_front for row in rows):
        notes.append(_FRONT)
    if any(row.winner for row in rows):
        notes.append(_WINNER)
    if any(not row.selected and row.clean_accuracy for row in rows):
        notes.append(_UNFINISHED)
    if len({row.attack for row in rows if row.attack}) > 1:
        notes.append(_ATTACKS_DIFFER)
    changed = sum(bool(run.tags.get(LINEAGE)) for run in shown_runs)
    if changed:
        notes.append(
            f"{changed} run(s) were trained with settings that changed on the way: those shown are "
            "the first ones; the artifact pbt.json of each has all."
        )
    return Comparison(rows, params, notes + differences)


def _with_front(rows: list[Row], eligible: Collection[str], attack: str) -> list[Row]:
    """The rows, those of ``eligible`` run ids on the front marked; a single one is no front."""
    could = [
        (i, (row.clean_accuracy.value, row.robust_accuracy.value))
        for i, row in enumerate(rows)
        if row.run_id in eligible and row.attack == attack
        if row.clean_accuracy and row.robust_accuracy
    ]
    if len(could) < 2:
        return rows
    members = {could[place][0] for place in front([point for _, point in could])}
    return [replace(row, on_front=i in members) for i, row in enumerate(rows)]


def _row(
    run: RunRecord, params: list[str], holdout_attacks: list[str], test_attacks: list[str]
) -> Row:
    holdout, test = run.robust("holdout"), run.robust("test")
    attack = next((name for name in holdout_attacks if name in holdout), None)
    test_attack = next((name for name in test_attacks if name in test), None)
    return Row(
        name=run.name,
        run_id=run.run_id,
        kind=run.kind,
        search=run.search,
        clean_accuracy=run.clean("holdout"),
        robust_accuracy=holdout[attack] if attack else None,
        attack=attack,
        test_clean_accuracy=run.clean("test"),
        test_robust_accuracy=test[test_attack] if test_attack else None,
        test_attack=test_attack,
        test_attacks=test,
        verified_accuracy=run.verified(),
        verified_attacks=run.tags.get("morel.verified.attacks"),
        on_front=False,
        winner=run.tags.get("morel.winner") == "true",
        selected=run.selected,
        epochs=run.epochs,
        seconds=run.seconds,
        stopped=run.stop_reason,
        status=run.status,
        baseline=run.tags.get("morel.baseline"),
        method=run.tags.get("morel.method"),
        params={key: run.params[key] for key in params if key in run.params},
    )


def _sort_key(sort: str, attacks: list[str]) -> Callable[[Row], tuple[Any, ...]]:
    def key(row: Row) -> tuple[Any, ...]:
        if sort == "name":
            return (row.name,)
        value = getattr(row, sort)
        if value is None:
            return (len(attacks), math.inf, row.name)
        if sort.endswith("robust_accuracy"):
            attack = row.test_attack if sort.startswith("test_") else row.attack
            return (attacks.index(attack or ""), -value.value, row.name)
        number = -value.value if isinstance(value, Score) else value
        return (0, number, row.name)

    return key
