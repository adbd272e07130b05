"""What a trial's verification found: its best network under stronger attacks."""

from __future__ import annotations

import json
from dataclasses import dataclass

from orchestrator.messages.wording import with_interval
from orchestrator.tracking import records

NO_EVIDENCE = ("not_converged",)
"""Findings that speak of an attack's strength, not of the network's gradients."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A trial's best network under the verification's attacks, on the first held-out images."""

    document: str
    """All of it as JSON, as `orchestrator.training.measuring.measure_verified` gives it."""
    attacks: list[str]
    """Names of the attacks, of which the worst case per image counts."""
    clean_accuracy: float
    worst_case: dict[str, float]
    """``accuracy`` under all of them, ``accuracy_low``, ``accuracy_high``."""
    num_images: int
    masking: list[str]
    """Evidence that its gradients mislead attacks; an honest network has none."""
    metrics: dict[str, float]
    """As recorded."""
    seconds: float
    """That it cost this search: 0 where it was taken over, or kept by an earlier version."""

    @staticmethod
    def from_json(document: str) -> Verified:
        """What a verification wrote; raises ValueError or KeyError if it is none."""
        content = json.loads(document)
        record, worst = content["evaluation"], content["worst_case"]
        attacks = [name for name in record["outcomes"] if name != "clean"]
        metrics = records.test_metrics({**record, "split": "verified"})
        if len(attacks) > 1:
            metrics |= {
                f"verified.robust.{key.replace('accuracy', 'worst_case')}": value
                for key, value in worst.items()
            }
        return Verified(
            document=document,
            attacks=attacks,
            clean_accuracy=record["outcomes"]["clean"]["accuracy"],
            worst_case=worst,
            num_images=record["outcomes"]["clean"]["num_images"],
            masking=[
                finding["reason"]
                for finding in content["findings"]
                if finding["code"] not in NO_EVIDENCE
            ],
            metrics=metrics,
            seconds=float(content.get("seconds", 0.0)),
        )

    def __str__(self) -> str:
        """``61.0 [51.2, 70.0] % (square_linf_0.1, 100 held-out images)``."""
        attacks, images = ", ".join(self.attacks), f"{self.num_images} held-out images"
        return f"{with_interval(self.worst_case, 'accuracy')} % ({attacks}; {images})"

    @property
    def robust_accuracy(self) -> float:
        """The worst case over the attacks."""
        return self.worst_case["accuracy"]
