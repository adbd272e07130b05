"""The head of a cluster dies under a job, and a new one comes: `morel submit` submits it again."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from ray_heads import ROOT, Head

from orchestrator.provenance.revision import revision

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECRET = "planted-password"
EPOCHS = 30
TRAIN = [
    *("train", "digits", "name=lost", f"training.epochs={EPOCHS}", "checkpoint.every_seconds=0"),
    *("model.width=4", "data.train_size=320", "data.holdout=60", "data.test_size=60"),
    *("attack.num_steps=2", "evaluation.attack.num_steps=3"),
]


@dataclass
class Lost:
    """A job that needed two heads."""

    storage: Path
    seen: list[str]
    """Keys in the journal when the head died."""
    secrets: list[str]
    """Processes of the cluster that had the password of who submitted."""
    recovered_s: float
    """From the death of the first head until the first epoch under the second …"""
    start_s: float
    """… of which starting the second took so long."""
    ended: subprocess.CompletedProcess[str]


def journal(storage: Path) -> list[dict[str, Any]]:
    path = storage / "lost" / "journal" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for_epochs(storage: Path, number: int, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while sum(event["kind"] == "epoch" for event in journal(storage)) < number:
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def lost() -> Iterator[Lost]:
    head = Head()
    job: subprocess.Popen[str] | None = None
    try:
        head.start()
        storage = head.folder / "runs"
        job = subprocess.Popen(
            [
                *(sys.executable, "-m", "orchestrator", "submit", "--retries", "1"),
                *("--wait", "120", "--", *TRAIN, f"storage_path={storage}"),
            ],
            cwd=ROOT,
            env=head.environment | {"MLFLOW_TRACKING_PASSWORD": SECRET},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_epochs(storage, 3, job)
        secrets: list[str] = []
        for process in head.processes():
            with contextlib.suppress(psutil.Error):
                if SECRET in process.environ().values():
                    secrets.append(process.name())
        head.kill()
        died = time.monotonic()
        seen = [event["key"] for event in journal(storage)]
        head.start()
        started = time.monotonic()
        already = sum(key.startswith("epoch") for key in seen)
        wait_for_epochs(storage, already + 1, job)
        recovered = time.monotonic() - died
        out, err = job.communicate(timeout=300)
        done = subprocess.CompletedProcess(job.args, job.returncode, out, err)
        yield Lost(storage, seen, secrets, recovered, started - died, done)
    finally:
        if job is not None:
            job.kill()
        head.remove()


def test_the_command_ends_as_if_nothing_had_happened(lost: Lost) -> None:
    print(
        f"\nrecovered in {lost.recovered_s:.1f} s, {lost.start_s:.1f} of them the new head's start"
    )
    assert lost.ended.returncode == 0, lost.ended.stderr
    assert "the head is lost" in lost.ended.stderr
    assert "(1 of 1 retries)" in lost.ended.stderr
    assert f"epoch {EPOCHS}" in lost.ended.stdout


def test_nothing_is_lost_or_doubled(lost: Lost) -> None:
    events = journal(lost.storage)
    keys = [event["key"] for event in events]
    assert keys[: len(lost.seen)] == lost.seen
    trained = [event["payload"]["epoch"] for event in events if event["kind"] == "epoch"]
    assert trained == list(range(1, EPOCHS + 1))
    client = MlflowClient(f"sqlite:///{lost.storage}/mlflow.db")
    experiment = client.get_experiment_by_name("morel")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    rows = client.get_metric_history(run.info.run_id, "holdout.clean")
    assert [row.step for row in rows] == trained


def test_the_revision_travels_along(lost: Lost) -> None:
    client = MlflowClient(f"sqlite:///{lost.storage}/mlflow.db")
    experiment = client.get_experiment_by_name("morel")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    tags = {
        key: run.data.tags[key] for key in ("morel.commit", "morel.diff") if key in run.data.tags
    }
    assert tags == revision(ROOT).tags()


def test_credentials_of_who_submits_stay_here(lost: Lost) -> None:
    assert lost.secrets == []
