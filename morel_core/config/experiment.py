"""A training run as a whole, and which settings do not go together."""

from __future__ import annotations

from dataclasses import dataclass, field

from morel_core.config.attack import KL_START, AttackConfig
from morel_core.config.data import DataConfig
from morel_core.config.evaluation import EvaluationConfig
from morel_core.config.model import ModelConfig
from morel_core.config.objective import ObjectiveConfig
from morel_core.config.optimizer import OptimizerConfig
from morel_core.config.training import TrainingConfig
from morel_core.errors import check


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that decides the numbers of a training run."""

    seed: int = 0
    """Of initialisation, order of images, augmentation, dropout and the training attack."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check(
            self.evaluation.num_images is None or self.evaluation.num_images <= self.data.holdout,
            "evaluation.num_images",
            self.evaluation.num_images,
            f"at most data.holdout = {self.data.holdout}",
        )
        for index, rung in enumerate(self.evaluation.rungs):
            for key, value, most in (
                ("num_images", rung.num_images, "data.holdout"),
                ("epoch", rung.epoch, "training.epochs"),
            ):
                limit = self.data.holdout if key == "num_images" else self.training.epochs
                check(
                    value is None or value <= limit,
                    f"evaluation.rungs[{index}].{key}",
                    value,
                    f"at most {most} = {limit}",
                )
        check(
            self.objective.accuracy != "custom" or self.attack.loss != "auto",
            "attack.loss",
            self.attack.loss,
            "say ce or kl: a custom objective does not imply the attack's loss",
        )
        check(
            self.objective.accuracy != "custom" or not self.training.published_batchnorm,
            "training.published_batchnorm",
            self.training.published_batchnorm,
            "false: a custom objective has no published step",
        )
        awp, epochs = self.training.awp, self.training.epochs
        check(
            awp.gamma == 0 or awp.warmup_epochs < epochs,
            "training.awp.warmup_epochs",
            awp.warmup_epochs,
            f"below training.epochs = {epochs}, or it never begins; gamma: 0 turns it off",
        )
        late = self.objective.loat_late_start
        check(
            self.objective.accuracy != "loat" or late is None or late <= epochs,
            "objective.loat_late_start",
            late,
            f"null (the last tenth) or an epoch up to training.epochs = {epochs}",
        )
        check(
            not self.training.overfitting_guard or self.attack.num_steps == 1,
            "training.overfitting_guard",
            True,
            f"only with attack.num_steps = 1, not {self.attack.num_steps}: training with several "
            "steps does not overfit catastrophically",
        )
        for key, waits in (
            ("training.patience", self.training.patience is not None),
            ("training.overfitting_guard", self.training.overfitting_guard),
        ):
            check(
                not (self.evaluation.asynchronous and waits),
                "evaluation.asynchronous",
                True,
                f"false with {key}, which must know an epoch's numbers before the next one begins",
            )
        check(
            self.data.cutmix == 0 or self.objective.accuracy not in ("mart", "loat"),
            "data.cutmix",
            self.data.cutmix,
            f"0 with objective.accuracy: {self.objective.accuracy}, which needs one hard label to "
            "tell the right class from the others",
        )
        check(
            self.data.cutmix == 0 or not self.objective.morel,
            "data.cutmix",
            self.data.cutmix,
            "0 with objective.morel: true, whose attention and contrastive term group images by "
            "one hard label",
        )
        implied = self.objective.attack_loss if self.attack.loss == "auto" else self.attack.loss
        check(implied != "kl" or self.attack.init != "none", "attack.init", "none", KL_START)
