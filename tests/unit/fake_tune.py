"""Stand-ins for what Ray Tune hands to its callbacks, and a search for them to belong to."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

ATTACK = "pgd20_linf_0.1"
SEARCH = """
recipe: digits
overrides: {training.epochs: 9}
scheduler: {name: asha, grace_period: 1, reduction_factor: 3}
num_trials: 5
parameters:
  k1: {type: float, low: 0.0, high: 0.5}
  objective.preference: {type: derived, expression: "[k1, 1 - k1]"}
  objective.alpha: {type: float, low: 1.0e-6, high: 1.0, log: true}
baselines:
  paper: {k1: 0.1, objective.alpha: 1.0e-5}
"""


@dataclass
class FakeTrial:
    """A Tune trial as far as our callback looks at it."""

    trial_id: str = "t1"
    index: int = 0
    baseline: str | None = None
    k1: float = 0.25
    alpha: float = 0.01
    status: str = "RUNNING"
    last_result: dict[str, Any] = field(default_factory=dict)
    checkpoint: Any = None
    failure: str | None = None
    """What Tune wrote into the trial's error.txt."""
    error_file: str | None = None
    changed: dict[str, Any] | None = None
    """By `set_config`."""
    began: bool = True

    @property
    def run_metadata(self) -> SimpleNamespace:
        return SimpleNamespace(start_time=1.0 if self.began else None)

    @property
    def config(self) -> dict[str, Any]:
        return self.changed or {
            "params": {"k1": self.k1, "objective.alpha": self.alpha},
            "overrides": {
                "objective.preference": [self.k1, 1 - self.k1],
                "objective.alpha": self.alpha,
            },
            "baseline": self.baseline,
            "index": self.index,
        }

    def set_config(self, config: dict[str, Any]) -> None:
        self.changed = config

    def invalidate_json_state(self) -> None:
        self.written = True

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")

    def get_error(self) -> str | None:
        return self.failure


def traceback(*lines: str) -> str:
    """An error.txt of Tune; each line is the end of one failed attempt."""
    return "".join(
        f"Failure # {number} (occurred at 2026-01-01_12-00-00)\n"
        'Traceback (most recent call last):\n  File "worker.py", line 10, in step\n'
        f"{line}\n"
        for number, line in enumerate(lines, start=1)
    )


def checkpoint(path: str = "/storage/checkpoint_000001") -> SimpleNamespace:
    """A Tune checkpoint."""
    return SimpleNamespace(path=path)


def epoch(number: int, robust: float = 0.5, **more: Any) -> dict[str, Any]:
    """A trainer's metrics of one epoch."""
    return {
        "epoch": number, "num_epochs": 9, "lr": 0.1, "loss.total": 1.0 / number,
        "gradient_share.kl": 0.25, "seconds": 2.0, "images_per_second": 500.0, "diverged": 0.0,
        "seconds_evaluation": 0.5, "clean_accuracy": 0.9, "clean_accuracy_low": 0.85,
        "clean_accuracy_high": 0.95, "robust_accuracy": robust,
        "robust_accuracy_low": robust - 0.05, "robust_accuracy_high": robust + 0.05,
        "best_clean_accuracy": 0.9, "best_clean_accuracy_low": 0.85,
        "best_clean_accuracy_high": 0.95, "best_robust_accuracy": robust,
        "best_robust_accuracy_low": robust - 0.05, "best_robust_accuracy_high": robust + 0.05,
        "best_epoch": number,
    } | more  # fmt: skip


def report(number: int, robust: float = 0.5, since: int | None = None, **more: Any):
    """What a trial reports after epoch ``number``: with all epochs since ``since``."""
    epochs = [epoch(n, robust) for n in range(since or number, number)]
    last = epoch(number, robust, **more)
    epochs.append(last)
    return last | {"epochs": epochs, "time_total_s": 3.0 * number, "device": "cpu"}
