"""How the held-out split is measured while training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from morel_core.config.attack import AttackConfig, Iterate
from morel_core.errors import ConfigError, check


@dataclass(frozen=True, kw_only=True)
class RungConfig:
    """How strongly is measured from one epoch on; what is left out is as in ``evaluation``."""

    epoch: int = 1
    """First epoch (counted from 1) that is measured so."""
    num_steps: int | None = None
    """Of the evaluation attack, as is step_size; its ball is the same on every rung."""
    step_size: float | None = None
    """Of the evaluation attack, in the units of its eps."""
    restarts: int = 1
    """Random starts; later ones attack only the images that are still right."""
    iterate: Iterate = "last"
    """worst: an image is broken as soon as any iterate is wrong."""
    num_images: int | None = None
    """Only the first so many held-out images."""

    def __post_init__(self) -> None:
        check(self.epoch >= 1, "epoch", self.epoch, "an epoch counted from 1")
        check(self.restarts >= 1, "restarts", self.restarts, "must be >= 1")
        for key in ("num_steps", "num_images"):
            value = getattr(self, key)
            check(value is None or value >= 1, key, value, "null (evaluation's own) or >= 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How robust accuracy is measured while training: one fixed attack, on the held-out split."""

    attack: AttackConfig = field(
        default_factory=lambda: AttackConfig(
            eps=8 / 255, step_size=2 / 255, num_steps=20, init="uniform", loss="ce"
        )
    )
    every: int = 1
    """Measure after every so many epochs, and after the last."""
    batch_size: int = 256
    """Images attacked at a time; also a shard of ``morel evaluate``."""
    num_images: int | None = None
    """Use only the first so many held-out images; default: all."""
    seed: int = 0
    """Of the attack's starts."""
    rungs: list[RungConfig] = field(default_factory=lambda: list[RungConfig]())
    """Weaker attacks on fewer images at first, cheap ones: `morel_core.ladder`. Default: none."""
    asynchronous: bool = False
    """Training does not wait: `morel train` measures the checkpoints in tasks beside it, with the
    same numbers. In code: ``Trainer.measure`` of a loaded checkpoint."""

    def __post_init__(self) -> None:
        check(self.every >= 1, "every", self.every, "must be >= 1")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "must be >= 1")
        check(
            self.num_images is None or self.num_images >= 1,
            "num_images",
            self.num_images,
            "null (all) or >= 1",
        )
        check(
            self.attack.loss != "auto",
            "attack.loss",
            self.attack.loss,
            "ce or kl: the evaluation attack is the same whatever a run trains with",
        )
        self._check_rungs()

    def _check_rungs(self) -> None:
        """The first begins with training, each later than the one before, all in the same ball."""
        last, seen = 0, list[RungConfig]()
        for index, rung in enumerate(self.rungs):
            place = f"rungs[{index}]"
            whole = replace(
                rung,
                epoch=1,
                num_steps=rung.num_steps or self.attack.num_steps,
                step_size=rung.step_size or self.attack.step_size,
            )
            twin = "measures what an earlier rung does: leave it out"
            check(whole not in seen, f"{place}.epoch", rung.epoch, twin)
            seen.append(whole)
            check(
                rung.restarts == 1 or self.attack.init != "none",
                f"{place}.restarts",
                rung.restarts,
                "1 with evaluation.attack.init: none, which starts every time from the same image",
            )
            check(index > 0 or rung.epoch == 1, f"{place}.epoch", rung.epoch, "1 for the first")
            check(rung.epoch > last, f"{place}.epoch", rung.epoch, f"later than epoch {last}")
            last = rung.epoch
            parameters = {
                key: value
                for key in ("num_steps", "step_size")
                if (value := getattr(rung, key)) is not None
            }
            try:
                replace(self.attack, **parameters)
            except ConfigError as error:
                raise error.within(place) from None
