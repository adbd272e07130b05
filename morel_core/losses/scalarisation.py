"""How two objectives become one number to minimise."""

from __future__ import annotations

from torch import Tensor


def augmented_weighted_sum(
    robustness: Tensor,
    accuracy: Tensor,
    preference: tuple[float, float],
    reference: tuple[float, float],
    gamma: float,
) -> Tensor:
    """``k₁ (L_rob − a₁) + k₂ (L_acc − a₂) + γ [(L_rob − a₁) + (L_acc − a₂)]`` (METHOD).

    Linear: up to a constant it is ``(k₁ + γ) L_rob + (k₂ + γ) L_acc``.
    """
    rob, acc = robustness - reference[0], accuracy - reference[1]
    return preference[0] * rob + preference[1] * acc + gamma * (rob + acc)
