"""Real signals to real commands: how soon records are closed, and that the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.tracking import Journal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SMALL = [
    *("model.width=4", "data.holdout=60", "data.train_size=320", "data.test_size=60"),
    *("attack.num_steps=2", "evaluation.attack.num_steps=3", "checkpoint.every_seconds=0"),
]
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


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore it
    )


def happened(folder: Path) -> list[Any]:
    return list(Journal(f"{folder}/journal").events())


def ends(folder: Path) -> dict[str, Any]:
    """The newest end of each run whose last event it is."""
    last = {event.run_id: event for event in happened(folder)}
    return {run_id: event for run_id, event in last.items() if event.kind == "final"}


def until(true: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_is_closed_within_two_seconds(
    tmp_path: Path, number: int, record_property: Any
) -> None:
    folder = tmp_path / "run"
    command = ["train", "digits", *SMALL, "training.epochs=1000"]
    process = start(*command, f"storage_path={tmp_path}", "name=run")
    until(lambda: len(epochs(folder, "run")) > 1, process)
    took = closed_after(process, number, folder, runs=1)
    record_property("seconds to close", took)
    print(f"train, signal {number}: closed after {took:.2f} s")
    assert took < CLOSED_S


def test_a_search_is_closed_within_two_seconds_and_goes_on(tmp_path: Path) -> None:
    space, folder = tmp_path / "space.yaml", tmp_path / "hunt"
    space.write_text(SPACE)
    command = ["tune", str(space), f"storage_path={tmp_path}", "name=hunt"]
    process = start(*command)

    def running() -> list[str]:
        return [e.run_id for e in happened(folder) if e.kind == "epoch"]

    until(lambda: len(set(running())) == 2, process)
    took = closed_after(process, signal.SIGTERM, folder, runs=3)
    print(f"tune, SIGTERM: closed after {took:.2f} s")
    assert took < CLOSED_S
    seen = len(running())
    process = start(*command)
    until(lambda: len(running()) > seen + 2, process)
    closed_after(process, signal.SIGINT, folder, runs=3)
    for run_id in set(running()):
        numbers = epochs(folder, run_id)
        assert numbers == list(range(1, len(numbers) + 1))


def test_morel_stop_saves_a_run_and_its_command_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["train", "digits", *SMALL, "checkpoint.every_seconds=1000", "training.epochs=1000"]
    command += [f"storage_path={tmp_path}", "name=run"]
    process = start(*command)
    until(lambda: len(epochs(folder, "run")) > 1, process)
    asked = time.monotonic()
    stop = start("stop", "run", f"storage_path={tmp_path}")
    said, error = stop.communicate(timeout=60)
    assert stop.returncode == 0, error
    assert "asked to pause" in said
    _, error = process.communicate(timeout=60)
    print(f"morel stop: ended after {time.monotonic() - asked:.1f} s")
    assert process.returncode == 130
    assert "paused by morel stop" in error
    assert list(folder.glob("checkpoint_*"))
    reached = epochs(folder, "run")[-1]
    until_epoch = [argument for argument in command if argument != "training.epochs=1000"]
    again = start(*until_epoch, f"training.epochs={reached + 2}", "--json")
    printed, error = again.communicate(timeout=200)
    assert again.returncode == 0, error
    assert json.loads(printed)["epochs"] == reached + 2
    assert epochs(folder, "run") == list(range(1, reached + 3))


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["train", "digits", *SMALL, "training.epochs=8", "--json"]
    command += [f"storage_path={tmp_path}", "name=run"]
    process = start(*command)
    until(lambda: len(epochs(folder, "run")) > 2, process)
    process.kill()
    process.communicate()
    reached, began = len(epochs(folder, "run")), time.monotonic()
    again = start(*command)
    until(lambda: len(epochs(folder, "run")) > reached or again.poll() == 0, again)
    print(f"train, SIGKILL at epoch {reached}: the next after {time.monotonic() - began:.1f} s")
    printed, error = again.communicate(timeout=200)
    assert again.returncode == 0, error
    assert epochs(folder, "run") == list(range(1, 9))
    assert json.loads(printed)["epochs"] == 8
