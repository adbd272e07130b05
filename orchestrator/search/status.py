"""``status.json``: what the driver of a search says of it, for whoever sees the storage."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from orchestrator import storage
from orchestrator.search.budget import Cost
from orchestrator.search.selection import VERIFYING
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import Trial
from orchestrator.search.trials import TrialBook
from orchestrator.tracking import records

FILE = "status.json"
STALE_S = 30.0
"""A driver that has said nothing for so long is taken for dead."""
ENDED = ("finished", "paused", "interrupted", "failed")
"""States of a search without a driver; before them it is starting, training, verifying, …"""
GOES_ON = "goes on with its search"
ACCURACIES = (
    "best_clean_accuracy",
    "best_robust_accuracy",
    "best_robust_accuracy_low",
    "best_robust_accuracy_high",
)


def read(folder: str) -> dict[str, Any] | None:
    """The status of the search in ``folder``; None if there is none that can be read."""
    text = storage.read_text(f"{folder}/{FILE}")
    try:
        content = json.loads(text) if text else None
    except ValueError:
        return None
    return cast("dict[str, Any]", content) if isinstance(content, dict) else None


def write(folder: str, status: Mapping[str, Any]) -> None:
    """Replace the status as a whole."""
    storage.write(f"{folder}/{FILE}", json.dumps(status).encode())


def silence(status: Mapping[str, Any]) -> float | None:
    """Seconds since a driver that should be there was heard; None if all is well, or it ended."""
    quiet = time.time() - float(status["updated"])
    return quiet if status["state"] not in ENDED and quiet > STALE_S else None


def describe(
    book: TrialBook,
    *,
    state: str,
    cost: Cost,
    held: Mapping[str, float],
    there: tuple[float, float] | None,
    concurrent: int,
    waiting: Mapping[str, str],
    folders: Mapping[str, str],
) -> dict[str, Any]:
    """The status of a search, plain.

    Args:
        book: its trials.
        state: of the search, such as ``training`` or ``paused``.
        cost: spent so far.
        held: seconds that each trial has cost, by run id, for the next driver.
        there: (CPUs, GPUs) of the cluster, once they are known.
        concurrent: trials at a time.
        waiting: why a trial has no resources, by run id.
        folders: names of the trials' folders, by run id.
    """
    search, trials, now = book.search, book.trials, time.time()
    if state in ENDED:
        waiting = {t.run_id: GOES_ON for t in trials if t.state == "running"}
    asked = search.resources
    busy = sum(
        (trial.state == "running" and trial.run_id not in waiting) or trial.standing == VERIFYING
        for trial in trials
    )
    used = (
        busy * asked.workers * asked.cpus_per_worker,
        busy * asked.workers * asked.gpus_per_worker,
    )
    kinds = ("cpus", "gpus")
    entries = [_entry(trial, waiting, folders, now) for trial in trials]
    counts = Counter(str(entry["state"]) for entry in entries)
    counts["not started"] = search.total_trials - len(trials)
    return {
        "name": search.base.name,
        "parent": search.parent,
        "state": state,
        "updated": now,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "folder": f"{search.base.storage_path}/{search.base.name}",
        "metric": search.objective.metric,
        "attack": records.evaluation_label(search.base),
        "total_trials": search.total_trials,
        "counts": {key: count for key, count in counts.items() if count},
        "best": _best(search, trials),
        "used": dict(zip(kinds, used, strict=True)),
        "there": dict(zip(kinds, there, strict=True)) if there else None,
        "cost": vars(cost),
        "held_seconds": dict(held),
        "budget": {k: v for k, v in vars(search.budget).items() if v is not None},
        "seconds_left": seconds_left(search, trials, cost, concurrent, now),
        "cut": book.cut or None,
        "trials": entries,
    }


def _entry(
    trial: Trial, waiting: Mapping[str, str], folders: Mapping[str, str], now: float
) -> dict[str, Any]:
    why = waiting.get(trial.run_id, "")
    state = "waiting" if why and trial.state == "running" else trial.state
    starting = state == "running" and not trial.last
    return {
        "number": trial.number,
        "run_id": trial.run_id,
        "label": trial.label,
        "state": state,
        "why": trial.reason or why or ("starting" if starting else ""),
        "standing": trial.standing,
        "rung": trial.rung or None,
        "epoch": trial.epoch,
        "num_epochs": trial.last.get("num_epochs"),
        **{key.removeprefix("best_"): trial.last.get(key) for key in ACCURACIES},
        "held_seconds": trial.held_until(now),
        "folder": folders.get(trial.run_id),
    }


def _best(search: SearchConfig, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The measured trial of the highest rung with the best number so far."""
    key = f"best_{search.objective.scalar}"
    measured = [t for t in trials if t.measured and t.state in ("running", "finished", "stopped")]
    best = max(measured, key=lambda t: (t.rung, float(t.last[key])), default=None)
    if best is None:
        return None
    numbers = {name.removeprefix("best_"): best.last.get(name) for name in ACCURACIES}
    return {"number": best.number, "label": best.label, "epoch": best.epoch, **numbers}


def seconds_left(
    search: SearchConfig, trials: Sequence[Trial], cost: Cost, concurrent: int, now: float
) -> float | None:
    """Until all trials are done, if the others take as long as those so far; None: nothing known.

    A running trial that is further than the ended ones took is expected to train to its end.
    """
    ended = [trial.held for trial in trials if trial.state != "running" and trial.held]
    running = [trial for trial in trials if trial.state == "running"]
    whole = {
        trial.run_id: trial.held * trial.length / trial.epoch for trial in running if trial.epoch
    }
    lengths = ended or list(whole.values())
    if not lengths:
        return None
    mean = sum(lengths) / len(lengths)
    rest = mean * (search.total_trials - len(trials))
    for trial in running:
        held, end = trial.held_until(now), whole.get(trial.run_id, mean)
        rest += (mean if held < mean else max(end, held)) - held
    left = rest / max(1, concurrent)
    wall = search.budget.wall_time_s
    return left if wall is None else max(0.0, min(left, wall - cost.wall_seconds))
