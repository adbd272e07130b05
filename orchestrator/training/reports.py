"""What a training process reports: plain numbers, and where and how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from morel_core import Trainer
from morel_core.micro_batches import has_batchnorm
from orchestrator.training.keys import TRAIN_SECONDS, TRAINED, TWIN
from orchestrator.training.recovery import DAMAGED
from orchestrator.training.twins import Twin

# Schedulers and searchers need a number from every trial: a diverged one reports the worst.
WORST = {"robust_accuracy": 0.0, "clean_accuracy": 0.0}
# Ray Train keeps the checkpoints of highest score; one that nobody has measured yet has the lowest.
SCORE = "validation_score"
UNVALIDATED = {SCORE: -1.0}


def reports(trainer: Trainer, again: Sequence[dict[str, float]] = ()) -> Iterator[dict[str, Any]]:
    """The remaining run as reports: the newest metrics, and all ``epochs`` since the last report.

    The epochs ``again``, which are trained but which nobody knows of, are reported first.

    A report comes after each measured epoch, so that every report carries the accuracies; a run
    that diverges ends with the worst ones and ``diverged = 1``. With ``evaluation.asynchronous``
    there are none yet.
    """
    since: list[dict[str, float]] = []
    later = trainer.config.evaluation.asynchronous
    for place, metrics in enumerate(chain(again, trainer.epochs())):
        since.append(metrics)
        ended = trainer.done and place >= len(again) - 1
        if "robust_accuracy" in metrics or ended or (later and trainer.is_measured):
            spent = train_seconds(trainer.history, int(metrics["epoch"]))
            numbers = {**metrics, TRAIN_SECONDS: spent, "epochs": since}
            yield {**(UNVALIDATED if later else WORST), **numbers}
            since = []


def train_seconds(history: Sequence[Mapping[str, float]], last: int) -> float:
    """What epochs up to ``last`` took, with their measurements, whoever trained them and when."""
    keys = ("seconds", "seconds_evaluation")
    return sum(m.get(key, 0.0) for m in history if m["epoch"] <= last for key in keys)


def up_to(last: int | None, reports: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The reports up to that of epoch ``last``; None: all."""
    for report in reports:
        yield report
        if report["epoch"] == last:
            return


def circumstances(trainer: Trainer, twin: Twin | None = None, damaged: str = "") -> dict[str, Any]:
    """What a report says beside the numbers: where and how they were made, and by whom."""
    slices = trainer.config.training.micro_batches
    return {
        "device": device_name(trainer.device),
        **elastic(trainer),
        "batchnorm_slices": slices if slices > 1 and has_batchnorm(trainer.net) else 0,
        **({DAMAGED: damaged} if damaged else {}),
        **({TWIN: twin.run_id, TRAINED: trainer.epoch} if twin is not None else {}),
    }


def elastic(trainer: Trainer) -> dict[str, Any]:
    """Of an elastic run: ``workers``, how many trained it and when, and if that shows in BatchNorm.

    ``batchnorm_workers`` is ``workers`` where there were several numbers and the net has BatchNorm.
    """
    counts = [(int(m["epoch"]), int(m["workers"])) for m in trainer.history if "workers" in m]
    changes = [
        f"{count} from epoch {epoch} on"
        for place, (epoch, count) in enumerate(counts)
        if place == 0 or count != counts[place - 1][1]
    ]
    if not changes:
        return {}
    workers = ", ".join(changes)
    shows = len(changes) > 1 and has_batchnorm(trainer.net)
    return {"workers_by_epoch": workers, **({"batchnorm_workers": workers} if shows else {})}


def device_name(device: Any) -> str:
    """``cpu`` or the GPU's name."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
