"""What MLflow holds, for assertions."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run


def client(storage: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{storage}/mlflow.db")


def runs(storage: Path, filter_string: str) -> list[Run]:
    """All recorded runs that fit."""
    found = client(storage).search_experiments()
    ids = [experiment.experiment_id for experiment in found]
    return list(client(storage).search_runs(ids, filter_string))


def one(storage: Path, run_id: str) -> Run:
    """The single MLflow run of one of ours."""
    found = runs(storage, f"tags.`morel.run_id` = '{run_id}'")
    assert len(found) == 1, [run.info.run_id for run in found]
    return found[0]


def steps(storage: Path, run: Run, metric: str) -> list[int]:
    """The steps at which a metric was recorded."""
    return [m.step for m in client(storage).get_metric_history(run.info.run_id, metric)]


def history(storage: Path, run: Run, metric: str) -> list[tuple[int, float]]:
    """Each recorded (step, value) of a metric."""
    found = client(storage).get_metric_history(run.info.run_id, metric)
    return [(m.step, m.value) for m in found]
