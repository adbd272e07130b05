"""Projected gradient descent (Madry et al. 2018) and TRADES' KL version of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morel_core.attacks.ball import ascent_step, project, uniform_in_ball
from morel_core.attacks.base import attack_mode
from morel_core.config import AttackConfig, Init, Norm
from morel_core.errors import check
from morel_core.precision import at_least_fp32


def eps_label(eps: float) -> str:
    """``8-255`` for 8/255, else the decimal number: part of a metric's name."""
    level = eps * 255
    if abs(level - round(level)) < 1e-6:
        return f"{round(level)}-255"
    return f"{eps:.4g}"


@dataclass(frozen=True, kw_only=True)
class PGD:
    """``attack(net, x, y) -> x_adv``.

    Args:
        eps: radius of the ball, in units of the image range [0, 1].
        step_size: length of a step, same units.
        num_steps: steps of steepest ascent.
        norm: "linf" or "l2".
        loss: "ce", cross-entropy with ``y``; "kl", KL(p ‖ p') from the clean prediction (TRADES).
        init: "gaussian" x + init_scale · N(0, I); "uniform" in the ball; "none" x itself (where the
            KL loss has no gradient).
        init_scale: of the Gaussian start.

    Raises:
        ConfigError: a parameter out of its range.
    """

    eps: float
    step_size: float
    num_steps: int
    norm: Norm = "linf"
    loss: Literal["ce", "kl"] = "ce"
    init: Init = "gaussian"
    init_scale: float = 0.001

    def __post_init__(self) -> None:
        AttackConfig(**asdict(self))  # the same ranges
        check(self.loss in ("ce", "kl"), "loss", self.loss, "ce or kl")

    @staticmethod
    def from_config(config: AttackConfig, auto_loss: str) -> PGD:
        """The attack of a config; ``auto_loss`` is what ``loss: auto`` stands for."""
        parameters = asdict(config)
        if config.loss == "auto":
            parameters["loss"] = auto_loss
        return PGD(**parameters)

    @property
    def name(self) -> str:
        """As in ``pgd20_linf_8-255``; a KL attack says so."""
        kind = "fgsm" if self.num_steps == 1 and self.init == "none" else f"pgd{self.num_steps}"
        return f"{'kl_' if self.loss == 'kl' else ''}{kind}_{self.norm}_{eps_label(self.eps)}"

    def describe(self) -> dict[str, Any]:
        """Its parameters, plain."""
        return {"attack": "pgd", **asdict(self)}

    def __call__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Attack`. Passes: num_steps × (forward + input gradient), one more forward for kl."""
        with attack_mode(net):
            log_p = None
            if self.loss == "kl":
                with torch.no_grad():
                    log_p = F.log_softmax(at_least_fp32(net(x)), dim=1)
            x_adv = self._start(x, noise, generator)
            for _ in range(self.num_steps):
                x_adv.requires_grad_(True)
                with torch.enable_grad():
                    loss = self._loss(at_least_fp32(net(x_adv)), y, log_p)
                    (grad,) = torch.autograd.grad(loss, x_adv)
                with torch.no_grad():
                    stepped = ascent_step(x_adv.detach(), grad, self.step_size, self.norm)
                    x_adv = project(stepped, x, self.eps, self.norm)
        return x_adv.detach()

    def _start(self, x: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if self.init == "none":
            return x.detach().clone()
        if noise is None:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        if self.init == "gaussian":  # published: projected by the first step, not before it
            return x.detach() + self.init_scale * noise
        return project(
            x.detach() + uniform_in_ball(noise, self.eps, self.norm), x, self.eps, self.norm
        )

    def _loss(self, logits: Tensor, y: Tensor, log_p: Tensor | None) -> Tensor:
        """Summed over samples, so that one sample's gradient does not depend on the batch."""
        if log_p is None:
            return F.cross_entropy(logits, y, reduction="sum")
        return F.kl_div(F.log_softmax(logits, dim=1), log_p, reduction="sum", log_target=True)
