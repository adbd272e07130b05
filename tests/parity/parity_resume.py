"""The runs of test_resume_parity.py, in processes that can be killed.

``train FOLDER`` trains half of each, saves, says "saved" and goes on with all of them until it is
killed; ``resume FOLDER OUT`` goes on from FOLDER to the end and saves into OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
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


def data(**settings: object) -> SyntheticConfig:
    return SyntheticConfig(
        num_classes=4,
        image_size=8,
        num_train=88,
        num_test=8,
        holdout=24,
        noise=0.3,
        crop_padding=1,
        **settings,
    )


def training(**settings: object) -> TrainingConfig:
    return TrainingConfig(epochs=NUM_EPOCHS, batch_size=16, patience=NUM_EPOCHS, **settings)


def experiments(folder: Path) -> dict[str, ExperimentConfig]:
    """Between them all that draws random numbers or keeps state between epochs.

    ``folder`` takes the file of extra images.
    """
    extra = folder / "extra.npz"
    if not extra.exists():
        draws = np.random.default_rng(0)
        images = draws.integers(0, 256, (21, 8, 8, 3), dtype=np.uint8)
        np.savez(extra, image=images, label=draws.integers(0, 4, 21))
    common = {
        "seed": 11,
        "model": DigitsCnnConfig(width=8, norm="batch", embed_dim=8, dropout=0.3),
        "evaluation": EvaluationConfig(
            attack=AttackConfig(num_steps=2, init="uniform", loss="ce"), batch_size=10
        ),
    }
    return {
        "loat, awp, ema": ExperimentConfig(
            **common,
            data=data(augmentation="crop_flip", erasing=0.3),
            objective=ObjectiveConfig(accuracy="loat", alpha=0.1, features="both", loat_lore=True),
            attack=AttackConfig(num_steps=2),
            optimizer=OptimizerConfig(
                lr=0.05, schedule="cosine", warmup_epochs=1, no_decay_on_norm_and_bias=True
            ),
            training=training(ema_decay=0.9, awp=AwpConfig(gamma=0.01, warmup_epochs=2)),
        ),
        "one step guarded, swa, extra images": ExperimentConfig(
            **common,
            data=data(augmentation="idbh", extra=str(extra), extra_ratio=0.5),
            objective=ObjectiveConfig(accuracy="trades", alpha=0.1, scalarisation="chebyshev"),
            attack=AttackConfig(num_steps=1, step_size=0.031, init="uniform"),
            optimizer=OptimizerConfig(lr=0.05, schedule="one_cycle", clip_norm=1.0),
            # The average begins before it is saved, and goes on after.
            training=training(swa_start_epoch=2, overfitting_guard=True),
        ),
        "plain at, cutmix, ema": ExperimentConfig(
            **common,
            data=data(augmentation="crop", cutmix=0.6, erasing=0.5),
            objective=ObjectiveConfig(accuracy="at", morel=False, label_smoothing=0.1),
            attack=AttackConfig(num_steps=2, init="uniform"),
            optimizer=OptimizerConfig(name="adamw", lr=0.005),
            training=training(ema_decay=0.95, published_batchnorm=True),
        ),
    }


def main(action: str, folder: str, out: str = "") -> None:
    torch.set_num_threads(1)
    trainers = {name: Trainer(config) for name, config in experiments(Path(folder)).items()}
    for name, trainer in trainers.items():
        if action == "resume":
            trainer.load(Path(folder, name))
            trainer.fit()
            trainer.save(Path(out, name))
        else:
            for _ in range(SAVED_AFTER):
                trainer.run_epoch()
            trainer.save(Path(folder, name))
    if action == "resume":
        return
    print("saved", flush=True)
    while True:  # its later work must not matter
        for trainer in trainers.values():
            trainer.run_epoch()
            trainer.epoch, trainer.history = SAVED_AFTER, trainer.history[:SAVED_AFTER]


if __name__ == "__main__":
    main(*sys.argv[1:])
