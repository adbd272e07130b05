"""A run small enough to train in a test: three classes of 8x8 images, 48 to train on."""

from dataclasses import replace

from morel_core import (
    AttackConfig,
    EvaluationConfig,
    ExperimentConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainingConfig,
)
from morel_core.data import SyntheticConfig
from morel_core.models import DigitsCnnConfig

ATTACK = AttackConfig(eps=0.05, step_size=0.02, num_steps=2)
EVAL_ATTACK = AttackConfig(eps=0.05, step_size=0.02, num_steps=3, init="uniform", loss="ce")


def tiny_run(**sections) -> ExperimentConfig:
    """The run with whole sections exchanged: ``tiny_run(training=TrainingConfig(...))``."""
    base = ExperimentConfig(
        data=SyntheticConfig(
            num_classes=3, image_size=8, channels=1, num_train=78, num_test=20, holdout=30
        ),
        model=DigitsCnnConfig(width=4, embed_dim=8),
        objective=ObjectiveConfig(alpha=0.1),
        attack=ATTACK,
        optimizer=OptimizerConfig(lr=0.05),
        training=TrainingConfig(epochs=2, batch_size=16),
        evaluation=EvaluationConfig(attack=EVAL_ATTACK, batch_size=16),
    )
    return replace(base, **sections)
