"""Replay searches on a table of trained settings: what each finds, and at what cost.

    python -m benchmarks.search_replay --out benchmarks/results/search_replay.json

The contenders' own searchers and schedulers are asked and told exactly as in a search; only the
training is looked up in `search_table.json`, so that a hundred seeds cost minutes. All contenders
of a seed begin with the same point, drawn at random: the published one would be half the answer.
Several workers run trials at a time, by a simulated clock.

- Cost: CPU seconds of training. An epoch costs the table's median over the settings with as many
  attack steps, so that a moment's load on the machine is not taken for a setting's price. A search
  of ours trains no setting twice (``reuse``): one that was trained to its end before costs nothing.
- Found: the best robust accuracy among trials trained to the end, each by its best epoch, as a
  search without verification chooses its winner.
- Each seed's random search trains ``--trials`` settings to the end. Against it stands the cost at
  which a contender has found what random search found in the end.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import RESULTS, record, settings, write
from benchmarks.search_table import SPACE, key
from morel_core.statistics import binomial_tail, paired_t
from orchestrator.compare.pareto import hypervolume
from orchestrator.search.parameters import Values
from orchestrator.search.schedulers import make_scheduler
from orchestrator.search.searcher import SpaceSearcher
from orchestrator.search.space import SearchConfig, load_search

TABLE = RESULTS / "search_table.json"
STOP = "STOP"


@dataclass(frozen=True)
class Table:
    """The trained settings."""

    epochs: int
    curves: Mapping[str, list[tuple[float, float]]]
    """Point → (clean, robust) after each epoch; shorter than ``epochs``: it diverged."""
    costs: Mapping[str, float]
    """Point → CPU seconds of an epoch."""

    @staticmethod
    def read(path: Path = TABLE) -> Table:
        """Raises FileNotFoundError if it has not been made."""
        content = json.loads(path.read_text())
        images, rows, epochs = content["holdout"], content["rows"], content["epochs"]
        curves: dict[str, list[tuple[float, float]]] = {}
        seconds: dict[str, list[float]] = {}
        for point, row in rows.items():
            right = (row[name].split() for name in ("clean_accuracy", "robust_accuracy"))
            pairs = zip(*right, strict=True)
            curves[point] = [(int(clean) / images, int(robust) / images) for clean, robust in pairs]
            if len(curves[point]) == epochs:
                seconds.setdefault(attack_step(point), []).append(row["cpu_seconds"] / epochs)
        costs = {point: statistics.median(seconds[attack_step(point)]) for point in rows}
        return Table(epochs, curves, costs)

    def report(self, params: Values, epoch: int) -> dict[str, Any]:
        """What the trial reports after ``epoch``, counted from 1."""
        curve = self.curves[key(params)]
        diverged = epoch > len(curve)
        clean, robust = (0.0, 0.0) if diverged else curve[epoch - 1]
        values = {
            "epoch": epoch,
            "num_epochs": self.epochs,
            "clean_accuracy": clean,
            "robust_accuracy": robust,
            "diverged": float(diverged),
        }
        seen = curve[:epoch]
        if seen:
            best = max(range(len(seen)), key=lambda index: seen[index][1])
            values |= {"best_epoch": best + 1}
            values |= {"best_clean_accuracy": seen[best][0], "best_robust_accuracy": seen[best][1]}
        return values


def attack_step(point: str) -> str:
    """The part of a point that decides what an epoch costs."""
    return point.rpartition(" ")[2]


# --- contenders -----------------------------------------------------------------------------------


class OptunaAsItComes:
    """Ray's OptunaSearch with nothing but the space, after the same baseline."""

    def __init__(self, search: SearchConfig, *, both: bool = False) -> None:
        from ray import tune
        from ray.tune.search.optuna import OptunaSearch

        ranges = {name: tune.randint(p.low, p.high + 1) for name, p in search.space.sampled.items()}  # pyright: ignore[reportAttributeAccessIssue]
        metric: Any = ["robust_accuracy", "clean_accuracy"] if both else "robust_accuracy"
        mode: Any = ["max", "max"] if both else "max"
        self.count = 0
        self.inner = OptunaSearch(
            OptunaSearch.convert_search_space(ranges),
            metric=metric,
            mode=mode,
            seed=search.seed,
            points_to_evaluate=[search.space.baselines["paper"]],
        )

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The next point, as `SpaceSearcher` gives it."""
        self.count += 1
        return {"params": self.inner.suggest(trial_id), "index": self.count - 1}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Nothing: what it does with it depends on how it was made."""
        if not isinstance(self.inner.metric, list):  # it refuses them with several metrics
            self.inner.on_trial_result(
                trial_id, dict(result) | {"training_iteration": result["epoch"]}
            )

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """The trial's last numbers."""
        self.inner.on_trial_complete(trial_id, dict(result))


def asha_as_it_comes(search: SearchConfig) -> Any:
    """Ray's ASHA, told only how long trials are."""
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(time_attr="epoch", max_t=search.base.training.epochs)


@dataclass(frozen=True)
class Contender:
    """A searcher and a scheduler, made anew for each seed."""

    overrides: tuple[str, ...]
    """On top of the space's file."""
    searcher: Callable[[SearchConfig], Any] = SpaceSearcher
    scheduler: Callable[[SearchConfig], Any] = make_scheduler


UNLIMITED = "num_trials=400"  # the budget ends before
CONTENDERS = {
    "random": Contender(("searcher.name=random", "scheduler.name=none")),
    "default": Contender((UNLIMITED,)),
    "default without reuse": Contender((UNLIMITED, "reuse=false")),
    "tradeoff": Contender((UNLIMITED, "objective.metric=tradeoff", "scheduler.name=pareto")),
    "random + ASHA": Contender((UNLIMITED, "searcher.name=random")),
    "Optuna as it comes": Contender((UNLIMITED, "scheduler.name=none"), OptunaAsItComes),
    "Optuna + ASHA as they come": Contender((UNLIMITED,), OptunaAsItComes, asha_as_it_comes),
}


# --- replaying ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """A trial trained to its end, at that cost of the whole search."""

    cost: float
    clean: float
    robust: float


def replay(
    contender: Contender, table: Table, seed: int, workers: int, budget: float
) -> tuple[list[Done], float]:
    """Run one search on the table until it has spent ``budget`` or proposed all its trials.

    Returns:
        The trials trained to the end in the order in which they ended, and what all cost.
    """
    done: list[Done] = []
    spent = 0.0
    with tempfile.TemporaryDirectory(prefix="morel-replay-") as folder:  # schedulers write there
        place = ("name=replay", f"storage_path={folder}", f"seed={seed}")
        search = load_search(str(SPACE), [*contender.overrides, *first_point(seed), *place])
        searcher, scheduler = contender.searcher(search), contender.scheduler(search)
        scheduler.set_search_properties(search.objective.metric, "max")
        reuses = search.reuse and contender.searcher is SpaceSearcher
        for report, ended, spent in steps(searcher, scheduler, table, workers, reuses):
            if spent > budget:
                break
            if ended and report["epoch"] == table.epochs and not report["diverged"]:
                best = report["best_clean_accuracy"], report["best_robust_accuracy"]
                done.append(Done(spent, *best))
    return done, spent


def first_point(seed: int) -> list[str]:
    """The point that all contenders of a seed begin with, as overrides of the space's file."""
    draws = random.Random(seed)
    space = load_search(str(SPACE)).space
    return [
        f"baselines.paper.{name}={draws.randint(p.low, p.high)}"  # pyright: ignore[reportAttributeAccessIssue]
        for name, p in space.sampled.items()
    ]


@dataclass
class StandIn:
    """A Tune trial as far as schedulers look at it."""

    trial_id: str
    config: dict[str, Any]
    epoch_cost: float

    def invalidate_json_state(self) -> None:
        """Of a real one: what was cached of it is out of date."""


def steps(
    searcher: Any, scheduler: Any, table: Table, workers: int, reuses: bool
) -> Iterator[tuple[dict[str, Any], bool, float]]:
    """Every epoch of every trial by the clock: report, whether its last, cost so far."""
    clock: list[
        tuple[float, int, StandIn, int]
    ] = []  # when an epoch ends, a tie-breaker, whose, which
    spent, number = 0.0, 0
    known: set[str] = set()  # points trained to their end, if they are not trained again

    def begin(now: float) -> None:
        nonlocal number
        trial_id = f"t{number:06d}"
        suggested = searcher.suggest(trial_id)
        if not isinstance(suggested, dict):
            return
        number += 1
        point = key(suggested["params"])
        trial = StandIn(trial_id, suggested, 0.0 if point in known else table.costs[point])
        scheduler.on_trial_add(None, trial)
        heapq.heappush(clock, (now + trial.epoch_cost, number, trial, 1))

    for _ in range(workers):
        begin(0.0)
    while clock:
        now, _, trial, epoch = heapq.heappop(clock)
        spent += trial.epoch_cost
        report = table.report(trial.config["params"], epoch)
        last = epoch == table.epochs or report["diverged"] > 0
        if last:
            scheduler.on_trial_complete(None, trial, report)
            known |= {key(trial.config["params"])} if reuses else set()
        else:
            last = scheduler.on_trial_result(None, trial, report) == STOP
        if last:
            searcher.on_trial_complete(trial.trial_id, report)
            begin(now)
        else:
            searcher.on_trial_result(trial.trial_id, report)
            number += 1
            heapq.heappush(clock, (now + trial.epoch_cost, number, trial, epoch + 1))
        yield report, last, spent


def cost_to_reach(done: list[Done], robust: float) -> float:
    """Cost at which a trial as robust as that was done; infinite if there was none."""
    return next((trial.cost for trial in done if trial.robust >= robust), math.inf)


def volume(done: list[Done]) -> float:
    """Hypervolume of the clean and robust accuracies, from (0, 0)."""
    return hypervolume([(trial.clean, trial.robust) for trial in done])


# --- summing up -----------------------------------------------------------------------------------


def median_interval(values: list[float]) -> dict[str, float]:
    """Median and the 95 % interval of order statistics, which assumes no distribution."""
    ordered, n = sorted(values), len(values)
    rank = max(
        (k for k in range(1, n // 2 + 1) if binomial_tail(n - k + 1, n, 0.5) <= 0.025), default=1
    )
    return {
        "median": statistics.median(ordered),
        "low": ordered[rank - 1],
        "high": ordered[n - rank],
    }


def summary(seeds: list[dict[str, Any]], name: str, reference: str = "random") -> dict[str, Any]:
    """How a contender fared against random search, over the seeds."""
    ratios = [seed[name]["cost_to_reach"] / seed[reference]["cost"] for seed in seeds]
    firsts = [seed[name]["cost_to_reach"] / seed[reference]["cost_to_reach"] for seed in seeds]
    volumes = [[seed[which]["hypervolume"] for seed in seeds] for which in (name, reference)]
    gains = paired_t(*volumes)
    return {
        "cost ratio": median_interval(ratios),
        "cost ratio to random's first": median_interval(firsts),
        "reached": sum(math.isfinite(ratio) for ratio in ratios) / len(ratios),
        "hypervolume difference": {"mean": gains.difference, "low": gains.low, "high": gains.high},
        "robust accuracy": statistics.fmean(seed[name]["robust_accuracy"] for seed in seeds),
    }


def finite(value: Any) -> Any:
    """Infinities as None, which JSON knows."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value


def main() -> None:
    """Replay, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--trials", type=int, default=64, help="of random search")
    parser.add_argument("--workers", type=int, default=4, help="trials at a time")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    table = Table.read()
    seeds: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        reference = Contender((*CONTENDERS["random"].overrides, f"num_trials={args.trials}"))
        found, budget = replay(reference, table, seed, args.workers, math.inf)
        best = max(trial.robust for trial in found)
        row: dict[str, Any] = {}
        for name, contender in CONTENDERS.items():
            done = found
            if name != "random":
                done, _ = replay(contender, table, seed, args.workers, budget)
            row[name] = {
                "cost": budget,
                "cost_to_reach": cost_to_reach(done, best),
                "hypervolume": volume(done),
                "robust_accuracy": max((trial.robust for trial in done), default=0.0),
                "trials_to_the_end": len(done),
            }
        seeds.append(row)
    result = {
        "benchmark": "search_replay",
        "n": args.seeds,
        "settings": len(table.curves),
        "best_in_table": max(max(r for _, r in curve) for curve in table.curves.values() if curve),
        "contenders": {name: finite(summary(seeds, name)) for name in CONTENDERS},
        **record(torch.device("cpu"), settings(args)),
        "seeds": [{name: finite(values) for name, values in row.items()} for row in seeds],
    }
    for name, values in result["contenders"].items():
        print(name, json.dumps(values))
    if args.out is not None:
        write(args.out, result)


if __name__ == "__main__":
    main()
