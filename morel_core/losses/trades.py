"""TRADES (Zhang et al. 2019, eq. 5): accuracy on clean images and a KL term for robustness."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from morel_core.config import ObjectiveConfig
from morel_core.losses.outputs import Outputs


def trades(outputs: Outputs, config: ObjectiveConfig) -> dict[str, Tensor]:
    """``natural_ce`` + ``kl`` = CE(f(x), y) + β · KL(p ‖ p'); gradients through p and p'."""
    shard = outputs.shard
    log_p = F.log_softmax(outputs.natural, dim=1)
    log_p_adv = F.log_softmax(outputs.logits_adv, dim=1)
    kl = F.kl_div(log_p_adv, log_p, reduction="none", log_target=True).sum(1)
    return {
        "natural_ce": shard.mean(F.nll_loss(log_p, outputs.y, reduction="none")),
        "kl": config.beta * shard.mean(kl),
    }
