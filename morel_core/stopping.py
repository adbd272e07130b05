"""When a run ends before its last epoch: no progress any more, or catastrophic overfitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from morel_core.attacks import PGD
from morel_core.evaluation import EvaluationResult

Metrics = Mapping[str, float]

GUARD_IMAGES = 256
"""The guard measures on at most so many of the first held-out images."""
GUARD = "guard_"


def measurements_since_best(history: Sequence[Metrics]) -> int:
    """How many measurements in a row have not raised the newest rung's best robust accuracy."""
    measured = [m for m in history if "robust_accuracy" in m]
    robust = [m["robust_accuracy"] for m in measured if m.get("rung") == measured[-1].get("rung")]
    return len(robust) - 1 - robust.index(max(robust)) if robust else 0


def guard_attack(attack: PGD) -> PGD:
    """PGD-10 in the ball of a single-step attack, steps of ε/4 from a uniform start."""
    return PGD(
        eps=attack.eps,
        step_size=attack.eps / 4,
        num_steps=10,
        norm=attack.norm,
        loss="ce",
        init="uniform",
    )


def guard_metrics(result: EvaluationResult, history: Sequence[Metrics]) -> dict[str, float]:
    """What the guard saw and whether it fires.

    A network overfits catastrophically when it gets better against the single step that it trains
    with by losing its robustness (Wong et al. 2020). The guard fires when the 95 % interval of the
    accuracy under PGD-10 lies below half of what it was in its best epoch, while the accuracy under
    the training attack is not lower than in that epoch.

    Args:
        result: outcomes "multi_step" and "single_step" on the guard's images.
        history: metrics of the epochs before.
    """
    multi, single = result["multi_step"], result["single_step"]
    metrics = {
        f"{GUARD}multi_step_accuracy": multi.accuracy,
        f"{GUARD}single_step_accuracy": single.accuracy,
    }
    before = [m for m in history if f"{GUARD}multi_step_accuracy" in m]
    fires = False
    if before:
        best = max(before, key=lambda m: m[f"{GUARD}multi_step_accuracy"])
        collapsed = multi.interval[1] < best[f"{GUARD}multi_step_accuracy"] / 2
        fires = collapsed and single.accuracy >= best[f"{GUARD}single_step_accuracy"]
    return {**metrics, "catastrophic_overfitting": float(fires)}
