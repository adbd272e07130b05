"""Alignment of a clean image's projection with its adversarial version's (METHOD, L_cos)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine_alignment(z: Tensor, z_adv: Tensor) -> Tensor:
    """``1 − cos(z_i, z'_i)`` per sample.

    Args:
        z: (b, E) projections of the clean images.
        z_adv: (b, E) projections of their adversarial versions.

    Returns:
        (b,) in [0, 2]; gradients flow through both arguments.
    """
    return 1 - F.cosine_similarity(z, z_adv, dim=1)
