"""Clean and robust accuracy with their intervals, per-image outcomes and a record of how."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from morel_core.attacks import Attack, attack_mode
from morel_core.attacks.ball import outside
from morel_core.distributed import rank, sum_over_ranks, world_size
from morel_core.errors import MorelError
from morel_core.precision import full_precision
from morel_core.seeding import generator
from morel_core.statistics import wilson_interval

CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attack went: an accuracy never stands without what it was measured with."""

    name: str
    attack: dict[str, Any]
    correct: Tensor
    """(N,) bool on the CPU: still right under this attack. Wrong clean images count as wrong."""
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
        low, high = self.interval
        return {
            "name": self.name,
            "accuracy": self.accuracy,
            "low": low,
            "high": high,
            "num_images": self.num_images,
            "attack": self.attack,
            "seed": self.seed,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Mapping[str, Outcome]):
    """Outcomes by attack name; ``clean`` is always among them."""

    outcomes: dict[str, Outcome]
    split: str
    device: str

    def __getitem__(self, name: str) -> Outcome:
        return self.outcomes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outcomes)

    def __len__(self) -> int:
        return len(self.outcomes)

    def worst_case(self) -> Tensor:
        """(N,) bool: right under every attack."""
        return torch.stack([outcome.correct for outcome in self.outcomes.values()]).all(0)

    def record(self) -> dict[str, Any]:
        """Plain record of all outcomes."""
        return {
            "split": self.split,
            "device": self.device,
            "torch": torch.__version__,
            "outcomes": {name: outcome.record() for name, outcome in self.outcomes.items()},
        }

    def to_json(self) -> str:
        """`record`, with the per-image outcomes as strings of 0 and 1."""
        record = self.record()
        for name, outcome in self.outcomes.items():
            bits = "".join("1" if right else "0" for right in outcome.correct.tolist())
            record["outcomes"][name]["correct"] = bits
        return json.dumps(record, indent=2)


def as_images(x: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]; float images as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


@torch.no_grad()
def correct_predictions(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: whether ``net``, in eval mode, gets them right."""
    return net(x).argmax(1) == y


def evaluate(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 256,
    seed: int = 0,
    split: str = "test",
) -> EvaluationResult:
    """Accuracy on clean images and under each attack.

    Images are taken in fixed chunks of ``batch_size``, each with noise of its own seed; only images
    that are right when clean are attacked, and no accuracy can pass the clean one. Under a process
    group each rank takes every W-th chunk and all get the whole result. Computed in the type of the
    weights, whatever training used: autocast and TF32 are off.

    Args:
        net: maps images in [0, 1] to logits; left in the mode it came in.
        x: (N, C, H, W), uint8 or float in [0, 1].
        y: (N,) int64.
        attacks: name → attack.
        batch_size: images in a chunk. It decides which noise an image gets.
        seed: of the noise.
        split: what ``x`` is, for the record.

    Raises:
        MorelError: no images, or an attack left its ball or [0, 1].
    """
    if len(x) == 0 or len(x) != len(y):
        raise MorelError(f"evaluate: {len(x)} images and {len(y)} labels: need as many, at least 1")
    outcomes: dict[str, Outcome] = {}
    with attack_mode(net), full_precision(x.device):
        clean = _measure(net, x, y, None, None, batch_size, seed)
        outcomes[CLEAN] = Outcome(
            name=CLEAN, attack={"attack": "none"}, correct=clean[0], seed=seed, seconds=clean[1]
        )
        for name, attack in attacks.items():
            correct, seconds = _measure(net, x, y, attack, clean[0], batch_size, seed)
            outcomes[name] = Outcome(
                name=name, attack=attack.describe(), correct=correct, seed=seed, seconds=seconds
            )
    return EvaluationResult(outcomes=outcomes, split=split, device=str(x.device))


def _measure(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None,
    clean: Tensor | None,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, float]:
    """(N,) bool on the CPU and seconds, over all ranks' chunks."""
    started = time.perf_counter()
    correct = torch.zeros(len(x), dtype=torch.int32, device=x.device)
    for chunk, start in enumerate(range(0, len(x), batch_size)):
        if chunk % world_size() != rank():
            continue
        rows = slice(start, min(start + batch_size, len(x)))
        images, labels = as_images(x[rows]), y[rows]
        if attack is None or clean is None:
            correct[rows] = correct_predictions(net, images, labels).int()
            continue
        noise = torch.randn(
            images.shape, generator=generator(x.device, seed, chunk), device=x.device
        )
        todo = clean[rows].nonzero()[:, 0].to(x.device)
        if len(todo):
            noise = noise[todo].to(images.dtype)
            images, labels = images[todo], labels[todo]
            x_adv = attack(net, images, labels, noise=noise)
            excess = outside(x_adv, images, attack.eps, attack.norm)
            if excess:
                raise MorelError(
                    f"attack {attack.name} left its {attack.norm} ball of {attack.eps:g} or [0, 1] "
                    f"by {excess:g}: its numbers would mean nothing"
                )
            correct[start + todo] = correct_predictions(net, x_adv, labels).int()
    return sum_over_ranks(correct).bool().cpu(), time.perf_counter() - started
