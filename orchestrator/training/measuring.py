"""Tasks that measure a run's checkpoint: beside training, to verify it, on the test set."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import train

from morel_core import MorelError, Trainer, evaluate
from morel_core.attacks.catalogue import make_attacks
from morel_core.evaluation import examine, suspicious
from morel_core.export import export_model
from morel_core.statistics import wilson_interval
from orchestrator.training.worker import config_from, set_threads


def load_best(values: dict[str, Any], checkpoint: train.Checkpoint) -> Trainer:
    """The trainer of a finished run with its best network in place."""
    config = config_from(values)
    set_threads(config.scaling.cpus_per_worker)
    trainer = Trainer(config, device="cuda" if config.scaling.gpus_per_worker > 0 else "cpu")
    with checkpoint.as_directory() as folder:
        trainer.load(folder)
    if trainer.best is None and not config.evaluation.asynchronous:
        raise MorelError("the run ended before its first measurement: there is no best network")
    trainer.load_best()
    return trainer


def measure_checkpoint(values: dict[str, Any], checkpoint: train.Checkpoint) -> dict[str, Any]:
    """The trainer's own metrics of an epoch that was saved without them, and ``epoch``."""
    config = config_from(values)
    set_threads(config.scaling.cpus_per_worker)
    trainer = Trainer(config, device="cuda" if config.scaling.gpus_per_worker > 0 else "cpu")
    with checkpoint.as_directory() as folder:
        trainer.load(folder)
    return {"epoch": trainer.epoch, **trainer.measure()}


def measure_verified(
    values: dict[str, Any], checkpoint: train.Checkpoint, attacks: list[str], num_images: int | None
) -> str:
    """Measure the best network of a run on held-out images, and look for masked gradients.

    Args:
        values: the run's plain config, whose evaluation attack gives the ball.
        checkpoint: of the run.
        attacks: names as in `morel_core.attacks.catalogue`.
        num_images: only the first so many held-out images; None: all.

    Returns:
        JSON: ``evaluation``, the record with its outcomes per image; ``worst_case`` over all
        attacks; ``findings`` of `examine` and `suspicious`; ``seconds`` that all of it took.
    """
    started = time.perf_counter()
    trainer = load_best(values, checkpoint)
    settings, holdout = trainer.config.evaluation, trainer.data.holdout
    indices = torch.arange(num_images or len(holdout))
    x = holdout.fetch(indices).to(trainer.device)
    y = holdout.labels[indices].to(trainer.device)
    result = evaluate(
        trainer.net,
        x,
        y,
        make_attacks(attacks, settings.attack),
        batch_size=settings.batch_size,
        seed=settings.seed,
        split="holdout",
    )
    found = examine(
        trainer.net,
        x,
        y,
        eps=settings.attack.eps,
        norm=settings.attack.norm,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    right, n = int(result.worst_case().sum()), len(y)
    low, high = wilson_interval(right, n)
    return json.dumps(
        {
            "evaluation": json.loads(result.to_json()),
            "worst_case": {"accuracy": right / n, "accuracy_low": low, "accuracy_high": high},
            "findings": [asdict(finding) for finding in [*found, *suspicious(result)]],
            "seconds": time.perf_counter() - started,
        },
        indent=2,
    )


def measure_final(
    values: dict[str, Any], checkpoint: train.Checkpoint, attacks: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure the best network of a run on the test set, once, and export it.

    Args:
        values: the run's plain config, whose evaluation attack gives the ball.
        checkpoint: of the run.
        attacks: names as in `morel_core.attacks.catalogue`; default: the evaluation attack.

    Returns:
        ``record``: the evaluation's record; ``files``: name → content of the exported model;
        ``seconds`` that all of it took.
    """
    started = time.perf_counter()
    trainer = load_best(values, checkpoint)
    asked = make_attacks(attacks, trainer.config.evaluation.attack)
    result = trainer.evaluate("test", asked or {trainer.eval_attack.name: trainer.eval_attack})
    with tempfile.TemporaryDirectory(prefix="morel-export-") as folder:
        export_model(trainer.net, trainer.data.shape, Path(folder))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return {
        "record": result.record(),
        "json": result.to_json(),
        "files": files,
        "shape": list(trainer.data.shape),
        "num_classes": trainer.data.num_classes,
        "seconds": time.perf_counter() - started,
    }
