"""Projected gradient descent (Madry et al. 2018), TRADES' KL and the margin version of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morel_core.attacks.ball import ascent_step, projection, uniform_in_ball
from morel_core.attacks.base import attack_mode, size_label
from morel_core.config import AttackConfig, Init, Iterate, Norm
from morel_core.errors import MorelError, check
from morel_core.precision import at_least_fp32

Loss = Literal["ce", "kl", "cw"]


@dataclass(frozen=True, kw_only=True)
class PGD:
    """``attack(net, x, y) -> x_adv``.

    Args:
        eps: radius of the ball, in units of the image range [0, 1].
        step_size: length of a step, same units.
        num_steps: steps of steepest ascent.
        norm: "linf" or "l2".
        loss: "ce", cross-entropy with ``y``; "kl", KL(p ‖ p') from the clean prediction (TRADES);
            "cw", the margin max_{k≠y} z_k − z_y of the logits (Carlini & Wagner 2017, f₆ without
            its bound), here maximised inside the ball.
        init: "gaussian" x + init_scale · N(0, I); "uniform" in the ball; "none" x itself (where the
            KL loss has no gradient).
        init_scale: of the Gaussian start.
        restarts: random starts. Only images that are still right go on to the next one.
        iterate: what counts as a success. "last": the last iterate of a restart is wrong, as most
            publications count. "worst": any iterate is wrong, which is what a ball promises and
            never finds less. An image found wrong is dropped from the batch and that iterate
            returned.
        show_step: put the step size in the name, to tell attacks apart that differ in it alone.

    Raises:
        ConfigError: a parameter out of its range.
    """

    eps: float
    step_size: float
    num_steps: int
    norm: Norm = "linf"
    loss: Loss = "ce"
    init: Init = "gaussian"
    init_scale: float = 0.001
    restarts: int = 1
    iterate: Iterate = "last"
    show_step: bool = False

    def __post_init__(self) -> None:
        check(self.loss in ("ce", "kl", "cw"), "loss", self.loss, "ce, kl or cw")
        AttackConfig(  # the same ranges
            eps=self.eps,
            step_size=self.step_size,
            num_steps=self.num_steps,
            norm=self.norm,
            loss="ce" if self.loss == "cw" else self.loss,
            init=self.init,
            init_scale=self.init_scale,
        )
        check(self.iterate in ("last", "worst"), "iterate", self.iterate, "last or worst")
        check(self.restarts >= 1, "restarts", self.restarts, "must be >= 1")
        check(
            self.restarts == 1 or self.init != "none",
            "restarts",
            self.restarts,
            "1 with init: none, which starts every time from the same image",
        )

    @staticmethod
    def from_config(config: AttackConfig, auto_loss: str) -> PGD:
        """The attack of a config; ``auto_loss`` is what ``loss: auto`` stands for."""
        parameters = asdict(config)
        if config.loss == "auto":
            parameters["loss"] = auto_loss
        return PGD(**parameters)

    @property
    def name(self) -> str:
        """As in ``pgd20_linf_8-255`` or ``cw30x5_worst_linf_8-255``; a KL attack says so."""
        single = self.num_steps == 1 and self.init == "none" and self.loss != "cw"
        to_the_edge = self.step_size >= self.eps
        kind = (
            "fgsm"
            if single and to_the_edge
            else f"{'cw' if self.loss == 'cw' else 'pgd'}{self.num_steps}"
        )
        parts = [
            *(["kl"] if self.loss == "kl" else []),
            kind + (f"x{self.restarts}" if self.restarts > 1 else ""),
            *([f"step{size_label(self.step_size)}"] if self.show_step else []),
            *(["worst"] if self.iterate == "worst" else []),
            self.norm,
            size_label(self.eps),
        ]
        return "_".join(parts)

    @property
    def draws(self) -> int:
        """One for each random start."""
        return 0 if self.init == "none" else self.restarts

    @property
    def white_box(self) -> bool:
        """It follows the gradient."""
        return True

    def describe(self) -> dict[str, Any]:
        """Its parameters, plain."""
        parameters = asdict(self)
        del parameters["show_step"]
        return {"attack": "pgd", **parameters}

    def __call__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Attack`.

        Raises:
            MorelError: the logits do not depend on the images by differentiable steps, or ``noise``
                has another shape.

        Passes: num_steps × (forward + input gradient), one more forward for kl. With restarts or
        the worst iterate, one more forward a restart, which finds the last iterates that are wrong,
        and fewer images in each as they break; the host waits for the device to know them.
        """
        x = x.detach()
        starts = self._starts(x, noise, generator)
        with attack_mode(net):
            log_p = None
            if self.loss == "kl":
                with torch.no_grad():
                    log_p = F.log_softmax(at_least_fp32(net(x)), dim=1)
            if self.iterate == "last" and self.restarts == 1:
                return self._last_iterate(net, x, y, log_p, starts[0])
            found = x.clone()
            rows = torch.arange(len(x), device=x.device)
            for start in starts:
                rows = self._restart(net, x, y, log_p, start, rows, found)
            return found

    def _last_iterate(
        self, net: nn.Module, x: Tensor, y: Tensor, log_p: Tensor | None, x_adv: Tensor
    ) -> Tensor:
        project = projection(x, self.eps, self.norm)
        for _ in range(self.num_steps):
            x_adv, _ = self._step(net, y, log_p, x_adv, project)
        return x_adv

    def _restart(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        log_p: Tensor | None,
        start: Tensor,
        rows: Tensor,
        found: Tensor,
    ) -> Tensor:
        """One restart for the images ``rows``; fills ``found`` and returns the rows still right."""
        x, y, x_adv = x[rows], y[rows], start[rows]
        log_p = None if log_p is None else log_p[rows]
        project = projection(x, self.eps, self.norm)
        for step in range(self.num_steps + 1):
            if len(rows) == 0:
                break
            if step < self.num_steps:
                stepped, logits = self._step(net, y, log_p, x_adv, project)
                if not self._counts(step):
                    x_adv = stepped
                    continue
            else:
                stepped = x_adv
                with torch.no_grad():
                    logits = net(x_adv)
            found[rows] = x_adv.detach()
            right = logits.argmax(1) == y
            if not right.all():
                rows, x, y, stepped = rows[right], x[right], y[right], stepped[right]
                log_p = None if log_p is None else log_p[right]
                project = projection(x, self.eps, self.norm)
            x_adv = stepped
        return rows

    def _counts(self, step: int) -> bool:
        """Whether an image is lost if the iterate before ``step`` is wrong.

        A Gaussian start is no iterate: it may lie outside of [0, 1].
        """
        return self.iterate == "worst" and (step > 0 or self.init != "gaussian")

    def _step(
        self,
        net: nn.Module,
        y: Tensor,
        log_p: Tensor | None,
        x_adv: Tensor,
        project: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The next iterate, and the logits of this one."""
        x_adv.requires_grad_(True)
        with torch.enable_grad():
            logits = at_least_fp32(net(x_adv))
            if not logits.requires_grad:
                raise MorelError(
                    f"{self.name}: the network's logits are cut off from its images (a detach, or "
                    "integers in between): attack it with square, or by transfer"
                )
            (grad,) = torch.autograd.grad(self._loss(logits, y, log_p), x_adv)
        with torch.no_grad():
            stepped = ascent_step(x_adv.detach(), grad, self.step_size, self.norm)
            return project(stepped), logits.detach()

    def _starts(
        self, x: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> list[Tensor]:
        if self.init == "none":
            return [x.clone()]
        if noise is None:
            shape = x.shape if self.restarts == 1 else (self.restarts, *x.shape)
            noise = torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
        if self.restarts == 1 and noise.dim() == x.dim():
            noise = noise[None]
        if noise.shape != (self.restarts, *x.shape):
            raise MorelError(
                f"{self.name}: noise of shape {tuple(noise.shape)}: {self.restarts} restarts with "
                f"images {tuple(x.shape)} take {(self.restarts, *x.shape)}"
            )
        return [self._start(x, draw) for draw in noise]

    def _start(self, x: Tensor, noise: Tensor) -> Tensor:
        if self.init == "gaussian":  # published: projected by the first step, not before it
            return x + self.init_scale * noise
        offset = uniform_in_ball(noise, self.eps, self.norm)
        return projection(x, self.eps, self.norm)(x + offset)

    def _loss(self, logits: Tensor, y: Tensor, log_p: Tensor | None) -> Tensor:
        """Summed over samples, so that one sample's gradient does not depend on the batch."""
        if log_p is not None:
            return F.kl_div(F.log_softmax(logits, dim=1), log_p, reduction="sum", log_target=True)
        if self.loss == "ce":
            return F.cross_entropy(logits, y, reduction="sum")
        label = y[:, None]
        others = logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)
        return (others - logits.gather(1, label)).sum()
