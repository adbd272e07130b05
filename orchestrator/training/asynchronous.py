"""Held-out evaluation beside training: Ray Train's validation tasks, for runs outside a search.

Every measured epoch saves a checkpoint, and a task measures it while the workers train on. The
numbers are those that the workers would have measured; they arrive later.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import ray
from ray.train import Checkpoint, Result, ValidationConfig

from morel_core.errors import MorelError
from orchestrator.config import RunConfig, to_dict
from orchestrator.messages.failures import failure_reason
from orchestrator.tracking import records
from orchestrator.training.measuring import measure_checkpoint
from orchestrator.training.relay import FAILED, VALIDATED
from orchestrator.training.reports import SCORE, UNVALIDATED

TIE = 1e-9
"""Less than any two accuracies that differ are apart, even times the number of epochs."""


def validation_config(config: RunConfig, queue: Any) -> ValidationConfig:
    """What Ray Train runs for each checkpoint; results also go to the driver's ``queue``."""
    fn: Any = partial(validate, values=to_dict(config), queue=queue, measure=measure_checkpoint)
    # This task only waits: the one that it starts has the resources.
    return ValidationConfig(fn=fn, ray_remote_kwargs={"num_cpus": 0})


def validate(
    checkpoint: Checkpoint, *, epoch: int, values: dict[str, Any], queue: Any, measure: Any
) -> dict[str, Any]:
    """``measure(values, checkpoint)`` in a task of its own, whose death costs this number alone.

    Ray Train survives an exception in a validation, but not the end of its process.
    """
    asked = values["scaling"]
    task = ray.remote(
        num_cpus=asked["cpus_per_worker"], num_gpus=asked["gpus_per_worker"], max_retries=1
    )(measure)
    try:
        metrics: dict[str, Any] = ray.get(task.remote(values, checkpoint))
    except Exception as error:
        reason = failure_reason(error)
        queue.put({FAILED: {"epoch": epoch, "reason": reason}})
        raise MorelError(f"epoch {epoch}: {reason}") from None
    queue.put({VALIDATED: metrics})
    return {**metrics, SCORE: score(metrics)}


def score(metrics: dict[str, Any]) -> float:
    """By which Ray keeps checkpoints, as the trainer keeps its best network.

    A later rung beats any number of an earlier one; of equal accuracies the earlier epoch wins.
    """
    return 2 * metrics.get("rung", 0) + metrics["robust_accuracy"] - TIE * metrics["epoch"]


def best_validated(result: Result) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The best of the validated checkpoints, with its metrics; None if no validation succeeded."""
    validated = [
        (checkpoint, metrics)
        for checkpoint, metrics in result.best_checkpoints or []
        if metrics.get(SCORE, UNVALIDATED[SCORE]) > UNVALIDATED[SCORE]
    ]
    return max(validated, key=lambda pair: pair[1][SCORE], default=None)


def best_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """A validated checkpoint's metrics as a trainer reports its best epoch's."""
    kept = ("epoch", "rung", "num_images", *records.accuracy_names("", ""))
    return {f"best_{key}": metrics[key] for key in kept if key in metrics}
