"""An attack on slices of a batch, for less memory: see `morel_core.micro_batches`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from morel_core.attacks.base import Attack
from morel_core.attacks.pgd import PGD
from morel_core.config import Norm


@dataclass(frozen=True)
class Sliced:
    """``attack`` on one slice of the images after the other; each image's noise is unchanged.

    Args:
        attack: which treats each image by itself, as PGD does.
        count: of slices, at most; their sizes differ by at most one.
    """

    attack: Attack
    count: int

    @property
    def eps(self) -> float:
        """See `Attack`."""
        return self.attack.eps

    @property
    def norm(self) -> Norm:
        """See `Attack`."""
        return self.attack.norm

    @property
    def name(self) -> str:
        """See `Attack`."""
        return self.attack.name

    @property
    def draws(self) -> int:
        """See `Attack`."""
        return self.attack.draws

    @property
    def white_box(self) -> bool:
        """See `Attack`."""
        return self.attack.white_box

    def describe(self) -> dict[str, Any]:
        """See `Attack`."""
        return self.attack.describe()

    def __call__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Attack`."""
        count = min(self.count, len(x))
        if noise is None and self.draws:
            shape = (self.draws, *x.shape)
            noise = torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
        draws: list[Tensor | None] = [None] * count
        if noise is not None and self.draws:
            draws = list(noise.tensor_split(count, dim=noise.dim() - x.dim()))
        parts = zip(x.tensor_split(count), y.tensor_split(count), draws, strict=True)
        return torch.cat([self.attack(net, *part, noise=draw) for *part, draw in parts])


def in_slices(attack: Attack, count: int) -> Attack:
    """PGD as `Sliced` for a ``count`` above 1; any other attack as it is.

    What an ensemble's attacks draw depends on the batch, and so would the numbers.
    """
    return Sliced(attack, count) if count > 1 and isinstance(attack, PGD) else attack
