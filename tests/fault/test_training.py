"""What trains is killed, stopped or starved, on a real cluster of two nodes of one CPU each.

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

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

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


def test_full_storage(runs: Runs, calm: dict[str, Any]) -> None:
    """No process of the run may write more than a kilobyte to a file from epoch 1 on."""
    process = runs.start("full", "scaling.num_workers=2")
    wait_until(lambda: len(runs.epochs("full")) >= 1, 150, "epoch 1")
    for worker in runs.cluster.workers():
        worker.rlimit(psutil.RLIMIT_FSIZE, (1024, 1024))
    out, err = finished(process)
    assert process.returncode == 2, out + err
    assert "what was saved before is whole: make room in storage_path" in " ".join(err.split())
    again = runs.start("full", "scaling.num_workers=2")
    out, err = finished(again)
    assert again.returncode == 0, err
    assert same_numbers(runs.final("full"), calm)


def test_elastic_run(runs: Runs, calm: dict[str, Any]) -> None:
    """A node leaves without a word; another joins."""
    cluster = runs.cluster

    def leave() -> None:
        worker = a_worker(runs)
        node = next(n for n in cluster.nodes if worker.pid in {p.pid for p in n.processes()})
        cluster.kill_node(node)

    printed, said, _ = runs.disturbed(
        "elastic",
        leave,
        *("scaling.num_workers=[1,2]", "model.norm=batch", "training.epochs=5"),
    )
    assert printed["stop_reason"] == "all 5 epochs trained"
    assert "trained by 1 worker(s)" in said
    assert "BatchNorm takes its statistics of each worker's part" in said
    run = runs.recorded("elastic")
    assert run.data.tags["morel.workers"].startswith("2 from epoch 1 on, 1 from epoch 2 on")
    assert "BatchNorm" in run.data.tags["morel.differs"]
    history = MlflowClient(runs.uri).get_metric_history(run.info.run_id, "workers")
    assert sorted(h.step for h in history) == [1, 2, 3, 4, 5]


def test_elastic_run_grows(runs: Runs) -> None:
    """Begun on one node; one that joins is used."""
    for node in runs.cluster.nodes[1:]:
        runs.cluster.kill_node(node)
    process = runs.start("grows", "scaling.num_workers=[1,2]", "training.epochs=30")
    try:
        wait_until(lambda: len(runs.epochs("grows")) >= 1, 150, "epoch 1")
        joined = time.monotonic()
        runs.cluster.add_node()
        wait_until(lambda: len(runs.cluster.workers()) >= 2, 120, "a second worker")
        print(f"grows: {time.monotonic() - joined:.1f} s from a node's start to its worker")
        _, err = finished(process)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "trained by 2 worker(s)" in err
    assert runs.recorded("grows").data.tags["morel.workers"].startswith("1 from epoch 1 on, 2 ")


def test_preemption_notice(runs: Runs) -> None:
    """Saved by time alone, nothing would be saved before the end."""
    cluster = runs.cluster
    if len(cluster.nodes) < 2:
        cluster.add_node()

    def notice() -> None:
        worker = a_worker(runs)
        node = next(n for n in cluster.nodes if worker.pid in {p.pid for p in n.processes()})
        cluster.drain(node_id_of(node), 20)
        wait_until(
            lambda: any((runs.storage / "notice").glob("checkpoint_*/manifest.json")), 60, "saved"
        )
        cluster.kill_node(node)

    printed, _, _ = runs.disturbed(
        "notice",
        notice,
        *("scaling.num_workers=[1,2]", "checkpoint.every_seconds=1000", "training.epochs=40"),
    )
    assert printed["stop_reason"] == "all 40 epochs trained"
    assert runs.epochs("notice") == list(range(1, 41))
    workers = runs.recorded("notice").data.tags["morel.workers"]
    assert workers.startswith("2 from epoch 1 on, 1 from epoch ")  # the first were not lost


def node_id_of(node: Any) -> str:
    """The id that Ray gave a node, from its raylet's command."""
    for process in node.processes():
        for word in process.cmdline():
            if word.startswith("--node_id="):
                return word.partition("=")[2]
    raise AssertionError("the node has no raylet")
