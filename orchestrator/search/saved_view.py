"""Which columns and charts of MLflow's page of runs show a search."""

from __future__ import annotations

from morel_core.attacks.catalogue import make_attacks
from morel_core.ladder import Ladder
from orchestrator.search.parameters import DerivedParameter, is_setting
from orchestrator.search.space import SearchConfig
from orchestrator.tracking import ViewPayload, records


def view_of(search: SearchConfig) -> ViewPayload:
    """What differs between the trials, what they are judged by, and why they ended."""
    labels = [rung.label for rung in Ladder.of(search.base.evaluation)]
    return {
        "params": [
            name if is_setting(name) else f"search.{name}"
            for name, parameter in search.space.parameters.items()
            if not isinstance(parameter, DerivedParameter)  # it follows from the others
        ],
        "clean": "best.holdout.clean",
        "robust": f"best.holdout.robust.{records.evaluation_label(search.base)}",
        "more": _verified(search),
        "curves": [f"holdout.robust.{label}" for label in reversed(labels)],
        "tags": ["morel.stop_reason"],
    }


def _verified(search: SearchConfig) -> list[str]:
    """The metric that chooses the winner, if candidates are verified."""
    verify = search.ladder.verify
    if not verify.top:
        return []
    attacks = list(make_attacks(verify.attacks, search.base.evaluation.attack))
    return [f"verified.robust.{attacks[0] if len(attacks) == 1 else 'worst_case'}"]
