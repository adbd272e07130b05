"""A search on two nodes of two CPUs each, to whose trials several things happen at once.

While four trials run, the newest checkpoint of each is cut short, one process may write no file of
more than a kilobyte any longer, and the node without it is killed. A fifth trial diverges.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from clusters import Cluster, events, finished, wait_until
from mlflow import MlflowClient

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

EPOCHS = 8
SPACE = f"""
recipe: digits
overrides:
  training: {{epochs: {EPOCHS}, batch_size: 16}}
  model.width: 4
  data: {{holdout: 60, train_size: 1200, test_size: 60}}
  attack.num_steps: 2
  evaluation.attack.num_steps: 3
  checkpoint.every_seconds: 0
  optimizer.schedule: constant
scheduler: {{name: none}}
num_trials: 5
max_concurrent: 4
parameters:
  optimizer.lr: {{type: float, low: 1.0e-3, high: 1.0e12, log: true}}
baselines:
  paper: {{optimizer.lr: 1.0e-3}}
  two: {{optimizer.lr: 2.0e-3}}
  three: {{optimizer.lr: 3.0e-3}}
  four: {{optimizer.lr: 4.0e-3}}
  explodes: {{optimizer.lr: 1.0e+12}}
"""


@dataclass
class Struck:
    """The search, after all of it."""

    said: str
    runs: dict[int, Any]
    """MLflow's, by the trial's number."""
    events: list[dict[str, Any]]
    seconds: float
    """From the death of the node until every trial that was on it had reported again."""


@pytest.fixture(scope="module")
def struck(cluster: Cluster, mlflow_server: str) -> Struck:
    cluster.add_nodes(2, cpus=2)
    space, storage = cluster.folder / "space.yaml", cluster.folder / "runs"
    space.write_text(SPACE)
    process = cluster.start(
        *("tune", str(space), f"storage_path={storage}", "name=struck"),
        MLFLOW_TRACKING_URI=mlflow_server,
    )

    def saved() -> list[Any]:
        folders = sorted((storage / "struck").glob("trial_*"))
        found = [sorted(folder.glob("checkpoint_*/manifest.json")) for folder in folders]
        return [manifests[-1].parent for manifests in found if len(manifests) >= 2]

    try:
        wait_until(
            lambda: len(saved()) >= 4, 200, "two checkpoints of each of four trials", process
        )
        trial_nodes = [
            [p for p in cluster.workers() if p.pid in {q.pid for q in node.processes()}]
            for node in cluster.nodes
        ]
        assert [len(workers) for workers in trial_nodes] == [2, 2]
        dying, starving = cluster.nodes[0], trial_nodes[1][0]
        for folder in saved():
            file = folder / "last.safetensors"
            file.write_bytes(file.read_bytes()[:-100])
        starving.rlimit(psutil.RLIMIT_FSIZE, (1024, 1024))
        cluster.kill_node(dying)
        killed = time.monotonic()
        known = Counter(e["run_id"] for e in events(storage, "struck") if e["kind"] == "epoch")

        def all_went_on() -> bool:
            now = Counter(e["run_id"] for e in events(storage, "struck") if e["kind"] == "epoch")
            return all(now[run] > known[run] or now[run] == EPOCHS for run in known)

        wait_until(lambda: all_went_on() or process.poll() is not None, 200, "all to go on")
        seconds = time.monotonic() - killed
        out, err = finished(process)
    finally:
        process.kill()
    assert process.returncode == 0, out + err
    client = MlflowClient(mlflow_server)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(ids, "tags.`morel.search` = 'struck' and tags.`morel.number` != ''")
    by_number = {int(run.data.tags["morel.number"]): run for run in found}
    assert len(found) == len(by_number)
    print(f"{seconds:.1f} s until every trial had gone on\n{err}")
    return Struck(" ".join(f"{out} {err}".split()), by_number, events(storage, "struck"), seconds)


def test_every_trial_ends(struck: Struck) -> None:
    reasons = {n: run.data.tags["morel.stop_reason"] for n, run in struck.runs.items()}
    assert sorted(reasons) == [1, 2, 3, 4, 5]
    assert {reasons[number] for number in (1, 2, 3, 4)} == {f"all {EPOCHS} epochs trained"}


def test_the_diverging_one_is_marked_with_its_step(struck: Struck) -> None:
    tags = struck.runs[5].data.tags
    assert tags["morel.state"] == "diverged"
    assert tags["morel.stop_reason"].startswith("diverged in epoch 1, at step ")


def test_nothing_is_recorded_twice(struck: Struck) -> None:
    keys = Counter((event["run_id"], event["key"]) for event in struck.events)
    assert set(keys.values()) == {1}


def test_trials_on_the_lost_node_went_on_elsewhere_from_a_whole_checkpoint(struck: Struck) -> None:
    tags = [struck.runs[number].data.tags for number in (1, 2, 3, 4)]
    again = [tag for tag in tags if "morel.retry" in tag]
    assert len(again) == 3  # two lost their node, one its storage
    for tag in again:
        assert "is damaged (last.safetensors: missing, truncated or altered" in tag["morel.damaged"]
        assert "went on from checkpoint_" in tag["morel.damaged"]
    assert "is damaged" in struck.said


def test_the_starved_one_says_why(struck: Struck) -> None:
    retries = [run.data.tags.get("morel.retry", "") for run in struck.runs.values()]
    assert sum("File too large" in line for line in retries) == 1
