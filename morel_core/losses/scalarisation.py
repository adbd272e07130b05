"""How two objectives become one number to minimise."""

from __future__ import annotations

import torch
from torch import Tensor

from morel_core.config import ObjectiveConfig
from morel_core.distributed import average_over_ranks


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


def augmented_chebyshev(weighted: Tensor) -> Tensor:
    """``max_i weighted_i`` (Steuer & Choo 1983); the augmentation is added by `scalarise`.

    Args:
        weighted: (2,), ``k_i (L_i − a_i)``; under DDP this rank's shares, whose mean over ranks is
            the global value. Which one is largest is decided on the global values: ranks that
            decided on their own shares would not follow the gradient of the maximum.

    Returns:
        Scalar, this rank's share of the global maximum.
    """
    everyone = average_over_ranks(weighted.detach())
    largest = torch.arange(len(weighted), device=weighted.device) == everyone.argmax()
    return torch.where(largest, weighted, 0.0).sum()


def smooth_chebyshev(weighted: Tensor, mu: float) -> Tensor:
    """``μ log Σ_i exp(weighted_i / μ)`` (Lin et al. 2024).

    Args:
        weighted: as for `augmented_chebyshev`. The softmax that weighs the objectives' gradients is
            taken of the global values.
        mu: μ > 0; the value lies above the maximum by at most μ log 2.

    Returns:
        Scalar, this rank's share of the global value.
    """
    everyone = average_over_ranks(weighted.detach())
    share = torch.softmax(everyone / mu, 0)
    value = mu * torch.logsumexp(everyone / mu, 0)
    return value + (share * (weighted - everyone)).sum()


def scalarise(robustness: Tensor, accuracy: Tensor, config: ObjectiveConfig) -> Tensor:
    """The two objectives as the number to minimise, as ``config.scalarisation`` says.

    Args:
        robustness: L_rob, scalar; under DDP this rank's share.
        accuracy: L_acc, likewise.
        config: k = preference, a = reference, γ, μ.
    """
    k, a, gamma = config.preference, config.reference, config.gamma
    if config.scalarisation == "weighted_sum":
        return augmented_weighted_sum(robustness, accuracy, k, a, gamma)
    rob, acc = robustness - a[0], accuracy - a[1]
    weighted = torch.stack([k[0] * rob, k[1] * acc])
    if config.scalarisation == "chebyshev":
        value = augmented_chebyshev(weighted)
    else:
        value = smooth_chebyshev(weighted, config.mu)
    return value + gamma * (rob + acc)
