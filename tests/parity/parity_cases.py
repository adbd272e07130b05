"""What the parity tests share: tolerances, small networks and batches."""

from __future__ import annotations

import torch
from hypothesis import settings
from torch import Tensor, nn

from morel_core.models import DigitsCnn, DigitsCnnConfig, MorelNet

bounded = settings(max_examples=10, deadline=None, derandomize=True, database=None)


def assert_equal_to(actual: Tensor, expected: Tensor, relative: float = 1e-10) -> None:
    """Same shape, and the largest difference within ``relative`` of the largest entry.

    Entries that cancel to nothing have no relative accuracy; 1e-4 stands in for their size.
    """
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    size = max(expected.abs().max().item(), 1e-4)
    assert (actual - expected).abs().max().item() <= relative * size


def small_net(
    num_classes: int = 4,
    *,
    norm: str = "none",
    seed: int = 0,
    dropout: float = 0.0,
    embed_dim: int = 6,
    spread: float = 1.0,
) -> MorelNet:
    """float64, in train mode; ``spread`` widens the logits so that predictions differ."""
    torch.manual_seed(seed)
    model = DigitsCnn(DigitsCnnConfig(width=4, norm=norm), num_classes, 3)
    net = MorelNet.wrap(model, embed_dim=embed_dim, num_heads=2, dropout=dropout).double().train()
    with torch.no_grad():
        net.head.weight.mul_(spread)
        for parameter in net.embedder_parameters():
            if parameter.dim() == 1:  # they start at 0 or 1, where a lost one would not show
                parameter.add_(torch.randn_like(parameter))
    return net


def small_batch(
    size: int, num_classes: int = 4, *, seed: int = 0, pixels: int = 6
) -> tuple[Tensor, Tensor, Tensor]:
    """x with a fifth of its pixels at 0 and a fifth at 1, y, and noise; float64."""
    draws = torch.Generator().manual_seed(seed)
    shape = (size, 3, pixels, pixels)
    x = (torch.rand(shape, generator=draws, dtype=torch.float64) * 1.66 - 0.33).clamp(0, 1)
    y = torch.randint(num_classes, (size,), generator=draws)
    return x, y, torch.randn(shape, generator=draws, dtype=torch.float64)


def grads(net: nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients; a missing one is zero."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in net.named_parameters()
    }


def state(net: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
