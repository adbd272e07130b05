"""The training attack and the ball it moves in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from morel_core.errors import check

Norm = Literal["linf", "l2"]
AttackLoss = Literal["auto", "ce", "kl"]
Init = Literal["gaussian", "uniform", "none"]
Iterate = Literal["last", "worst"]

KL_START = "gaussian or uniform with loss: kl, whose gradient at x itself is zero"
WIDEST_L2 = 10_000.0
"""Longer than the way between any two images of up to 33 million pixels."""
EPS_HINT = "images lie in [0, 1], so 8/255 is written ${frac:8,255}"


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Projected gradient descent in a ball (Madry et al. 2018); the published one by default."""

    norm: Norm = "linf"
    """Of the ball: largest change of a pixel, or Euclidean length of the whole change."""
    eps: float = 0.031
    """Radius of the ball, for images in [0, 1]."""
    step_size: float = 0.007
    """Length of a step, in the units of eps."""
    num_steps: int = 10
    """Gradient steps."""
    init: Init = "gaussian"
    """gaussian: x + init_scale·N(0, I) (TRADES); uniform: in the ball (Madry); none: x itself."""
    init_scale: float = 0.001
    """gaussian only: standard deviation of the start."""
    loss: AttackLoss = "auto"
    """What it maximises; auto: KL for TRADES, cross-entropy otherwise."""

    def __post_init__(self) -> None:
        bound = 1.0 if self.norm == "linf" else WIDEST_L2
        check(0.0 < self.eps <= bound, "eps", self.eps, f"must be in (0, {bound:g}]; {EPS_HINT}")
        check(self.step_size > 0, "step_size", self.step_size, f"must be > 0; {EPS_HINT}")
        check(
            self.step_size <= 2 * self.eps,
            "step_size",
            self.step_size,
            f"must be at most the ball's diameter, 2·eps = {2 * self.eps:g}",
        )
        check(self.num_steps >= 1, "num_steps", self.num_steps, "must be >= 1")
        check(self.init_scale >= 0, "init_scale", self.init_scale, "must be >= 0")
        check(self.loss != "kl" or self.init != "none", "init", self.init, KL_START)
