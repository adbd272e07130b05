"""What is minimised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from morel_core.errors import check

Accuracy = Literal["trades", "mart", "loat", "at", "custom"]
Scalarisation = Literal["weighted_sum", "chebyshev", "smooth_chebyshev"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The two objectives of MOREL and how they are weighed (arXiv 2410.01697)."""

    accuracy: Accuracy = "trades"
    """TRADES (Zhang et al. 2019), MART (Wang et al. 2020), LOAT, AT (Madry et al. 2018); custom: a
    callable of your own, in code."""
    morel: bool = True
    """False trains the accuracy objective alone: the plain TRADES, MART, LOAT or AT baseline."""
    beta: float = 6.0
    """Weight of the KL term in TRADES, MART and LOAT."""
    preference: tuple[float, float] = (0.1, 0.9)
    """k = (k₁, k₂): weight of the robustness and of the accuracy objective."""
    reference: tuple[float, float] = (0.0, 0.0)
    """a: reference point. In the weighted sum it has no gradient and is kept for fidelity."""
    gamma: float = 2e-5
    """γ: augmentation, which adds γ times the plain sum to any scalarisation."""
    scalarisation: Scalarisation = "weighted_sum"
    """chebyshev (Steuer & Choo 1983) and smooth_chebyshev (Lin et al. 2024) also reach the
    non-convex parts of the front; distances count from ``reference``."""
    mu: float = 0.1
    """μ of smooth_chebyshev: the smaller, the closer to the maximum."""
    alignment: bool = True
    """False leaves the alignment term out of the robustness objective (ablation)."""
    alpha: float = 1e-5
    """α: weight of the contrastive term inside the robustness objective."""
    temperature: float = 0.1
    """τ of the contrastive term."""
    label_smoothing: float = 0.0
    """Share of the target that is uniform (Szegedy et al. 2016), in the CE of TRADES and AT."""
    features: Literal["natural", "adversarial", "both"] = "natural"
    """Rows of the contrastive term: natural in the 2024 experiments, both in advermorel."""
    loat_base: Literal["mart", "trades"] = "mart"
    """loat only, as are the keys below: what it adds its terms to."""
    loat_measure: Literal["mse", "kl"] = "mse"
    """How the fluctuation of logits is measured."""
    loat_theta: float = 1.0
    """θ: weight of the logit fluctuation (advermorel 1, its authors' script 0.1)."""
    loat_lore: bool = False
    """Add the LORE term, weighted loat_gamma."""
    loat_gamma: float = 0.05
    """Weight of the LORE term."""
    loat_early_epochs: int = 1
    """Epochs of the early phase."""
    loat_late_start: int | None = None
    """First epoch (counted from 1) of the late phase; default: the last tenth of training."""

    def __post_init__(self) -> None:
        for key in ("preference", "reference"):  # YAML has lists only
            object.__setattr__(self, key, tuple(getattr(self, key)))
        for key in ("beta", "gamma", "alpha", "loat_theta", "loat_gamma"):
            check(getattr(self, key) >= 0, key, getattr(self, key), "must be >= 0")
        check(self.temperature > 0, "temperature", self.temperature, "must be > 0 (published: 0.1)")
        check(self.mu > 0, "mu", self.mu, "must be > 0")
        check(
            self.morel or self.scalarisation == "weighted_sum",
            "scalarisation",
            self.scalarisation,
            "weighted_sum with morel: false, which leaves a single objective",
        )
        check(
            0 <= self.label_smoothing < 1,
            "label_smoothing",
            self.label_smoothing,
            "a share in [0, 1)",
        )
        check(
            self.label_smoothing == 0 or self.accuracy in ("trades", "at"),
            "label_smoothing",
            self.label_smoothing,
            f"0 with accuracy: {self.accuracy}; MART and LOAT boost the margin to one hard label, "
            "an objective of your own smooths for itself",
        )
        check(
            len(self.preference) == 2
            and all(0.0 <= k <= 1.0 for k in self.preference)
            and sum(self.preference) > 0,
            "preference",
            list(self.preference),
            "two weights (k1, k2), each in [0, 1], not both 0 (published: [0.1, 0.9])",
        )
        check(len(self.reference) == 2, "reference", list(self.reference), "two numbers")
        check(
            self.loat_early_epochs >= 0, "loat_early_epochs", self.loat_early_epochs, "must be >= 0"
        )
        check(
            self.loat_late_start is None or self.loat_late_start >= 1,
            "loat_late_start",
            self.loat_late_start,
            "null or an epoch counted from 1",
        )

    @property
    def attack_loss(self) -> Literal["ce", "kl"]:
        """What ``attack.loss: auto`` stands for: KL for TRADES and for LOAT on TRADES."""
        base = self.loat_base if self.accuracy == "loat" else self.accuracy
        return "kl" if base == "trades" else "ce"
