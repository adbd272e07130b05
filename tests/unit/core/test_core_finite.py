"""A step that is not finite, and what is left of the network and of the epoch."""

import json

import pytest
import torch
from tiny_run import tiny_run

from morel_core import OptimizerConfig, Trainer, TrainingConfig
from morel_core.models import DigitsCnnConfig

CONFIG = tiny_run(
    model=DigitsCnnConfig(width=4, norm="batch"),
    training=TrainingConfig(epochs=4, batch_size=8),
    optimizer=OptimizerConfig(lr=0.01, schedule="constant"),
)


def spoil_gradient(trainer, epoch, step, value):
    """In this step (counted from 1), the gradient holds ``value`` in one place."""
    batch = list(trainer.batches.epoch(epoch))[step - 1]
    parameter = [p for p in trainer.net.parameters() if p.requires_grad][-1]
    original = trainer.step

    def spoiled(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[0] = value
        return gradient

    def one_step(given, *others):
        if given.seed != batch.seed:
            return original(given, *others)
        handle = parameter.register_hook(spoiled)
        try:
            return original(given, *others)
        finally:
            handle.remove()

    trainer.step = one_step


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_stops_at_the_step_and_keeps_what_was_before_it(value, tmp_path):
    trainer = Trainer(CONFIG)
    assert len(trainer.batches) >= 4
    trainer.run_epoch()
    spoil_gradient(trainer, 2, 3, value)
    metrics = trainer.run_epoch()
    assert (metrics["diverged"], metrics["diverged_step"]) == (1.0, 3.0)
    assert trainer.done

    undisturbed = Trainer(CONFIG)
    undisturbed.run_epoch()
    undisturbed.epoch = 2
    undisturbed.net.train()
    batches = list(undisturbed.batches.epoch(2))
    for batch in batches[:2]:
        undisturbed.step(batch)
    for name, kept in undisturbed.net.state_dict().items():
        if kept.is_floating_point():
            torch.testing.assert_close(trainer.net.state_dict()[name], kept, rtol=0, atol=0)

    trainer.save(tmp_path)
    kept = json.loads((tmp_path / "progress.json").read_text())["diverged"]
    assert (kept["epoch"], kept["step"], kept["seed"]) == (2, 3, batches[2].seed)
    images = trainer.data.train.fetch(torch.tensor(kept["images"]))
    assert torch.equal(images.float() / 255, batches[2].x)


def test_a_run_that_did_not_diverge_has_nothing_to_show(tmp_path):
    trainer = Trainer(CONFIG)
    metrics = trainer.run_epoch()
    assert "diverged_step" not in metrics
    trainer.save(tmp_path)
    assert json.loads((tmp_path / "progress.json").read_text())["diverged"] is None
