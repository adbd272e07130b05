"""LOAT (logit-oriented adversarial training): MART or TRADES plus a regulariser of the logits.

An early phase holds the fluctuation of right predictions down, a late phase that of wrong ones.
Published code counts epochs from 0 and hard-codes the late phase at 100; here epochs count from 1
and the late phase is relative to the run's length.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from morel_core.config import ObjectiveConfig
from morel_core.losses.mart import mart
from morel_core.losses.outputs import Outputs
from morel_core.losses.trades import trades


def phase(
    config: ObjectiveConfig, epoch: int, num_epochs: int
) -> Literal["early", "middle", "late"]:
    """Which phase an epoch (counted from 1) belongs to; the late one defaults to the last tenth."""
    if epoch <= config.loat_early_epochs:
        return "early"
    late_start = config.loat_late_start or num_epochs - max(1, num_epochs // 10) + 1
    return "late" if epoch >= late_start else "middle"


def fluctuation(logits: Tensor, y: Tensor, measure: Literal["mse", "kl"]) -> Tensor:
    """Spread of the probability that is not on the label: (B, K), (B,) → (B,).

    mse: ``Σ_{k≠y} (p_k − (1 − p_y)/(K − 1))²``; kl: ``−log(1 − max_{k≠y} p_k)``.
    """
    if measure == "kl":
        # log(1 − p_j) as the log-sum of all others: finite where 1 − p_j rounds to 0.
        log_p = F.log_softmax(logits, dim=1)
        other = log_p.scatter(1, y[:, None], float("-inf")).argmax(1, keepdim=True)
        return -log_p.scatter(1, other, float("-inf")).logsumexp(1)
    probs = F.softmax(logits, dim=1)
    p_y = probs.gather(1, y[:, None])
    deviation = (probs - (1 - p_y) / (logits.shape[1] - 1)).square()
    return deviation.scatter(1, y[:, None], 0.0).sum(1)


def change(logits: Tensor, logits_adv: Tensor, measure: Literal["mse", "kl"]) -> Tensor:
    """How far the attack moved the probabilities, (B,).

    mse: ``Σ_k (p'_k − p_k)²``; kl: ``−log(1 − |p'_j − p_j|)`` at ``j = argmax p'``.
    """
    probs, probs_adv = F.softmax(logits, dim=1), F.softmax(logits_adv, dim=1)
    if measure == "mse":
        return (probs_adv - probs).square().sum(1)
    j = probs_adv.argmax(1, keepdim=True)
    moved = (probs_adv.gather(1, j) - probs.gather(1, j)).abs()[:, 0]
    return -torch.log1p(-moved.clamp(max=1 - torch.finfo(moved.dtype).eps))


def loat(outputs: Outputs, config: ObjectiveConfig) -> dict[str, Tensor]:
    """The base objective's parts, and in the early and late phase ``fluctuation``, ``lore``."""
    base = mart if config.loat_base == "mart" else trades
    parts = base(outputs, config)
    now = phase(config, outputs.epoch, outputs.num_epochs)
    if now == "middle":
        return parts
    logits, y, shard = outputs.natural, outputs.y, outputs.shard
    right = logits.argmax(1) == y
    fluc = fluctuation(logits, y, config.loat_measure)
    difference = shard.group_mean(fluc, right) - shard.group_mean(fluc, ~right)
    parts["fluctuation"] = config.loat_theta * (difference if now == "early" else -difference)
    if config.loat_lore:
        moved = change(logits, outputs.logits_adv, config.loat_measure)
        group = ~right if now == "early" else right
        parts["lore"] = config.loat_gamma * shard.group_mean(moved, group)
    return parts
