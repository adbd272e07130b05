"""Adversarial training (Madry et al. 2018): cross-entropy on the adversarial images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from morel_core.config import ObjectiveConfig
from morel_core.losses.outputs import Outputs


def at(outputs: Outputs, config: ObjectiveConfig) -> dict[str, Tensor]:
    """``adversarial_ce`` = CE(f(x'), y); needs no natural pass."""
    ce = F.cross_entropy(
        outputs.logits_adv, outputs.y, reduction="none", label_smoothing=config.label_smoothing
    )
    return {"adversarial_ce": outputs.shard.mean(ce)}
