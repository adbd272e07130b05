"""What an accuracy objective sees of one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from morel_core.config import ObjectiveConfig
from morel_core.distributed import Shard


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Logits of this rank's rows, and where in training they were made.

    Args:
        logits: (b, K) of the clean images; None when the objective asked for no natural pass.
        logits_adv: (b, K) of the adversarial images.
        y: (b,) int64 labels.
        epoch: counted from 1.
        num_epochs: length of the run.
        shard: this rank's part of the global batch; its means are exact under DDP.
    """

    logits: Tensor | None
    logits_adv: Tensor
    y: Tensor
    epoch: int
    num_epochs: int
    shard: Shard

    @property
    def natural(self) -> Tensor:
        """The clean logits; raises ValueError if the objective was declared to need none."""
        if self.logits is None:
            raise ValueError("this objective reads the natural logits: register it as needing them")
        return self.logits


AccuracyObjective = Callable[[Outputs, ObjectiveConfig], dict[str, Tensor]]
"""Named parts, each a weighted scalar made by `Shard.mean`; the accuracy objective is their sum."""
