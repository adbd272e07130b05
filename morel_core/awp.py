"""Adversarial weight perturbation (Wu et al. 2020): descend from where the weights are worst."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed_weights(net: nn.Module, gamma: float, loss: Callable[[], Tensor]) -> Generator[None]:
    """Inside, every weight w of two or more dimensions is ``w + γ ‖w‖ g/‖g‖``, g its gradient.

    The norms are those of a whole layer's tensor. Biases and the parameters of normalisations stay
    as they are, as in the authors' code; so does a layer whose gradient is zero. On leaving, the
    weights are bitwise what they were; gradients computed inside stay. BatchNorm's statistics do
    not notice the pass that g takes. Under DDP g is the gradient averaged over ranks.

    Args:
        net: in train mode; its gradients are dropped on entering.
        gamma: γ; 0 does nothing, and does not call ``loss``.
        loss: of a forward pass, so that one forward and one backward pass of it are added.
    """
    if gamma == 0:
        yield
        return
    weights = [p for p in net.parameters() if p.requires_grad and p.dim() > 1]
    statistics = [(buffer, buffer.clone()) for buffer in net.buffers()]
    net.zero_grad(set_to_none=True)
    loss().backward()
    with torch.no_grad():
        for buffer, before in statistics:
            buffer.copy_(before)
        kept = [(weight, weight.clone()) for weight in weights]
        for weight in weights:
            if weight.grad is not None:
                length = weight.grad.norm()
                step = gamma * weight.norm() / length
                weight.add_(torch.where(length > 0, weight.grad * step, 0.0))
    net.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)
