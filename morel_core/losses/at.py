"""Adversarial training (Madry et al. 2018): cross-entropy on the adversarial images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from morel_core.config import ObjectiveConfig
from morel_core.losses.outputs import Outputs
from morel_core.losses.trades import negative_log_likelihood


def at(outputs: Outputs, config: ObjectiveConfig) -> dict[str, Tensor]:
    """``adversarial_ce`` = CE(f(x'), y); needs no natural pass."""
    log_p_adv = F.log_softmax(outputs.logits_adv, dim=1)
    ce = negative_log_likelihood(log_p_adv, outputs.y, config.label_smoothing)
    return {"adversarial_ce": outputs.shard.mean(ce)}
