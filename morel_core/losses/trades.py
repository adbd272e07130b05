"""TRADES (Zhang et al. 2019, eq. 5): accuracy on clean images and a KL term for robustness."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from morel_core.config import ObjectiveConfig
from morel_core.losses.outputs import Outputs


def negative_log_likelihood(log_p: Tensor, y: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of a target that is ``smoothing`` uniform (Szegedy et al. 2016) and y else.

    Args:
        log_p: (b, K) log-probabilities.
        y: (b,) int64 labels, or (b, K) probabilities.
        smoothing: in [0, 1).

    Returns:
        (b,).
    """
    soft = y.is_floating_point()
    loss = -(y * log_p).sum(1) if soft else F.nll_loss(log_p, y, reduction="none")
    return loss if smoothing == 0 else (1 - smoothing) * loss - smoothing * log_p.mean(1)


def trades(outputs: Outputs, config: ObjectiveConfig) -> dict[str, Tensor]:
    """``natural_ce`` + ``kl`` = CE(f(x), y) + β · KL(p ‖ p'); gradients through p and p'."""
    shard = outputs.shard
    log_p = F.log_softmax(outputs.natural, dim=1)
    log_p_adv = F.log_softmax(outputs.logits_adv, dim=1)
    kl = F.kl_div(log_p_adv, log_p, reduction="none", log_target=True).sum(1)
    return {
        "natural_ce": shard.mean(negative_log_likelihood(log_p, outputs.y, config.label_smoothing)),
        "kl": config.beta * shard.mean(kl),
    }
