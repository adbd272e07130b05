"""Real signals to real commands: how soon records are closed, and that the same command goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, wait_until

from orchestrator.tracking import Journal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SMALL = [
    *("model.width=4", "data.holdout=60", "data.train_size=320", "data.test_size=60"),
    *("attack.num_steps=2", "evaluation.attack.num_steps=3", "checkpoint.every_seconds=0"),
]
Start = Callable[..., subprocess.Popen[str]]
CLOSED_S = 2.0
"""What a record has to be closed in."""
SPACE = """
recipe: digits
overrides:
  training.epochs: 1000
  model.width: 4
  data: {holdout: 60, train_size: 320, test_size: 60}
  attack.num_steps: 2
  evaluation.attack.num_steps: 3
scheduler: {name: none}
num_trials: 2
parameters:
  objective.alpha: {type: float, low: 1.0e-6, high: 1.0, log: true}
baselines:
  paper: {objective.alpha: 1.0e-5}
"""


@pytest.fixture(scope="module")
def there() -> Iterator[Cluster]:
    """One node, on which MLflow may be a file."""
    cluster = Cluster(head_cpus=2)
    yield cluster
    cluster.stop()


def heard() -> None:
    """A shell's background job, as these tests may be, ignores SIGINT; and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(there: Cluster, tmp_path: Path) -> Iterator[Start]:
    """Starts commands on that Ray, with this test's storage; all are ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments, f"storage_path={tmp_path}"],
            env=there.environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heard,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def happened(folder: Path) -> list[Any]:
    return list(Journal(f"{folder}/journal").events())


def ends(folder: Path) -> dict[str, Any]:
    """The newest end of each run whose last event it is."""
    last = {event.run_id: event for event in happened(folder)}
    return {run_id: event for run_id, event in last.items() if event.kind == "final"}


def closed_after(process: subprocess.Popen[str], number: int, folder: Path, runs: int) -> float:
    """Seconds from a signal to the moment at which the last of ``runs`` records said KILLED."""
    sent = time.time()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    found = ends(folder)
    assert len(found) == runs
    assert {event.payload["status"] for event in found.values()} == {"KILLED"}
    first: dict[str, float] = {}
    for event in happened(folder):
        if event.kind == "final" and event.time >= sent:
            first.setdefault(event.run_id, event.time - sent)
    return max(first.values())


def epochs(folder: Path, run_id: str) -> list[int]:
    return [
        event.payload["epoch"]
        for event in happened(folder)
        if event.kind == "epoch" and event.run_id == run_id
    ]


RUN = ["train", "digits", *SMALL, "name=run"]


def begun(start: Start, folder: Path) -> subprocess.Popen[str]:
    """The run, started or started again, after two more epochs."""
    seen, process = len(epochs(folder, "run")), start(*RUN, "training.epochs=1000")
    wait_until(lambda: len(epochs(folder, "run")) > seen + 1, 120, "two epochs", process)
    return process


def finished(start: Start, folder: Path) -> None:
    """Train the run two epochs further, to its end: none is missing, and none there twice."""
    saved = epochs(folder, "run")[-1]
    printed, error = start(*RUN, f"training.epochs={saved + 2}", "--json").communicate()
    reached = json.loads(printed)["epochs"]
    assert reached >= saved + 2, error  # workers that were stopped had trained on
    assert epochs(folder, "run") == list(range(1, reached + 1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_run_is_closed_within_two_seconds(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """Then it goes on, and to its end."""
    folder = tmp_path / "run"
    took = closed_after(begun(start, folder), number, folder, runs=1)
    print(f"train, {number.name}: closed after {took:.2f} s")
    assert took < CLOSED_S
    finished(start, folder)


def test_a_killed_or_paused_run_goes_on(start: Start, tmp_path: Path) -> None:
    """SIGKILL, then `morel stop`, to one run."""
    folder = tmp_path / "run"
    process = begun(start, folder)
    process.kill()
    process.communicate()
    killed, reached = time.monotonic(), len(epochs(folder, "run"))
    process = begun(start, folder)
    print(f"train, SIGKILL at epoch {reached}: goes on {time.monotonic() - killed:.1f} s later")

    asked = time.monotonic()
    said, error = start("stop", "run").communicate(timeout=60)
    assert "asked to pause" in said, error
    _, error = process.communicate(timeout=60)
    print(f"morel stop: ended after {time.monotonic() - asked:.1f} s")
    assert process.returncode == 130
    assert "paused by morel stop" in error
    finished(start, folder)


def test_a_search_is_closed_within_two_seconds_and_goes_on(start: Start, tmp_path: Path) -> None:
    space, folder = tmp_path / "space.yaml", tmp_path / "hunt"
    space.write_text(SPACE)
    command = ["tune", str(space), "name=hunt"]
    process = start(*command)

    def running() -> list[str]:
        return [e.run_id for e in happened(folder) if e.kind == "epoch"]

    wait_until(lambda: len(set(running())) == 2, 120, "both trials", process)
    took = closed_after(process, signal.SIGTERM, folder, runs=3)
    print(f"tune, SIGTERM: closed after {took:.2f} s")
    assert took < CLOSED_S
    seen = len(running())
    process = start(*command)
    wait_until(lambda: len(running()) > seen + 2, 120, "three epochs", process)
    closed_after(process, signal.SIGINT, folder, runs=3)
    for run_id in set(running()):
        numbers = epochs(folder, run_id)
        assert numbers == list(range(1, len(numbers) + 1))
