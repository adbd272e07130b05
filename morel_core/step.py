"""One optimisation step of MOREL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from morel_core.attacks import Attack
from morel_core.awp import perturbed_weights
from morel_core.distributed import Shard, average_over_ranks
from morel_core.losses import MorelObjective, Terms
from morel_core.models import MorelNet
from morel_core.optim import Optimizer, update_if_finite


def train_step(
    net: MorelNet,
    objective: MorelObjective | Callable[..., Terms],
    attack: Attack | Callable[..., Tensor],
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    noise: Tensor,
    epoch: int,
    num_epochs: int,
    shard: Shard | None = None,
    clip_norm: float | None = None,
    awp_gamma: float = 0.0,
    allowed: Tensor | None = None,
    inspect: Callable[[Terms], Any] | None = None,
) -> tuple[Terms, Tensor]:
    """Attack, weigh the objectives, descend.

    Args:
        net: in train mode; its parameters and ``optimizer`` are updated in place.
        objective: `MorelObjective`, or its data-parallel version of the same signature.
        attack: makes the adversarial batch; leaves the net's mode and grads as they were.
        x: (b, C, H, W) in [0, 1].
        y: (b,) int64, or (b, K) shares of the classes where attack and objective take them.
        noise: (b, C, H, W) standard normal, for the attack's start.
        epoch: counted from 1.
        num_epochs: length of the run.
        shard: this rank's part of the global batch.
        clip_norm: largest norm of the whole gradient.
        awp_gamma: γ of adversarial weight perturbation; above 0 it adds one pass of the objective.
        allowed: boolean scalar on the device; where it is false, nothing is updated.
        inspect: sees the terms before the backward pass.

    Returns:
        The terms, and a boolean scalar on the device: whether gradient and loss were finite
        and the update ``allowed``. If not, nothing was updated.
    """
    x_adv = attack(net, x, y, noise=noise)

    def weighed() -> Terms:
        return objective(net, x, x_adv, y, epoch=epoch, num_epochs=num_epochs, shard=shard)

    with perturbed_weights(net, awp_gamma, lambda: weighed().total):
        terms = weighed()
        if inspect is not None:
            inspect(terms)
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
    loss = average_over_ranks(terms.total.detach())
    finite = update_if_finite(optimizer, loss, clip_norm, allowed)
    return terms, finite


def gradient_shares(terms: Terms, net: MorelNet) -> dict[str, Tensor]:
    """Each weighted term's share of the sum of all terms' gradient norms, in [0, 1].

    A term's weight is the derivative of the total with respect to it, whatever the scalarisation.

    Args:
        terms: of one batch, before its backward pass; their graph is kept.
        net: whose trainable parameters the gradients are taken of.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    leaves = {name: term for name, term in terms.leaves().items() if term.requires_grad}
    weights = torch.autograd.grad(terms.total, list(leaves.values()), retain_graph=True)
    norms: list[Tensor] = []
    for term, weight in zip(leaves.values(), weights, strict=True):
        grads = torch.autograd.grad(
            term, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        gradient = average_over_ranks(torch.cat([g.flatten() for g in grads]))
        norms.append(weight.abs() * gradient.norm())
    total = torch.stack(norms).sum().clamp(min=torch.finfo(torch.float32).tiny)
    return {name: norm / total for name, norm in zip(leaves, norms, strict=True)}
