"""A real search for two accuracies at once: its recorded front against MLflow's own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import recorded
from mlflow.entities import Run
from test_search_run import SMALL, search, space

from morel_core.errors import MorelError
from orchestrator.search.result import SearchResult
from orchestrator.search.view import search_summary
from orchestrator.tune import tune

ATTACK = "pgd3_linf_0.1"
SPACE: dict[str, Any] = {
    "overrides": SMALL | {"training.epochs": 2},
    "objective": {"metric": "tradeoff"},
    "parameters": {
        "objective.beta": {"type": "float", "low": 0.1, "high": 20, "log": True},
        "attack.eps": {"type": "float", "low": 0.02, "high": 0.3},
    },
    "baselines": {
        "paper": {"objective.beta": 6.0, "attack.eps": 0.1},
        "clean": {"objective.beta": 0.1, "attack.eps": 0.02},
    },
}


@pytest.fixture(scope="module")
def both(local_ray: Any, shared_storage: Path, tmp_path_factory: Any) -> SearchResult:
    """Six trials, of which nsga2 breeds the last two."""
    file = space(
        tmp_path_factory.mktemp("spaces"),
        "both",
        **SPACE,
        searcher={"name": "nsga2", "population_size": 3},
        scheduler={"name": "pareto", "grace_period": 1, "reduction_factor": 2},
        num_trials=6,
    )
    return tune(search(shared_storage, file, "both"))


def numbers(run: Run) -> tuple[float, float]:
    metrics = run.data.metrics
    return metrics["best.holdout.clean"], metrics[f"best.holdout.robust.{ATTACK}"]


def test_the_recorded_front_is_the_one_of_mlflows_numbers(
    both: SearchResult, shared_storage: Path, tmp_path: Path
) -> None:
    parent = recorded.one(shared_storage, "both")
    trials = recorded.runs(shared_storage, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(trials) == 6
    whole = [run for run in trials if run.data.tags["morel.state"] == "finished"]
    assert whole
    points = {run.data.tags["morel.run_id"]: numbers(run) for run in whole}
    front = {
        run_id: (clean, robust)
        for run_id, (clean, robust) in points.items()
        if not any(
            c >= clean and r >= robust and (c, r) != (clean, robust) for c, r in points.values()
        )
    }
    area, height = 0.0, 0.0
    for clean, robust in sorted(front.values(), reverse=True):
        area, height = area + clean * max(robust - height, 0.0), max(height, robust)

    found = recorded.client(shared_storage).download_artifacts(
        parent.info.run_id, "front.json", str(tmp_path)
    )
    table = json.loads(Path(found).read_text())
    rows = {
        row["run_id"]: (row["clean_accuracy"], row["robust_accuracy"]) for row in table["points"]
    }
    assert rows == front
    assert table["hypervolume"] == pytest.approx(area)
    assert table["attack"] == ATTACK
    assert set(search_summary(both)["front"]) == set(front)

    history = recorded.client(shared_storage).get_metric_history(
        parent.info.run_id, "front.hypervolume"
    )
    last = max(history, key=lambda metric: (metric.step, metric.timestamp))
    assert (last.step, last.value) == (6, pytest.approx(area))
    assert parent.data.metrics["front.size"] == len(front)
    values = [metric.value for metric in sorted(history, key=lambda metric: metric.step)]
    assert values == sorted(values)  # more trials never make it smaller


def test_the_winner_is_the_fronts_most_robust(both: SearchResult, shared_storage: Path) -> None:
    assert both.winner is not None
    best = max(
        numbers(recorded.one(shared_storage, t.run_id))[1]
        for t in both.trials
        if t.state == "finished"
    )
    assert numbers(recorded.one(shared_storage, both.winner.run_id))[1] == best
    note = recorded.one(shared_storage, "both").data.tags["mlflow.note.content"]
    assert "the most robust of the front's" in note
    picture = shared_storage / "both" / "front.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_later_search_begins_with_what_it_found(
    both: SearchResult, shared_storage: Path, tmp_path: Path
) -> None:
    file = space(tmp_path, "later", **SPACE, num_trials=2, warm_start=["both"])
    later = tune(search(shared_storage, file, "later"))
    finished = sum(trial.state == "finished" for trial in both.trials)
    said = recorded.one(shared_storage, "later").data.tags["morel.warm_start"]
    assert said.startswith(f"warm start: {finished} of 6 trials of both")
    assert [trial.number for trial in later.trials] == [1, 2]
    file = space(tmp_path, "unknown", **SPACE, num_trials=2, warm_start=["boht"])
    unknown = search(shared_storage, file, "unknown")
    with pytest.raises(MorelError, match=r"'boht' is not in experiment .*both"):
        tune(unknown)
