"""Searches under random faults: `python -m tests.fault.soak --minutes 30 --seed 1 --out FILE`.

Small searches run one after the other on a local cluster of several Ray nodes, recorded by an
MLflow server, while faults come at random times: a trial's process, the driver or a node is
SIGKILLed, the driver is told to end (SIGTERM), a second one is started beside it, the server goes
away for some seconds, the newest checkpoint is truncated. Each search must end with every trial,
none lost and none doubled, in Tune's state, journal and MLflow.

A trial is tried again `scaling.max_failures` times after its process was lost; so the processes of
a search's trials are killed that often, alone or with their node, and its drivers are ended as
often, so that it comes to an end. Of what there is to break comes what came least so far.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

from orchestrator.provenance.revision import revision
from orchestrator.search.resume import saved_trials
from tests.fault.clusters import Cluster, events
from tests.servers import free_port, kill_group, start_mlflow

TRIALS, EPOCHS = 4, 20
ENOUGH = 3
"""Faults of a kind in `KILLS`, and in `ENDS`, that a search has: `scaling.max_failures`."""
KILLS, ENDS = ("worker", "node"), ("driver", "interrupt")
OTHERS = ("mlflow", "checkpoint", "second")
PAUSE_S = 5.0
"""Between two faults, in the mean."""
LOST_AFTER_S = 400.0
"""A search that takes longer counts as lost."""
SPACE = f"""
recipe: digits
overrides:
  training.epochs: {EPOCHS}
  model.width: 4
  data: {{holdout: 60, train_size: 320, test_size: 60}}
  attack.num_steps: 2
  evaluation.attack.num_steps: 3
  checkpoint.every_seconds: 0
scheduler: {{name: none}}
reuse: false
num_trials: {TRIALS}
parameters:
  objective.alpha: {{type: float, low: 1.0e-6, high: 1.0, log: true}}
baselines:
  paper: {{objective.alpha: 1.0e-5}}
"""


@dataclass
class Outcome:
    """What became of all searches."""

    searches: int = 0
    faults: Counter[str] = field(default_factory=lambda: Counter[str]())
    lost: list[str] = field(default_factory=lambda: list[str]())
    """Trials or epochs that should be there, and are not."""
    doubled: list[str] = field(default_factory=lambda: list[str]())
    """Those that are there more than once."""
    refused: list[str] = field(default_factory=lambda: list[str]())
    """What a command said that ended without having been killed, and not well."""


class Soak:
    """One cluster, one MLflow server, and a search at a time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.outcome = Outcome()
        self.folder = Path(tempfile.mkdtemp(prefix="soak-"))
        self.cluster = Cluster()
        self.cluster.add_nodes(2, cpus=1)
        self.port = free_port()
        self.server = start_mlflow(self.folder, self.port)
        self.space = self.folder / "space.yaml"
        self.space.write_text(SPACE)

    def close(self) -> None:
        """End all that was started; what was lost or doubled can still be looked at."""
        self.cluster.stop()
        kill_group(self.server)
        if not (self.outcome.lost or self.outcome.doubled):
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def storage(self) -> Path:
        return self.folder / "runs"

    def command(self, name: str, seed: int) -> list[str]:
        return [
            *("tune", str(self.space), "--json", f"storage_path={self.storage}", f"name={name}"),
            *(f"tracking.uri=http://127.0.0.1:{self.port}", f"seed={seed}"),
        ]

    # --- one search -------------------------------------------------------------------------------

    def search(self, number: int) -> None:
        """Run a search to its end under faults, and look at what it left."""
        name, began = f"soak{number}", time.monotonic()
        command = self.command(name, number)
        driver, had = self.start(command), Counter[str]()
        while time.monotonic() - began < LOST_AFTER_S:
            pause = time.monotonic() + self.random.expovariate(1 / PAUSE_S)
            while driver.poll() is None and time.monotonic() < pause:
                time.sleep(0.1)
            code = driver.poll()
            if code == 0:
                break
            if code is not None:
                self.refuse(name, code)
                driver = self.start(command)
                continue
            possible = self.random.sample(left(had), k=len(left(had)))
            possible.sort(key=(self.outcome.faults + had).__getitem__)
            fault = next(f for f in possible if getattr(self, f"fault_{f}")(command, driver))
            had[fault] += 1
            print(f"{name}: {fault} after {time.monotonic() - began:.0f} s", flush=True)
            if fault in ENDS:
                driver = self.start(command)
        else:
            driver.kill()
            driver.wait()
            self.outcome.lost.append(f"{name}: not ended after {LOST_AFTER_S:.0f} s")
            return
        self.outcome.faults += had
        self.outcome.searches += 1
        self.look(name)
        print(f"{name}: ended after {time.monotonic() - began:.0f} s", flush=True)

    def start(self, command: Sequence[str], log: str = "driver") -> subprocess.Popen[bytes]:
        with (self.folder / f"{log}.err").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *command],
                env=self.cluster.environment,
                cwd=self.folder,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def refuse(self, name: str, code: int) -> None:
        said = (self.folder / "driver.err").read_text().strip().splitlines()
        self.outcome.refused.append(f"{name}: exit code {code}: {(said or [''])[-1]}")
        print(self.outcome.refused[-1], flush=True)

    # --- faults; False: there was nothing to break ------------------------------------------------

    def fault_worker(self, command: Sequence[str], driver: subprocess.Popen[bytes]) -> bool:
        workers = self.cluster.workers()
        if workers:
            self.random.choice(workers).kill()
        return bool(workers)

    def fault_node(self, command: Sequence[str], driver: subprocess.Popen[bytes]) -> bool:
        if not self.cluster.workers():
            return False
        self.cluster.kill_node(self.random.choice(self.cluster.nodes))
        self.cluster.wait_for_nodes(1 + len(self.cluster.nodes))
        self.cluster.add_node()
        return True

    def fault_driver(self, command: Sequence[str], driver: subprocess.Popen[bytes]) -> bool:
        driver.kill()
        driver.wait()
        return True

    def fault_interrupt(self, command: Sequence[str], driver: subprocess.Popen[bytes]) -> bool:
        driver.terminate()
        code = driver.wait()
        if code not in (130, -signal.SIGTERM, 0):  # before it hears signals; at its very end
            self.refuse("interrupt", code)
        return True

    def fault_second(self, command: Sequence[str], driver: subprocess.Popen[bytes]) -> bool:
        """Another driver of the same search, which must not get to work."""
        if not list(self.storage.glob(f"{name_of(command)}/lease/*.json")):
            return False
        code = self.start(command, "second").wait()
        said = (self.folder / "second.err").read_text()
        if (code == 0 and driver.poll() is None) or (code and "held by another driver" not in said):
            self.outcome.doubled.append(f"{name_of(command)}: a second driver: {code}: {said}")
        return True

    def fault_mlflow(self, command: Sequence[str], driver: subprocess.Popen[bytes]) -> bool:
        kill_group(self.server)
        time.sleep(self.random.uniform(0, 5))
        self.server = start_mlflow(self.folder, self.port)
        return True

    def fault_checkpoint(self, command: Sequence[str], driver: subprocess.Popen[bytes]) -> bool:
        found = self.storage.glob(f"{name_of(command)}/trial_*/checkpoint_*/*.safetensors")
        times: dict[Path, float] = {}
        for path in found:
            with contextlib.suppress(FileNotFoundError):  # it has made room for a newer one
                times[path] = path.stat().st_mtime
        with contextlib.suppress(ValueError, FileNotFoundError):
            newest = max(times, key=lambda path: times[path])
            os.truncate(newest, newest.stat().st_size // 2)
            return True
        return False

    # --- what is left -----------------------------------------------------------------------------

    def look(self, name: str) -> None:
        """Compare Tune's state, the journal and MLflow with what was asked for."""
        expected = list(range(1, TRIALS + 1))
        ended = [t for t in saved_trials(str(self.storage / name)) if t.status == "TERMINATED"]
        numbers = sorted(int(t.config["index"]) + 1 for t in ended)
        self.compare(f"{name}: Tune's trials", numbers, expected)
        happened = events(self.storage, name)
        starts = [e for e in happened if e["kind"] == "start" and e["payload"]["parent"] == name]
        numbers = sorted(int(e["payload"]["tags"]["morel.number"]) for e in starts)
        self.compare(f"{name}: journal's trials", numbers, expected)
        for start in starts:
            mine = [e for e in happened if e["run_id"] == start["run_id"] and e["kind"] == "epoch"]
            epochs = [e["payload"]["epoch"] for e in mine]
            self.compare(f"{start['run_id']}: journal's epochs", epochs, list(range(1, EPOCHS + 1)))
        self.look_at_mlflow(name, expected)

    def look_at_mlflow(self, name: str, expected: list[int]) -> None:
        synced = self.cluster.run("sync", name, f"storage_path={self.storage}")
        if synced.returncode:
            self.outcome.refused.append(f"{name}: sync: {synced.stderr.strip()}")
        client = MlflowClient(f"http://127.0.0.1:{self.port}")
        experiment = client.get_experiment_by_name("morel")
        assert experiment is not None
        runs = [
            run
            for run in client.search_runs([experiment.experiment_id], max_results=50_000)
            if run.data.tags.get("morel.search") == name
        ]
        trials = [run for run in runs if run.data.tags.get("morel.kind") == "trial"]
        numbers = sorted(int(run.data.tags["morel.number"]) for run in trials)
        self.compare(f"{name}: MLflow's trials", numbers, expected)
        self.compare(f"{name}: MLflow's searches", [len(runs) - len(trials)], [1])
        for run in runs:
            if run.info.status != "FINISHED":
                self.outcome.lost.append(f"{name}: MLflow's {run.info.run_name} {run.info.status}")
        for run in trials:
            history = client.get_metric_history(run.info.run_id, "holdout.clean")
            steps = sorted(point.step for point in history)
            self.compare(f"{name}: MLflow's epochs", steps, list(range(1, EPOCHS + 1)))

    def compare(self, what: str, found: list[int], expected: list[int]) -> None:
        missing, more = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
        if missing:
            self.outcome.lost.append(f"{what}: {sorted(missing.elements())}")
        if more:
            self.outcome.doubled.append(f"{what}: {sorted(more.elements())}")


def left(had: Counter[str]) -> list[str]:
    """The faults that a search may still have."""
    kinds = [kind for kind in (KILLS, ENDS) if sum(had[fault] for fault in kind) < ENOUGH]
    return [fault for kind in (*kinds, OTHERS) for fault in kind]


def name_of(command: Sequence[str]) -> str:
    """The name of the search that a command runs."""
    return next(a.removeprefix("name=") for a in command if a.startswith("name="))


def soak(minutes: float, seed: int) -> dict[str, Any]:
    """Searches until ``minutes`` are over; the last one is run to its end."""
    began = time.monotonic()
    running = Soak(seed)
    try:
        while time.monotonic() - began < 60 * minutes:
            running.search(running.outcome.searches + len(running.outcome.lost))
    finally:
        running.close()
    outcome = running.outcome
    return {
        "benchmark": "soak",
        "command": f"python -m tests.fault.soak --minutes {minutes:g} --seed {seed}",
        **revision().tags(),
        "seed": seed,
        "minutes": (time.monotonic() - began) / 60,
        "hardware": {
            "machine": platform.machine(),
            "cpus": len(psutil.Process().cpu_affinity()),
            "memory_gib": psutil.virtual_memory().total / 2**30,
            "python": platform.python_version(),
        },
        "trials_per_search": TRIALS,
        "epochs_per_trial": EPOCHS,
        "trials": TRIALS * outcome.searches,
        **asdict(outcome),
        "faults": dict(outcome.faults),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file of the result; default: printed only")
    arguments = parser.parse_args()
    result = soak(arguments.minutes, arguments.seed)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(f"{text}\n")
    return int(bool(result["lost"] or result["doubled"]))


if __name__ == "__main__":
    sys.exit(main())
