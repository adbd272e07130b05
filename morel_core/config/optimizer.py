"""Who takes the steps, and how long they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from morel_core.errors import check


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser and learning-rate schedule, in epochs.

    adamw decouples the weight decay from the gradient (Loshchilov & Hutter 2019), sgd adds it.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum, or AdamW."""
    lr: float = 0.01
    """Learning rate, before the schedule; of the whole batch, whatever the number of workers."""
    momentum: float = 0.9
    """sgd only, as is nesterov."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: float = 2e-4
    """L2 penalty (sgd) or decoupled decay (adamw)."""
    no_decay_on_norm_and_bias: bool = False
    """Decay weight matrices and kernels alone, no parameter of one dimension (He et al. 2019)."""
    schedule: Literal["constant", "piecewise", "cosine", "one_cycle"] = "constant"
    """cosine: Loshchilov & Hutter 2017, without restarts; one_cycle: Smith 2018."""
    milestones: list[int] = field(default_factory=lambda: list[int]())
    """piecewise: after this many epochs …"""
    factors: list[float] = field(default_factory=lambda: list[float]())
    """… the learning rate is lr times this (not cumulative)."""
    warmup_epochs: int = 0
    """Linear warm-up over the first epochs, step by step (Goyal et al. 2017)."""
    one_cycle_peak: float = 0.45
    """one_cycle: fraction of the run after which lr is reached; as long again, and it is back …"""
    one_cycle_start: float = 0.1
    """… at lr times this, where it also starts; from there it falls to 0."""
    clip_norm: float | None = None
    """Clip the global gradient norm to this (Pascanu et al. 2013)."""

    def __post_init__(self) -> None:
        check(self.lr > 0, "lr", self.lr, "must be > 0")
        check(0 <= self.momentum < 1, "momentum", self.momentum, "must be in [0, 1)")
        check(
            not self.nesterov or self.momentum > 0, "nesterov", self.nesterov, "needs momentum > 0"
        )
        check(
            not self.nesterov or self.name == "sgd",
            "nesterov",
            self.nesterov,
            f"only with name: sgd, not {self.name}",
        )
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must be >= 0")
        check(
            len(self.milestones) == len(self.factors),
            "factors",
            self.factors,
            f"one factor for each milestone of {self.milestones}",
        )
        check(
            self.schedule == "piecewise" or not self.milestones,
            "milestones",
            self.milestones,
            "only with schedule: piecewise",
        )
        check(
            self.milestones == sorted(set(self.milestones))
            and all(m >= 1 for m in self.milestones),
            "milestones",
            self.milestones,
            "rising epochs >= 1",
        )
        check(
            all(f >= 0 for f in self.factors), "factors", self.factors, "multiples of lr, each >= 0"
        )
        check(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "must be >= 0")
        check(
            self.warmup_epochs == 0 or self.schedule != "one_cycle",
            "warmup_epochs",
            self.warmup_epochs,
            "0 with schedule: one_cycle, which is its own warm-up",
        )
        check(
            0 < self.one_cycle_peak <= 0.5,
            "one_cycle_peak",
            self.one_cycle_peak,
            "a fraction of the run in (0, 0.5]",
        )
        check(
            0 <= self.one_cycle_start <= 1,
            "one_cycle_start",
            self.one_cycle_start,
            "a multiple of lr in [0, 1]",
        )
        check(
            self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "null or > 0"
        )
