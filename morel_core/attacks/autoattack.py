"""AutoAttack (Croce & Hein 2020), by its authors' own package ``pyautoattack``."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from morel_core.attacks.base import attack_mode
from morel_core.attacks.pgd import eps_label
from morel_core.config import Norm
from morel_core.errors import MorelError, check


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """The ensemble APGD-CE, APGD-T, FAB-T and Square (``plus`` adds their other versions).

    Args:
        eps: radius of the ball, in units of the image range [0, 1].
        norm: "linf" or "l2".
        version: "standard" or "plus".
        seed: of the package's own random numbers; noise passed in is not used.
    """

    eps: float
    norm: Norm = "linf"
    version: Literal["standard", "plus"] = "standard"
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.eps > 0, "eps", self.eps, "must be > 0")

    @property
    def name(self) -> str:
        """As in ``autoattack_linf_8-255``."""
        version = "" if self.version == "standard" else f"_{self.version}"
        return f"autoattack{version}_{self.norm}_{eps_label(self.eps)}"

    def describe(self) -> dict[str, Any]:
        """Its parameters, plain."""
        return {"attack": "autoattack", **asdict(self)}

    def __call__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Attack`; all of ``x`` is one batch.

        Raises:
            MorelError: the network tells fewer than 4 classes apart.
        """
        del noise, generator
        import pyautoattack

        logging.getLogger("auto-attack").setLevel(logging.ERROR)
        with attack_mode(net):
            adversary = pyautoattack.AutoAttack(
                net,
                device=x.device,
                eps=self.eps,
                norm="Linf" if self.norm == "linf" else "L2",
                seed=self.seed,
                version=self.version,
            )
            adversary.verbose = False
            # The package aims at 9 other classes, whether or not there are as many.
            others = self._num_classes(net, x) - 1
            for part in (adversary.apgd_targeted, adversary.fab):
                part.n_target_classes = min(part.n_target_classes, others)
            x_adv, _ = adversary.run_standard_evaluation(x, y, batch_size=len(x))
        return x_adv.detach()

    @staticmethod
    @torch.no_grad()
    def _num_classes(net: nn.Module, x: Tensor) -> int:
        classes = net(x[:1]).shape[1]
        if classes < 4:
            raise MorelError(
                f"AutoAttack compares the 4 largest logits, the model has {classes}: use pgdN"
            )
        return classes
