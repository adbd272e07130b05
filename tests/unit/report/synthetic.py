"""A search in MLflow that nobody ran: recorded by our tracker, at times of our choosing."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import torch
from pyarrow import parquet

from morel_core.evaluation import EvaluationResult, Outcome
from morel_core.statistics import wilson_interval
from orchestrator.config import compose, to_dict, with_overrides
from orchestrator.search.verified import Verified
from orchestrator.tracking import MlflowTracker, own_params, records
from orchestrator.tracking.events import Event

HOSTILE = "<script>alert('made')</script>"
"""What a user might write, and no browser must run."""
ATTACK, CHEAP = "pgd20_linf_0.1", "pgd5_linf_0.1_first150"
EPOCHS, RUNG = 6, 4
"""Epochs of a whole trial, and the first one on the last rung."""
STARTED = 1_795_000_000.0
SPACE: dict[str, Any] = {
    "k1": {"type": "float", "low": 0.0, "high": 0.5},
    "objective.alpha": {"type": "float", "low": 1e-6, "high": 1.0, "log": True},
    "attack.eps": {"type": "float", "low": 0.02, "high": 0.2},
    "objective.accuracy": {"type": "choice", "values": ["trades", "mart"]},
}


class Made:
    """Writes one search into the MLflow of ``storage``."""

    def __init__(self, storage: Path, experiment: str = "made", name: str = "hunt"):
        self.uri, self.experiment, self.name = f"sqlite:///{storage}/mlflow.db", experiment, name
        self.storage = storage
        self.config = compose(
            "digits",
            [
                f"name={name}",
                f"storage_path={storage}",
                f"tracking.experiment={experiment}",
                f"training.epochs={EPOCHS}",
            ],
        )
        self.tracker = MlflowTracker.connect(self.uri, experiment)
        self._seqs: Counter[str] = Counter()

    def event(self, run_id: str, kind: Any, at: float, **payload: Any) -> None:
        """One thing that happened, recorded."""
        seq = self._seqs[run_id]
        self._seqs[run_id] += 1
        self.tracker.apply(Event(run_id, seq, kind, f"{kind}:{seq}", STARTED + at, payload))

    def start(self, run_id: str, at: float, name: str, **payload: Any) -> None:
        """A run begins."""
        given = {"parent": None, "dataset": None}
        self.event(run_id, "start", at, name=name, **{**given, **payload})

    def final(self, run_id: str, at: float, **payload: Any) -> None:
        """A run ends."""
        given: dict[str, Any] = {"status": "FINISHED", "metrics": {}, "tags": {}, "artifacts": {}}
        given |= {"texts": {}, "note": None, "model": None}
        self.event(run_id, "final", at, **{**given, **payload})

    def search(self, trials: int, *, seed: int = 0, tags: dict[str, str] | None = None) -> None:
        """All of it: the first trial is the baseline ``paper``, half are stopped early.

        The two best whole trials are verified, and the better one wins.
        """
        draw = random.Random(seed)
        definition = {
            "name": "made",
            "source": "made.yaml",
            "description": "A search that nobody ran",
            "num_trials": trials,
            "seed": seed,
            "parameters": SPACE,
        }
        self.start(
            self.name,
            0.0,
            self.name,
            config={"search": definition, "base": to_dict(self.config)},
            params=records.params(self.config),
            tags=records.run_tags(self.config, "search") | {"morel.search": self.name},
        )
        ended = [self.trial(number, draw, tags or {}) for number in range(1, trials + 1)]
        best = sorted((t for t in ended if t[1] is not None), key=lambda t: -t[1])[:2]
        verified = [self.verify(run_id, robust, draw) for run_id, robust in best]
        winner = max(verified, key=lambda found: found[1])[0]
        for run_id, _ in verified:
            self.evaluate(run_id, draw, won=run_id == winner)
        self.final(
            self.name,
            20.0 * trials,
            stop_reason=f"{trials} trials",
            metrics={"cost.cpu_seconds": 10.0 * trials, "cost.gpu_seconds": 0.0}
            | {"cost.wall_seconds": 20.0 * trials, "search.trials": float(trials)},
            tags={"morel.state": "finished", "morel.winner_run": winner},
        )

    def trial(
        self, number: int, draw: random.Random, tags: dict[str, str]
    ) -> tuple[str, float | None]:
        """One trial; its robust accuracy where it came to its end."""
        point: dict[str, Any] = {
            "k1": draw.uniform(0, 0.5),
            "objective.alpha": 10 ** draw.uniform(-6, 0),
            "attack.eps": draw.uniform(0.02, 0.2),
            "objective.accuracy": draw.choice(["trades", "mart"]),
        }
        if number == 1:
            point = {"k1": 0.1, "objective.alpha": 1e-5, "attack.eps": 0.1} | {
                "objective.accuracy": "trades"
            }
        run_id, begin = f"{self.name}/{number:08x}", 10.0 * number
        overrides = {key: value for key, value in point.items() if "." in key}
        config = with_overrides(self.config, overrides)
        shared = records.params(self.config)
        name = (
            "paper" if number == 1 else f"k1={point['k1']:.3g} alpha={point['objective.alpha']:.3g}"
        )
        own = {"morel.search": self.name, "morel.kind": "trial", "morel.number": str(number)}
        own |= {"morel.point": json.dumps(point)}
        own |= {"morel.baseline": "paper"} if number == 1 else {}
        self.start(
            run_id,
            begin,
            f"{number:03d} {name}",
            config=to_dict(config),
            parent=self.name,
            params=own_params(records.params(config), shared, overrides),
            tags=records.run_tags(config, "trial") | own | tags,
        )
        good = (
            0.85
            - 2.5 * (point["attack.eps"] - 0.12) ** 2 * 10
            - 0.01 * abs(math.log10(point["objective.alpha"]) + 3)
        )
        whole = number == 1 or draw.random() < 0.5
        epochs = EPOCHS if whole else RUNG - 1
        metrics: dict[str, float] = {}
        for epoch in range(1, epochs + 1):
            robust = good * (1 - 0.5 / epoch) + draw.uniform(-0.02, 0.02)
            clean = 0.99 - 0.3 / epoch - 0.3 * point["attack.eps"] + draw.uniform(-0.01, 0.01)
            metrics = {"epoch": epoch, "best_epoch": epoch, "best_rung": 1 + (epoch >= RUNG)}
            metrics |= {"seconds": 1.0, "seconds_evaluation": 0.25, "loss.total": 1.0 / epoch}
            metrics |= accuracies("", clean, robust) | accuracies("best_", clean, robust)
            attack = ATTACK if epoch >= RUNG else CHEAP
            recorded = records.epoch_metrics(metrics, attack)
            self.event(run_id, "epoch", begin + 1.5 * epoch, epoch=epoch, metrics=recorded)
        attack = ATTACK if whole else CHEAP
        self.final(
            run_id,
            begin + 1.5 * epochs + 0.1,
            stop_reason=f"all {epochs} epochs trained"
            if whole
            else f"ASHA stopped it at epoch {epochs}",
            metrics=records.best_metrics(metrics, attack)
            | {
                "train.seconds": 1.5 * epochs,
                "cost.cpu_seconds": 1.5 * epochs,
                "cost.gpu_seconds": 0.0,
            },
            tags={"morel.state": "finished" if whole else "stopped", "morel.device": "cpu"},
        )
        return run_id, metrics["best_robust_accuracy"] if whole else None

    def training(self, name: str, robust: float, **overrides: Any) -> None:
        """What ``morel train`` records."""
        config = with_overrides(self.config, {"name": name, **overrides})
        self.start(
            name,
            0.0,
            name,
            config=to_dict(config),
            params=records.params(config),
            tags=records.run_tags(config, "train"),
        )
        for epoch in (1, 2):
            metrics = {"epoch": epoch, "seconds": 1.0, "best_epoch": epoch}
            metrics |= accuracies("", 0.9, robust) | accuracies("best_", 0.9, robust)
            recorded = records.epoch_metrics(metrics, ATTACK)
            self.event(name, "epoch", 2.0 * epoch, epoch=epoch, metrics=recorded)
        self.final(
            name,
            5.0,
            stop_reason="all 2 epochs trained",
            metrics=records.best_metrics(metrics, ATTACK),
            tags={"morel.state": "finished"},
        )

    def verify(self, run_id: str, robust: float, draw: random.Random) -> tuple[str, float]:
        """A candidate's verification."""
        result = outcomes({"square100_linf_0.1": (0.1, robust)}, 100, "holdout", draw)
        right = int(result.worst_case().sum())
        low, high = wilson_interval(right, 100)
        worst = {"accuracy": right / 100, "accuracy_low": low, "accuracy_high": high}
        content = {"evaluation": json.loads(result.to_json()), "worst_case": worst, "findings": []}
        document = json.dumps(content)
        verified = Verified.from_json(document)
        self.final(
            run_id,
            900.0,
            stop_reason="all epochs trained",
            metrics=verified.metrics,
            tags={
                "morel.verified.attacks": ", ".join(verified.attacks),
                "morel.masking": "no evidence",
                "morel.lost": "",
            },
            texts={"evaluation/verified.json": document},
        )
        return run_id, right / 100

    def evaluate(self, run_id: str, draw: random.Random, *, won: bool) -> None:
        """What ``morel evaluate`` leaves: a sweep over ε on the test set, with labels."""
        sweep = {f"pgd20_linf_{eps}": (eps, 0.95 - 2 * eps) for eps in (0.05, 0.1, 0.2)}
        result = outcomes(sweep, 120, "test", draw)
        table = self.storage / f"{run_id.rpartition('/')[2]}.parquet"
        parquet.write_table(pyarrow.table({"label": [i % 10 for i in range(120)]}), table)
        self.final(
            run_id,
            1000.0,
            stop_reason="all epochs trained",
            metrics=records.test_metrics(result.record()),
            tags={"morel.winner": str(won).lower()},
            texts={"evaluation/test-sweep.json": result.to_json()},
            artifacts={"evaluation/test-sweep.parquet": str(table)},
        )


def accuracies(prefix: str, clean: float, robust: float) -> dict[str, float]:
    """Of the trainer, with Wilson's intervals on 300 images."""
    found: dict[str, float] = {}
    for key, value in (("clean_accuracy", clean), ("robust_accuracy", robust)):
        right = min(300, max(0, round(300 * value)))
        low, high = wilson_interval(right, 300)
        name = f"{prefix}{key}"
        found |= {name: right / 300, f"{name}_low": low, f"{name}_high": high}
    return found


def outcomes(
    attacks: dict[str, tuple[float, float]], images: int, split: str, draw: random.Random
) -> EvaluationResult:
    """Images that fall one after the other as ε grows, in an order of their own."""
    order = [draw.random() for _ in range(images)]
    found = {"clean": _outcome("clean", {"attack": "none"}, None, 0.0, [o < 0.97 for o in order])}
    for name, (eps, accuracy) in attacks.items():
        right = [o < min(accuracy, 0.97) for o in order]
        found[name] = _outcome(name, {"attack": "pgd"}, "linf", eps, right)
    return EvaluationResult(
        outcomes=found,
        split=split,
        indices=torch.arange(images),
        model_hash="0" * 64,
        device="cpu",
        versions={"torch": torch.__version__},
    )


def _outcome(name: str, attack: Any, norm: Any, eps: float, right: list[bool]) -> Outcome:
    return Outcome(
        name=name,
        attack=attack,
        norm=norm,
        eps=eps,
        white_box=True,
        correct=torch.tensor(right),
        seed=0,
        seconds=0.5,
    )
