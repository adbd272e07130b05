"""A network that masks its gradients, and Ray's entry points on workers that know it.

Ray imports this module wherever it unpickles something of it, and the model is registered there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from morel_core.models import MODELS, DigitsCnn, DigitsCnnConfig
from orchestrator.search import one_worker_trial
from orchestrator.training import measuring


@dataclass(frozen=True, kw_only=True)
class SaturatingConfig(DigitsCnnConfig):
    """A `DigitsCnn` whose features grow when it is attacked or measured."""

    scale: float = 1.0


class Saturating(DigitsCnn):
    """Trained at temperature 1, used at 1 / scale, as defensive distillation does.

    The softmax saturates, the cross-entropy's gradient underflows to zero and PGD stays where it
    starts (Papernot et al. 2016; broken by Carlini & Wagner 2017). Predictions are as before.
    """

    def __init__(self, config: SaturatingConfig, num_classes: int, channels: int) -> None:
        super().__init__(config, num_classes, channels)
        self.scale = config.scale

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return self.fc(features if self.training else self.scale * features)


@MODELS.register("saturating", SaturatingConfig)
def saturating(
    config: SaturatingConfig, num_classes: int, shape: tuple[int, int, int]
) -> Saturating:
    """See `Saturating`."""
    return Saturating(config, num_classes, shape[0])


class Trial(one_worker_trial.MorelTrial):
    """`one_worker_trial.MorelTrial`, in a process that knows the model."""


def measure_verified(*arguments: Any) -> str:
    """`measuring.measure_verified`, in a process that knows the model."""
    return measuring.measure_verified(*arguments)


def measure_final(*arguments: Any) -> dict[str, Any]:
    """`measuring.measure_final`, in a process that knows the model."""
    return measuring.measure_final(*arguments)
