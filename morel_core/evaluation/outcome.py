"""Outcomes image by image, and the record that never parts a number from how it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from morel_core.config import Norm
from morel_core.errors import MorelError
from morel_core.evaluation.provenance import from_ranges, to_ranges
from morel_core.statistics import wilson_interval

CLEAN = "clean"
FORMAT = 1
"""Of the JSON record; one that differs is not read."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attack went: an accuracy never stands without what it was measured with."""

    name: str
    attack: dict[str, Any]
    """Its kind and parameters; ``{"attack": "none"}`` for clean images."""
    norm: Norm | None
    """Of the attack's ball; None for clean images."""
    eps: float
    """Radius of the ball, in units of the image range; 0 for clean images."""
    white_box: bool
    """Whether the attack follows the gradient of the network itself."""
    correct: Tensor
    """(N,) bool on the CPU: still right under this attack. Wrong clean images count as wrong."""
    stages: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Of an attack with members: member → (N,) bool, who still stands after it and those before."""
    seed: int
    seconds: float

    @property
    def num_images(self) -> int:
        """Images measured on."""
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Fraction still right."""
        return self.correct.double().mean().item()

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the accuracy."""
        return wilson_interval(int(self.correct.sum()), self.num_images)

    def record(self) -> dict[str, Any]:
        """Everything but the per-image outcomes, plain."""
        record: dict[str, Any] = {
            "name": self.name,
            **_accuracy(self.correct),
            "attack": self.attack,
            "norm": self.norm,
            "eps": self.eps,
            "white_box": self.white_box,
            "seed": self.seed,
            "seconds": self.seconds,
        }
        if self.stages:
            record["stages"] = {name: _accuracy(stage) for name, stage in self.stages.items()}
        return record


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Mapping[str, Outcome]):
    """Outcomes by attack name; ``clean`` is always among them."""

    outcomes: dict[str, Outcome]
    split: str
    indices: Tensor
    """(N,) int64: which images of the split, in the order of the outcomes."""
    model_hash: str
    """See `morel_core.evaluation.model_hash`."""
    device: str
    versions: dict[str, str]
    """Package → version, of those that decide numbers."""

    def __getitem__(self, name: str) -> Outcome:
        return self.outcomes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outcomes)

    def __len__(self) -> int:
        return len(self.outcomes)

    def balls(self) -> list[tuple[Norm, float]]:
        """The attacks' balls as (norm, ε), in the order of the outcomes."""
        found: dict[tuple[Norm, float], None] = {}
        for outcome in self.outcomes.values():
            if outcome.norm is not None:
                found[outcome.norm, outcome.eps] = None
        return list(found)

    def worst_case(self, norm: Norm | None = None, eps: float | None = None) -> Tensor:
        """(N,) bool: right when clean and under every attack.

        Args:
            norm: only attacks of this norm.
            eps: only attacks of at most this radius, whose balls lie in that one.
        """
        outcomes = self._inside(norm, eps).values()
        return torch.stack([outcome.correct for outcome in outcomes]).all(0)

    def _inside(self, norm: Norm | None, eps: float | None) -> dict[str, Outcome]:
        return {
            name: outcome
            for name, outcome in self.outcomes.items()
            if (outcome.norm is None or norm in (None, outcome.norm))
            and (eps is None or outcome.eps <= eps)
        }

    def record(self) -> dict[str, Any]:
        """Plain record of all outcomes, and of the worst case in each ball."""
        worst = [
            {
                "norm": norm,
                "eps": eps,
                **_accuracy(self.worst_case(norm, eps)),
                "attacks": [name for name in self._inside(norm, eps) if name != CLEAN],
            }
            for norm, eps in self.balls()
        ]
        return {
            "format": FORMAT,
            "split": self.split,
            "indices": to_ranges(self.indices.tolist()),
            "model_hash": self.model_hash,
            "device": self.device,
            "versions": self.versions,
            "outcomes": {name: outcome.record() for name, outcome in self.outcomes.items()},
            "worst_case": worst,
        }

    def to_json(self) -> str:
        """`record`, with the per-image outcomes as strings of 0 and 1; see docs/adr/0007."""
        record = self.record()
        for name, outcome in self.outcomes.items():
            entry = record["outcomes"][name]
            entry["correct"] = _to_bits(outcome.correct)
            for stage, correct in outcome.stages.items():
                entry["stages"][stage]["correct"] = _to_bits(correct)
        return json.dumps(record, indent=2)

    @staticmethod
    def from_json(text: str) -> EvaluationResult:
        """What `to_json` wrote.

        Raises:
            MorelError: not a record of an evaluation, or one of another format.
        """
        try:
            record = json.loads(text)
            written = record["format"]
        except (ValueError, KeyError, TypeError):
            raise MorelError("not the record of an evaluation: no format in it") from None
        if written != FORMAT:
            raise MorelError(f"evaluation of format {written!r}: this version reads {FORMAT}")
        outcomes = {
            name: Outcome(
                name=entry["name"],
                attack=entry["attack"],
                norm=entry["norm"],
                eps=entry["eps"],
                white_box=entry["white_box"],
                correct=_from_bits(entry["correct"]),
                stages={
                    stage: _from_bits(value["correct"])
                    for stage, value in entry.get("stages", {}).items()
                },
                seed=entry["seed"],
                seconds=entry["seconds"],
            )
            for name, entry in record["outcomes"].items()
        }
        return EvaluationResult(
            outcomes=outcomes,
            split=record["split"],
            indices=from_ranges(record["indices"]),
            model_hash=record["model_hash"],
            device=record["device"],
            versions=record["versions"],
        )


def _accuracy(correct: Tensor) -> dict[str, Any]:
    """The fraction of ``correct: (N,) bool``, its interval and N."""
    right, n = int(correct.sum()), len(correct)
    low, high = wilson_interval(right, n)
    return {"accuracy": right / n, "low": low, "high": high, "num_images": n}


def _to_bits(correct: Tensor) -> str:
    return "".join("1" if right else "0" for right in correct.tolist())


def _from_bits(bits: str) -> Tensor:
    return torch.tensor([bit == "1" for bit in bits])
