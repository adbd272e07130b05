"""What a run costs before it is run: network passes, and a timed step to turn them into seconds.

A pass is a forward or a backward pass of one image; they are taken to cost the same. Counted are
those of `morel_core.step` and of the evaluation (tests count the real ones), at most: images that
an attack has broken, runs that stop early and the test set are not taken off or added.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import islice

import torch

from morel_core import PGD, Trainer
from morel_core.data import Dataset
from morel_core.ladder import Ladder
from morel_core.losses import MorelObjective
from morel_core.stopping import GUARD_IMAGES, guard_attack
from orchestrator.config import RunConfig

STEPS, LONGEST_S = 3, 20.0
"""Steps that are timed after a first one, and how long that may take."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Of one run, all images together."""

    training: int
    evaluation: int

    def seconds(self, seconds_per_pass: float, workers: int) -> float:
        """Of the whole run, if its workers share each step evenly; each of them measures alone."""
        return seconds_per_pass * (self.training / workers + self.evaluation)


def run_passes(run: RunConfig, train_images: int, holdout_images: int) -> Passes:
    """The passes of a run that trains to its end.

    Args:
        run: resolved.
        train_images: of the training set.
        holdout_images: of the held-out split.
    """
    training, evaluation = run.training, run.evaluation
    images = train_images // training.batch_size * training.batch_size
    passed = sum(step_passes(run, epoch) for epoch in range(1, training.epochs + 1))
    epochs = range(evaluation.every, training.epochs + 1, evaluation.every)
    ladder = Ladder.of(evaluation)
    measured = 0
    for epoch in sorted({*epochs, training.epochs}):
        rung = ladder.at(epoch)
        count = min(holdout_images, rung.num_images or holdout_images)
        measured += count * (1 + measured_passes(rung.attack))
    if training.overfitting_guard:
        attack = PGD.from_config(run.attack, MorelObjective(run.objective).attack_loss)
        each = 1 + measured_passes(attack) + measured_passes(guard_attack(attack))
        measured += training.epochs * min(holdout_images, GUARD_IMAGES) * each
    return Passes(training=images * passed, evaluation=measured)


def step_passes(run: RunConfig, epoch: int) -> int:
    """Passes of one image in a step of ``epoch``: attack, objective, and what is added to them."""
    objective, training = MorelObjective(run.objective), run.training
    attack = PGD.from_config(run.attack, objective.attack_loss)
    forwards = 1 + objective.needs_natural
    objectives = 2 if training.awp.gamma and epoch > training.awp.warmup_epochs else 1
    cached = forwards if training.micro_batches > 1 else 0  # embeddings first, then with gradient
    return attack_passes(attack) + objectives * (2 * forwards + cached)


def attack_passes(attack: PGD) -> int:
    """Passes of one image while it is attacked."""
    ahead = int(attack.loss == "kl")
    look = int(attack.restarts > 1 or attack.iterate == "worst")
    return ahead + attack.restarts * (2 * attack.num_steps + look)


def measured_passes(attack: PGD) -> int:
    """Passes of one image that is attacked and then classified."""
    return attack_passes(attack) + 1


def time_pass(run: RunConfig, data: Dataset) -> float:
    """Seconds of one pass on this machine: steps of the run's real trainer, by its passes.

    On the first GPU if the run asks for one, else on the CPUs of one worker.
    """
    torch.set_num_threads(max(1, run.scaling.cpus_per_worker))
    trainer = Trainer(run, data=data, device="cuda" if run.scaling.gpus_per_worker else "cpu")
    trainer.net.train()
    began, taken = time.perf_counter(), list[float]()
    for batch in islice(trainer.batches.epoch(1), STEPS + 1):
        started = time.perf_counter()
        _, finite = trainer.step(batch)
        finite.item()  # waits for the device
        taken.append(time.perf_counter() - started)
        if time.perf_counter() - began > LONGEST_S:
            break
    later = taken[1:] or taken  # the first one warms up
    return statistics.median(later) / (run.training.batch_size * step_passes(run, epoch=1))
