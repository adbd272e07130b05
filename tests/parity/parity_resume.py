"""The run of test_resume_parity.py, in processes that can be killed.

``train FOLDER`` trains half of it, saves, says "saved" and goes on until it is killed;
``resume FOLDER OUT`` goes on from FOLDER to the end and saves into OUT.
"""

from __future__ import annotations

import sys

import torch

from morel_core import (
    AttackConfig,
    AwpConfig,
    EvaluationConfig,
    ExperimentConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
)
from morel_core.data import SyntheticConfig
from morel_core.models import DigitsCnnConfig

NUM_EPOCHS = 6
SAVED_AFTER = 3


def experiment() -> ExperimentConfig:
    """Everything that draws random numbers or keeps state between epochs."""
    return ExperimentConfig(
        seed=11,
        data=SyntheticConfig(
            num_classes=4,
            image_size=8,
            num_train=88,
            num_test=8,
            holdout=24,
            noise=0.3,
            augmentation="crop_flip",
            crop_padding=1,
            erasing=0.3,
        ),
        model=DigitsCnnConfig(width=8, norm="batch", embed_dim=8, dropout=0.3),
        objective=ObjectiveConfig(accuracy="loat", alpha=0.1, features="both", loat_lore=True),
        attack=AttackConfig(num_steps=2),
        optimizer=OptimizerConfig(
            lr=0.05, schedule="cosine", warmup_epochs=1, no_decay_on_norm_and_bias=True
        ),
        training=TrainingConfig(
            epochs=NUM_EPOCHS,
            batch_size=16,
            ema_decay=0.9,
            awp=AwpConfig(gamma=0.01, warmup_epochs=2),
            patience=NUM_EPOCHS,
        ),
        evaluation=EvaluationConfig(
            attack=AttackConfig(num_steps=2, init="uniform", loss="ce"), batch_size=10
        ),
    )


def main(action: str, folder: str, out: str = "") -> None:
    torch.set_num_threads(1)
    trainer = Trainer(experiment())
    if action == "resume":
        trainer.load(folder)
        trainer.fit()
        trainer.save(out)
        return
    for _ in range(SAVED_AFTER):
        trainer.run_epoch()
    trainer.save(folder)
    print("saved", flush=True)
    while True:  # its later work must not matter
        trainer.run_epoch()
        trainer.epoch, trainer.history = SAVED_AFTER, trainer.history[:SAVED_AFTER]


if __name__ == "__main__":
    main(*sys.argv[1:])
