"""What trains is killed or stopped, on a real cluster of two nodes of one CPU each.

Every run is the same three epochs on digits, so that each may be compared with the one that nobody
disturbed, bit by bit.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from clusters import Cluster, events, finished, wait_until
from mlflow import MlflowClient
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DIGITS = (
    *("model.width=4", "model.norm=none", "data.holdout=60", "data.test_size=60"),
    *("attack.num_steps=2", "evaluation.attack.num_steps=3", "checkpoint.every_seconds=0"),
    *("training.epochs=3", "data.train_size=1200", "training.batch_size=16", "seed=3"),
)


class Runs:
    """Training runs on the cluster, one after the other."""

    def __init__(self, cluster: Cluster, uri: str) -> None:
        self.cluster, self.uri = cluster, uri
        self.storage = cluster.folder / "runs"

    def start(self, name: str, *overrides: str) -> Any:
        return self.cluster.start(
            *("train", "digits", f"name={name}", f"storage_path={self.storage}"),
            *DIGITS,
            *overrides,
            MLFLOW_TRACKING_URI=self.uri,
        )

    def epochs(self, name: str) -> list[int]:
        kept = [e for e in events(self.storage, name) if e["kind"] == "epoch"]
        return [int(e["key"].partition(":")[2]) for e in kept]

    def disturbed(
        self, name: str, fault: Callable[[], None], *overrides: str, after: int = 1
    ) -> tuple[dict[str, Any], str, float]:
        """A run with a fault after an epoch; its end, what it said, seconds to the next epoch."""
        process = self.start(name, *overrides)
        try:
            wait_until(lambda: len(self.epochs(name)) >= after, 150, f"epoch {after} of {name}")
            fault()
            struck, known = time.monotonic(), len(self.epochs(name))
            wait_until(
                lambda: len(self.epochs(name)) > known or process.poll() is not None, 200, "more"
            )
            seconds = time.monotonic() - struck
            out, err = finished(process)
        finally:
            process.kill()
        assert process.returncode == 0, out + err
        print(f"{name}: {seconds:.1f} s from the fault to the next epoch\n{err}")
        return self.final(name), " ".join(err.split()), seconds

    def final(self, name: str) -> dict[str, Any]:
        """How a run ended, by its journal."""
        return [e["payload"] for e in events(self.storage, name) if e["kind"] == "final"][-1]

    def weights(self, name: str) -> Any:
        return load_file(self.newest(name) / "last.safetensors")

    def newest(self, name: str) -> Path:
        """A run's newest checkpoint."""
        return sorted((self.storage / name).glob("checkpoint_*/manifest.json"))[-1].parent

    def recorded(self, name: str) -> Any:
        client = MlflowClient(self.uri)
        (experiment,) = client.search_experiments(filter_string="name = 'morel'")
        (run,) = client.search_runs(
            [experiment.experiment_id], filter_string=f"attributes.run_name = '{name}'"
        )
        return run


@pytest.fixture(scope="module")
def runs(cluster: Cluster, mlflow_server: str) -> Runs:
    cluster.add_nodes(2)
    return Runs(cluster, mlflow_server)


@pytest.fixture(scope="module")
def calm(runs: Runs) -> dict[str, Any]:
    """The undisturbed run, on two workers."""
    process = runs.start("calm", "scaling.num_workers=2")
    out, err = finished(process)
    assert process.returncode == 0, out + err
    return runs.final("calm")


def same_numbers(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs came to bitwise the same accuracies."""
    keys = [k for k in one["metrics"] if k.startswith(("best.", "test."))]
    assert len(keys) > 6
    return [one["metrics"][k] for k in keys] == [other["metrics"][k] for k in keys]


def same_weights(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


def a_worker(runs: Runs) -> psutil.Process:
    return runs.cluster.workers()[-1]


def test_killed_worker(runs: Runs, calm: dict[str, Any]) -> None:
    printed, said, _ = runs.disturbed(
        "killed", lambda: a_worker(runs).kill(), "scaling.num_workers=2"
    )
    assert same_numbers(printed, calm)
    assert same_weights(runs.weights("killed"), runs.weights("calm"))
    assert "goes on from its last checkpoint" in said
    assert runs.epochs("killed") == [1, 2, 3]
    run = runs.recorded("killed")
    assert run.info.status == "FINISHED"
    assert "goes on from its last checkpoint" in run.data.tags["morel.retry"]


def test_hanging_worker(runs: Runs, calm: dict[str, Any]) -> None:
    printed, said, seconds = runs.disturbed(
        "hanging",
        lambda: a_worker(runs).send_signal(signal.SIGSTOP),
        *("scaling.num_workers=2", "scaling.hang_timeout_s=6"),
    )
    assert same_numbers(printed, calm)
    assert seconds > 6
    assert "goes on from its last checkpoint" in said


def test_damaged_checkpoint(runs: Runs, calm: dict[str, Any]) -> None:
    def damage() -> None:
        file = runs.newest("damaged") / "last.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        a_worker(runs).kill()

    printed, said, _ = runs.disturbed("damaged", damage, "scaling.num_workers=2", after=2)
    assert same_numbers(printed, calm)
    assert "is damaged (last.safetensors: missing, truncated or altered" in said
    assert "went on from checkpoint_" in runs.recorded("damaged").data.tags["morel.damaged"]
