"""SIGKILL the driver of a search; the same command finishes it, and nothing is recorded twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

SPACE = """
recipe: digits
overrides:
  training.epochs: 3
  model.width: 4
  data: {holdout: 60, train_size: 320, test_size: 60}
  attack.num_steps: 2
  evaluation.attack.num_steps: 3
  checkpoint.every_seconds: 0
scheduler: {name: none}
num_trials: 4
parameters:
  objective.alpha: {type: float, low: 1.0e-6, high: 1.0, log: true}
baselines:
  paper: {objective.alpha: 1.0e-5}
"""


def journal(storage: Path) -> list[dict[str, Any]]:
    path = storage / "killed" / "journal" / "events.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_search_goes_on_after_its_driver_was_killed(tmp_path: Path) -> None:
    space, storage = tmp_path / "space.yaml", tmp_path / "runs"
    space.write_text(SPACE)
    command = [
        *(sys.executable, "-m", "orchestrator", "tune", str(space), "--json"),
        *(f"storage_path={storage}", "name=killed"),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.time() + 200
    while Counter(e["kind"] for e in journal(storage))["final"] < 1:  # one trial done, others not
        assert first.poll() is None, "the search ended before it could be killed"
        assert time.time() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = [event["key"] for event in journal(storage)]

    second = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert second.returncode == 0, second.stderr
    printed = json.loads(second.stdout)
    assert [trial["number"] for trial in printed["trials"]] == [1, 2, 3, 4]
    assert {trial["stop_reason"] for trial in printed["trials"]} == {"all 3 epochs trained"}
    assert [event["key"] for event in journal(storage)][: len(before)] == before

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("morel")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 5  # the search and its four trials
    assert len({run.data.tags["morel.run_id"] for run in runs}) == 5
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if run.data.tags["morel.kind"] == "trial":
            history = client.get_metric_history(run.info.run_id, "holdout.clean")
            assert sorted(point.step for point in history) == [1, 2, 3]
