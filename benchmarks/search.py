"""What a search costs beside the training of its trials.

    python -m benchmarks.search thousand --out benchmarks/results/search_thousand.json
    python -m benchmarks.search overhead --out benchmarks/results/search_overhead.json
    python -m benchmarks.search parallel --out benchmarks/results/search_parallel.json

`thousand`: 1,000 trials of 0.3 s that train nothing, through the real Ray Tune, Optuna and MLflow
(SQLite): what the driver's loop, its memory, the writer and `morel compare` take. `overhead`: wall
time of a real trial less its training, for one worker in a reused actor, and for two through Ray
Train against an empty Ray Train job. `parallel`: trials a minute, two at a time against one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ray import tune as ray_tune

from benchmarks.measure import record, settings, spread, write
from orchestrator.cluster import ray_session
from orchestrator.compare import load_runs
from orchestrator.search.space import SearchConfig, load_search
from orchestrator.search.trials import TrialBook
from orchestrator.tracking import Journal, Recorder, records
from orchestrator.tune import tune

SPACE = Path(__file__).parent / "spaces" / "overhead.yaml"
EPOCHS = 3
SECONDS = 0.1  # an epoch of the stub


class Stub(ray_tune.Trainable):
    """A trial that trains nothing: numbers from a formula, and a checkpoint of one line."""

    def setup(self, config: dict[str, Any], base: Any = None, milestones: Any = None) -> None:
        """A point's numbers; ``base`` and ``milestones`` as a real trial gets them."""
        self.params, self.epoch = config["params"], 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial in this process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch."""
        time.sleep(SECONDS)
        self.epoch += 1
        robust = 0.8 * self.epoch / EPOCHS - abs(self.params["k1"] - 0.3) / 4
        accuracies = {"clean_accuracy": 0.9 - robust / 10, "robust_accuracy": robust}
        values = {
            key + end: value + more
            for key, value in accuracies.items()
            for end, more in (("", 0.0), ("_low", -0.02), ("_high", 0.02))
        }
        metrics = {
            "epoch": self.epoch,
            "num_epochs": EPOCHS,
            "diverged": 0.0,
            "lr": 0.1,
            "seconds": SECONDS,
            "loss.total": 1.0,
            **values,
            **{f"best_{key}": value for key, value in values.items()},
            "best_epoch": self.epoch,
        }
        done = self.epoch == EPOCHS
        return {**metrics, "epochs": [metrics], "device": "cpu", "done": done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Something small."""
        Path(checkpoint_dir, "stub").write_text("stub")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was learned."""


class Stopwatch:
    """Wall seconds inside functions of one thread, nested calls counted once."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._thread = threading.get_ident()
        self._inside = False

    def watch(self, owner: type, name: str, label: str) -> Any:
        """A patch of ``owner.name`` that adds the time of its calls to ``label``."""
        inner: Callable[..., Any] = getattr(owner, name)

        @wraps(inner)
        def timed(*arguments: Any, **named: Any) -> Any:
            if self._inside or threading.get_ident() != self._thread:
                return inner(*arguments, **named)
            self._inside, started = True, time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                self._inside = False
                self.seconds[label] += time.perf_counter() - started

        return mock.patch.object(owner, name, timed)


@contextmanager
def watched() -> Generator[Stopwatch]:
    """Inside, what the driver's loop does for recording is timed."""
    watch = Stopwatch()
    patches = [
        watch.watch(TrialBook, name, "recording")
        for name in ("start", "result", "complete", "error", "adopt")
    ]
    patches.append(watch.watch(Recorder, "flush", "draining"))
    for patch in patches:
        patch.start()
    try:
        yield watch
    finally:
        for patch in patches:
            patch.stop()


def peak_mib() -> float:
    """Most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- a thousand trials ----------------------------------------------------------------------------


def thousand(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trials that train nothing, and then the table of them."""
    search = config(folder, f"num_trials={args.trials}", "final.trials=none")
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(Stub, base=None, milestones=[]), {"CPU": 1.0}
    )
    loop: dict[str, float] = {}

    def timed_end(book: TrialBook, inner: Any = TrialBook.end) -> None:
        loop["seconds"] = time.perf_counter() - started
        inner(book)

    with (
        mock.patch("orchestrator.tune.make_trainable", return_value=trainable),
        mock.patch.object(records, "DELIVERY_S", 600.0),
        mock.patch.object(TrialBook, "end", timed_end),
        watched() as watch,
    ):
        started = time.perf_counter()
        result = tune(search)
    uri = f"sqlite:///{folder}/mlflow.db"
    cold, query = compare_seconds(uri, str(folder))
    ids = recorded_ids(uri)
    return {
        "trials": len(result.trials),
        "lost": args.trials - len({trial.run_id for trial in result.trials}),
        "runs_in_mlflow": len(ids),
        "doubled_in_mlflow": len(ids) - len(set(ids)),
        "all_recorded": result.recorded,
        "loop_seconds": loop["seconds"],
        "recording_share_of_loop": watch.seconds["recording"] / loop["seconds"],
        "drained_after_s": watch.seconds["draining"],
        "driver_peak_mib": peak_mib(),
        "compare_cold_s": cold,
        "compare_query_s": query,
    }


def recorded_ids(uri: str) -> list[str]:
    """Our ids of all trials in MLflow."""
    return [run.run_id for run in load_runs(uri, "morel") if run.kind == "trial"]


def compare_seconds(uri: str, storage: str) -> tuple[float, float]:
    """`morel compare` in a process of its own, and its query alone in this one, after a first."""
    command = [sys.executable, "-m", "orchestrator", "compare", "--json", f"storage_path={storage}"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    cold = time.perf_counter() - started
    load_runs(uri, "morel")
    started = time.perf_counter()
    load_runs(uri, "morel")
    return cold, time.perf_counter() - started


# --- beside the training --------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """A trial as the driver's journal tells of it."""

    begun: float
    ended: float
    trained: float
    """Seconds of training and measuring, by the trainer's own clock."""


def spans(folder: Path, name: str) -> list[Span]:
    """The trials of a search in the order of their ends."""
    begun: dict[str, float] = {}
    trained: Counter[str] = Counter()
    found: list[Span] = []
    for event in Journal(f"{folder}/{name}/journal").events():
        if event.run_id == name:  # the search's own
            continue
        begun.setdefault(event.run_id, event.time)
        if event.kind == "epoch":
            metrics = event.payload["metrics"]
            trained[event.run_id] += metrics["seconds"] + metrics.get("seconds_evaluation", 0.0)
        elif event.kind == "final" and event.run_id in begun:
            # What comes after a trial's end (the winner's test) is not of the trial.
            found.append(Span(begun.pop(event.run_id), event.time, trained[event.run_id]))
            begun[event.run_id] = math.inf
    return [span for span in found if span.begun < math.inf]


def beside_training(found: list[Span]) -> list[float]:
    """Seconds from one trial's end to the next one's, less its training; one trial at a time."""
    pairs = itertools.pairwise(found)
    return [after.ended - before.ended - after.trained for before, after in pairs]


def overhead(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Real trials one at a time: in a reused actor, and of two workers through Ray Train."""
    with ray_session(config(folder).base, dashboard=True):
        few = f"num_trials={args.trials}"
        tune(config(folder, few, "max_concurrent=1", "name=one"))
        tune(config(folder, few, "max_concurrent=1", "name=two", "resources.workers=2"))
        empty = [empty_job(folder, number) for number in range(args.trials)]
    one, two = (beside_training(spans(folder, name)) for name in ("one", "two"))
    return {
        "seconds": {
            "one worker": spread(one),
            "two workers": spread(two),
            "empty Ray Train job": spread(empty),
        },
        "two workers / empty job": statistics.median(two) / statistics.median(empty),
        "n": {"trials after the first": len(one), "empty jobs": len(empty)},
    }


def empty_job(folder: Path, number: int) -> float:
    """Wall seconds of a Ray Train job of two workers that report once."""
    from ray import train
    from ray.train.torch import TorchTrainer

    def report() -> None:
        train.report({"epoch": 1})

    trainer = TorchTrainer(
        report,
        scaling_config=train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=train.RunConfig(name=f"empty_{number}", storage_path=str(folder)),
    )
    started = time.perf_counter()
    trainer.fit()
    return time.perf_counter() - started


def parallel(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trials of one thread a minute, from the first one's begin to the last one's end."""
    rates: dict[int, float] = {}
    longer = ("overrides.training.epochs=12", f"num_trials={args.trials}")
    with ray_session(config(folder).base, dashboard=False):
        for at_a_time in (1, 2):
            name = f"at_a_time_{at_a_time}"
            tune(config(folder, *longer, f"max_concurrent={at_a_time}", f"name={name}"))
            found = spans(folder, name)
            whole = max(s.ended for s in found) - min(s.begun for s in found)
            rates[at_a_time] = 60 * len(found) / whole
    return {
        "trials_per_minute": {str(k): v for k, v in rates.items()},
        "ratio": rates[2] / rates[1],
        "n": args.trials,
    }


def config(folder: Path, *overrides: str) -> SearchConfig:
    """The benchmark's search, recorded in ``folder``."""
    own = (f"storage_path={folder}", "name=search", "reuse=false")  # each trial is to be trained
    return load_search(str(SPACE), [*own, *overrides])


BENCHMARKS = {"thousand": thousand, "overhead": overhead, "parallel": parallel}
TRIALS = {"thousand": 1_000, "overhead": 6, "parallel": 8}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=BENCHMARKS)
    parser.add_argument("--trials", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    args.trials = args.trials or TRIALS[args.what]
    with tempfile.TemporaryDirectory(prefix="morel-benchmark-") as folder:
        measured = BENCHMARKS[args.what](args, Path(folder))
    result = {
        "benchmark": f"search_{args.what}",
        **measured,
        **record(torch.device("cpu"), settings(args)),
    }
    result["versions"] |= {package: version(package) for package in ("ray", "optuna", "mlflow")}
    print(json.dumps(measured, indent=1))
    if args.out is not None:
        write(args.out, result)


if __name__ == "__main__":
    main()
