"""SIGKILL the driver of a search at three moments; the same command finishes it.

One search, four drivers: the first is killed before anything was reported, the second while one
trial is done and others run, the third between the last trial and the end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clusters import wait_until
from mlflow import MlflowClient
from optuna.trial import TrialState

from morel_core.errors import MorelError
from orchestrator.search import status
from orchestrator.search.resume import saved_trials
from orchestrator.search.searcher import SpaceSearcher
from orchestrator.search.space import load_search

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

EPOCHS = 8
LENGTH = f"training.epochs={EPOCHS}"
SPACE = """
recipe: digits
overrides:
  model.width: 4
  data: {holdout: 60, train_size: 320, test_size: 60}
  attack.num_steps: 2
  evaluation.attack.num_steps: 3
  checkpoint.every_seconds: 0
scheduler: {name: none}
num_trials: 4
ladder: {verify: {top: 2, attacks: [apgd-ce]}}
parameters:
  objective.alpha: {type: float, low: 1.0e-6, high: 1.0, log: true}
baselines:
  paper: {objective.alpha: 1.0e-5}
"""


@dataclass
class Killed:
    """A search that needed four drivers."""

    storage: Path
    space: Path
    seen: list[list[str]]
    """Keys in the journal at each kill."""
    resumed: set[str]
    """Tune's ids of trials that had saved, and not ended, at the second kill."""
    verified: dict[str, int]
    """What was verified at the third kill: names of files, and when they were written."""
    printed: dict[str, Any]
    """What the last driver printed."""

    @property
    def folder(self) -> Path:
        return self.storage / "killed"


def journal(storage: Path) -> list[dict[str, Any]]:
    path = storage / "killed" / "journal" / "events.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def epochs(storage: Path) -> list[float]:
    """When each was reported, in Unix seconds."""
    return [event["time"] for event in journal(storage) if event["kind"] == "epoch"]


def started(storage: Path) -> bool:
    """A trial has its process, and nothing was reported."""
    return sum(event["kind"] == "start" for event in journal(storage)) > 1


def one_done(storage: Path) -> bool:
    """A trial has ended, and by Tune's saved state one has a checkpoint to go on from."""
    ended = Counter(event["kind"] for event in journal(storage))["final"]
    return ended > 0 and bool(resumable(storage))


def resumable(storage: Path) -> set[str]:
    """Trials that will go on from a checkpoint; none while Tune writes its state.

    It calls those that run PENDING there.
    """
    try:
        saved = saved_trials(str(storage / "killed"))
    except MorelError:
        return set()
    return {t.trial_id for t in saved if t.status == "PENDING" and t.checkpoint is not None}


def one_verified(storage: Path) -> bool:
    return any((storage / "killed" / "verified").glob("[!.]*.json"))


def written(folder: Path) -> dict[str, int]:
    """Files of verifications, and when they were written."""
    found = (folder / "verified").glob("[!.]*.json")
    return {path.name: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    space, storage = folder / "space.yaml", folder / "runs"
    space.write_text(SPACE)
    command = [
        *(sys.executable, "-m", "orchestrator", "tune", str(space), "--json"),
        *(f"storage_path={storage}", "name=killed", LENGTH),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    seen: list[list[str]] = []

    def stopped_at(driver: subprocess.Popen[bytes], moment: Callable[[Path], bool]) -> bool:
        """Whether the moment is there, and stays until the kill: the driver is suspended then."""
        if not moment(storage):
            return False
        driver.send_signal(signal.SIGSTOP)
        if moment(storage):
            return True
        driver.send_signal(signal.SIGCONT)
        return False

    def kill_when(moment: Callable[[Path], bool]) -> None:
        known, began = len(epochs(storage)), time.time()
        driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: stopped_at(driver, moment), 400, "the moment to kill it", driver)
        finally:
            driver.kill()
            driver.wait()
        for first in epochs(storage)[known : known + 1]:
            print(f"\n{first - began:.1f} s from the command to its first epoch")
        seen.append([event["run_id"] + event["key"] for event in journal(storage)])

    kill_when(started)
    kill_when(one_done)
    resumed = resumable(storage)
    kill_when(one_verified)
    verified = written(storage / "killed")
    last = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert last.returncode == 0, last.stderr
    return Killed(storage, space, seen, resumed, verified, json.loads(last.stdout))


def test_every_trial_is_trained_to_its_end(killed: Killed) -> None:
    trials = killed.printed["trials"]
    assert [trial["number"] for trial in trials] == [1, 2, 3, 4]
    assert {trial["stop_reason"] for trial in trials} == {f"all {EPOCHS} epochs trained"}
    assert killed.printed["winner"] in [trial["run_id"] for trial in trials]


def test_what_was_recorded_stays_and_no_epoch_is_recorded_twice(killed: Killed) -> None:
    events = [event["run_id"] + event["key"] for event in journal(killed.storage)]
    for seen in killed.seen:
        assert events[: len(seen)] == seen
    assert len(events) == len(set(events))
    assert not any("epoch" in key for key in killed.seen[0])


def test_interrupted_trials_went_on_from_their_checkpoints(killed: Killed) -> None:
    last = {trial.trial_id: trial.last_result for trial in saved_trials(str(killed.folder))}
    assert killed.resumed
    for trial_id in killed.resumed:
        assert last[trial_id]["iterations_since_restore"] < last[trial_id]["training_iteration"]


def test_mlflow_has_each_run_once(killed: Killed) -> None:
    client = MlflowClient(f"sqlite:///{killed.storage}/mlflow.db")
    experiment = client.get_experiment_by_name("morel")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 5  # the search and its four trials
    assert len({run.data.tags["morel.run_id"] for run in runs}) == 5
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        if run.data.tags["morel.kind"] == "trial":
            history = client.get_metric_history(run.info.run_id, "holdout.clean")
            assert sorted(point.step for point in history) == list(range(1, EPOCHS + 1))


def test_the_searcher_knows_all_trials(killed: Killed) -> None:
    searcher = SpaceSearcher(
        load_search(str(killed.space), [f"storage_path={killed.storage}", LENGTH])
    )
    searcher.restore_from_dir(str(killed.folder))
    complete = [t for t in searcher._study.trials if t.state is TrialState.COMPLETE]
    recorded = [trial["params"]["objective.alpha"] for trial in killed.printed["trials"]]
    assert sorted(t.params["objective.alpha"] for t in complete) == sorted(recorded)


def test_the_verified_are_not_verified_again(killed: Killed) -> None:
    files = written(killed.folder)
    assert len(files) == 2
    assert killed.verified
    assert files.items() >= killed.verified.items()


def test_the_cost_counts_all_drivers(killed: Killed) -> None:
    found = status.read(str(killed.folder))
    assert found is not None
    assert found["state"] == "finished"
    trained = sum(trial["seconds"] for trial in killed.printed["trials"])
    assert killed.printed["cost"]["cpu_seconds"] >= trained
    assert found["cost"]["wall_seconds"] > trained / 2
