"""Multi-positive contrastive term (Khosla et al. 2020, as MOREL uses it; METHOD, L_con)."""

from __future__ import annotations

import torch
from torch import Tensor


def anchor_losses(
    anchors: Tensor, places: Tensor, u: Tensor, y: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy of each anchor against a uniform target on its positives.

    Memory grows with a · N: ranks that take their own anchors each, against the rows of all, share
    the similarity matrix and its cost.

    Args:
        anchors: (a, E) rows of unit length, some of ``u``.
        places: (a,) int64, which rows of ``u`` they are.
        u: (N, E) all rows.
        y: (N,) int64 labels; positives of an anchor are the other rows of its class.
        temperature: τ > 0.

    Returns:
        (a,); an anchor without positives has 0. Gradients flow to ``anchors`` and to ``u``.
    """
    itself = places[:, None] == torch.arange(len(u), device=u.device)
    with torch.autocast(u.device.type, enabled=False):  # would round the similarities to bf16
        logits = (anchors @ u.T / temperature).masked_fill(itself, float("-inf"))
    log_probs = torch.log_softmax(logits, dim=1)
    positive = (y[places][:, None] == y) & ~itself
    counts = positive.sum(1).clamp(min=1)
    # The anchor's own entry of log_probs is −inf: it must be masked out, 0 · −inf is not 0.
    return -log_probs.masked_fill(~positive, 0.0).sum(1) / counts


def multi_positive_contrastive(u: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Mean of `anchor_losses` over all rows.

    Args:
        u: (N, E) rows of unit length.
        y: (N,) int64 labels.
        temperature: τ > 0.

    Returns:
        Scalar. An anchor without positives contributes 0 and is still counted.
    """
    return anchor_losses(u, torch.arange(len(u), device=u.device), u, y, temperature).mean()
