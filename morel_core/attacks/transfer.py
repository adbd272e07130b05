"""Transfer: adversarial images of another network (Papernot et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from morel_core.attacks.base import Attack
from morel_core.config import Norm


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
    """Images made on ``source``, whatever network they are for: a check for masked gradients.

    Args:
        attack: makes them. One that stops at the source's first mistake (``iterate="worst"``,
            AutoAttack) returns images that hardly leave its decision boundary and transfer less
            than the last iterate of `PGD` does.
        source: on the device of the images, with the same classes; left as it was.
        source_name: for the name and the record.
    """

    attack: Attack
    source: nn.Module
    source_name: str

    @property
    def eps(self) -> float:
        """Of ``attack``."""
        return self.attack.eps

    @property
    def norm(self) -> Norm:
        """Of ``attack``."""
        return self.attack.norm

    @property
    def name(self) -> str:
        """As in ``transfer_resnet50_pgd20_linf_8-255``."""
        return f"transfer_{self.source_name}_{self.attack.name}"

    @property
    def draws(self) -> int:
        """Of ``attack``."""
        return self.attack.draws

    @property
    def white_box(self) -> bool:
        """It never sees the network that it is called with."""
        return False

    def describe(self) -> dict[str, Any]:
        """Its parameters, plain."""
        return {
            "attack": "transfer",
            "source": self.source_name,
            "eps": self.eps,
            "norm": self.norm,
            "made_by": self.attack.describe(),
        }

    def __call__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Attack`; ``net`` is not looked at."""
        del net
        return self.attack(self.source, x, y, noise=noise, generator=generator)
