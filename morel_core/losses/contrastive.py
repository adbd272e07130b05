"""Multi-positive contrastive term (Khosla et al. 2020, as MOREL uses it; METHOD, L_con)."""

from __future__ import annotations

import torch
from torch import Tensor


def multi_positive_contrastive(u: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each anchor against a uniform target on its positives, mean over anchors.

    Args:
        u: (N, E) rows of unit length.
        y: (N,) int64 labels; positives of i are the other rows of its class.
        temperature: τ > 0.

    Returns:
        Scalar. An anchor without positives contributes 0 and is still counted.
    """
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    with torch.autocast(u.device.type, enabled=False):  # would round the similarities to bf16
        logits = (u @ u.T / temperature).masked_fill(itself, float("-inf"))
    log_probs = torch.log_softmax(logits, dim=1)
    positive = (y[:, None] == y[None, :]) & ~itself
    counts = positive.sum(1).clamp(min=1)
    # The diagonal of log_probs is −inf: it must be masked out, 0 · −inf is not 0.
    return -(log_probs.masked_fill(~positive, 0.0).sum(1) / counts).mean()
