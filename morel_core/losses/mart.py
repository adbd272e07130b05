"""MART (Wang et al. 2020, eq. 9): boosted cross-entropy and a KL term weighted by 1 − p_y."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from morel_core.config import ObjectiveConfig
from morel_core.losses.outputs import Outputs


def largest_other(probs: Tensor, y: Tensor) -> Tensor:
    """``max_{k≠y} p_k``: (B, K), (B,) → (B,)."""
    return probs.scatter(1, y[:, None], -1.0).amax(1)


def mart(outputs: Outputs, config: ObjectiveConfig) -> dict[str, Tensor]:
    """``boosted_ce`` + ``weighted_kl``; gradients also through the weight's p_y, as published."""
    shard, y = outputs.shard, outputs.y
    log_p = F.log_softmax(outputs.natural, dim=1)
    probs = log_p.exp()
    probs_adv = F.softmax(outputs.logits_adv, dim=1)
    margin = -torch.log(1.0001 - largest_other(probs_adv, y) + 1e-12)
    boosted = F.cross_entropy(outputs.logits_adv, y, reduction="none") + margin
    # Not F.kl_div: its own log of a probability that underflowed to 0 has gradient NaN.
    kl = (probs * (log_p - torch.log(probs_adv + 1e-12))).sum(1)
    weight = 1.0000001 - probs.gather(1, y[:, None])[:, 0]
    return {
        "boosted_ce": shard.mean(boosted),
        "weighted_kl": config.beta * shard.mean(kl * weight),
    }
