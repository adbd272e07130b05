"""A network that runs out of memory on large batches, and Ray's entry points that know it.

Ray imports this module wherever it unpickles something of it, and the model is registered there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from morel_core.models import MODELS, DigitsCnn, DigitsCnnConfig
from orchestrator.search import one_worker_trial
from orchestrator.training import measuring


@dataclass(frozen=True, kw_only=True)
class HungryConfig(DigitsCnnConfig):
    """A `DigitsCnn` on a device that holds so many images of a training batch."""

    holds: int = 16
    from_pass: int = 0
    """Passes in train mode before the first that fails."""


class Hungry(DigitsCnn):
    """Raises torch's own error for a larger batch in train mode."""

    def __init__(self, config: HungryConfig, num_classes: int, channels: int) -> None:
        super().__init__(config, num_classes, channels)
        self.left = config.from_pass
        self.holds = config.holds

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training
        if self.training and len(x) > self.holds and self.left < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().forward(x)


@MODELS.register("hungry", HungryConfig)
def hungry(config: HungryConfig, num_classes: int, shape: tuple[int, int, int]) -> Hungry:
    """See `Hungry`."""
    return Hungry(config, num_classes, shape[0])


class Trial(one_worker_trial.MorelTrial):
    """`one_worker_trial.MorelTrial`, in a process that knows the model."""


def measure_verified(*arguments: Any) -> str:
    """`measuring.measure_verified`, in a process that knows the model."""
    return measuring.measure_verified(*arguments)


def no_measurement(*arguments: Any) -> str:
    """Stands in for `measuring.measure_verified` where nothing is left to be verified."""
    raise AssertionError("it is verified once more")


def measure_final(*arguments: Any) -> dict[str, Any]:
    """`measuring.measure_final`, in a process that knows the model."""
    return measuring.measure_final(*arguments)
