"""The evaluation ladder: which attack measures which epoch, on how many held-out images.

Early epochs are measured cheaply, later ones with more steps and more images. Numbers of different
rungs are different quantities: nothing here or above ever compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from morel_core.attacks import PGD
from morel_core.config import EvaluationConfig, RungConfig


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What one rung measures with."""

    number: int
    """Counted from 1; 0: the config has no rungs, and this is its only attack."""
    epoch: int
    """The first epoch that is measured so."""
    attack: PGD
    num_images: int | None
    """Only the first so many held-out images; None: all."""
    label: str
    """The attack's name; with a number of images of the rung's own, that too."""


class Ladder(tuple[Rung, ...]):
    """The rungs of a run, from the first epoch on; a single one where the config has none."""

    @staticmethod
    def of(evaluation: EvaluationConfig) -> Ladder:
        """The ladder of a config."""
        whole = PGD.from_config(evaluation.attack, "ce")
        if not evaluation.rungs:
            limit = evaluation.num_images
            return Ladder(
                [Rung(number=0, epoch=1, attack=whole, num_images=limit, label=whole.name)]
            )
        return Ladder(
            _rung(number, config, whole, evaluation.num_images)
            for number, config in enumerate(evaluation.rungs, start=1)
        )

    @property
    def last(self) -> Rung:
        """The strongest rung, whose numbers decide."""
        return self[-1]

    def at(self, epoch: int) -> Rung:
        """The rung that measures ``epoch``, counted from 1."""
        return next(rung for rung in reversed(self) if rung.epoch <= epoch)

    def numbered(self, number: int) -> Rung:
        """The rung of that `Rung.number`."""
        return next(rung for rung in self if rung.number == number)


def _rung(number: int, config: RungConfig, whole: PGD, num_images: int | None) -> Rung:
    step_size = config.step_size or whole.step_size
    attack = replace(
        whole,
        num_steps=config.num_steps or whole.num_steps,
        step_size=step_size,
        show_step=step_size != whole.step_size,
        restarts=config.restarts,
        iterate=config.iterate,
    )
    suffix = f"_first{config.num_images}" if config.num_images else ""
    return Rung(
        number=number,
        epoch=config.epoch,
        attack=attack,
        num_images=config.num_images or num_images,
        label=attack.name + suffix,
    )
