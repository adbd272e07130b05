"""A measurement that fails in two ways; Ray imports this module on its workers."""

from __future__ import annotations

import os
from typing import Any

from ray.train import Checkpoint

from orchestrator.training import measuring


def measure_checkpoint(values: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """`measuring.measure_checkpoint`, but epoch 1 raises and epoch 2 takes its process along."""
    metrics = measuring.measure_checkpoint(values, checkpoint)
    if metrics["epoch"] == 1:
        raise RuntimeError("no such attack")
    if metrics["epoch"] == 2:
        os._exit(7)
    return metrics
