"""Averages of weights against values worked out by hand, and what a run makes of them."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_run import EVAL_ATTACK, tiny_run
from torch import nn

from morel_core import (
    ConfigError,
    EvaluationConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
    checkpoint,
)
from morel_core.averaging import ema_weight, mix, reestimate_batchnorm
from morel_core.models import DigitsCnnConfig

NORMED = DigitsCnnConfig(width=4, embed_dim=8, norm="batch")
EMA = TrainingConfig(epochs=3, batch_size=16, ema_decay=0.8)
SWA = TrainingConfig(epochs=4, batch_size=16, swa_start_epoch=2)


def lasting(metrics):
    return {k: v for k, v in metrics.items() if "seconds" not in k and "per_second" not in k}


def copied(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def test_mixing_by_hand():
    average, net = nn.BatchNorm1d(1).double(), nn.BatchNorm1d(1).double()
    with torch.no_grad():
        average.weight.fill_(2.0)
        net.weight.fill_(4.0)
        net.running_mean.fill_(8.0)
    net.num_batches_tracked.fill_(7)
    mix(average, net, 0.25)
    assert average.weight.item() == 2.5
    assert average.running_mean.item() == 2.0
    assert average.num_batches_tracked.item() == 7  # a counter has no mean
    assert net.weight.item() == 4.0


def test_a_tied_weight_is_mixed_once():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    net[1].weight = net[0].weight
    average = copy.deepcopy(net)
    with torch.no_grad():
        average[0].weight.fill_(0.0)
        net[0].weight.fill_(1.0)
    mix(average, net, 0.5)
    assert average[0].weight.item() == average[1].weight.item() == 0.5


def test_the_first_steps_forget_faster():
    assert ema_weight(0.999, 0) == pytest.approx(0.9)
    assert ema_weight(0.999, 8) == pytest.approx(0.5)
    assert ema_weight(0.999, 10**6) == pytest.approx(0.001)
    assert ema_weight(0.05, 0) == pytest.approx(0.95)


def test_batchnorm_is_estimated_as_the_mean_over_batches():
    net = nn.Sequential(nn.BatchNorm2d(1, momentum=0.3), nn.Dropout(0.5)).double()
    net[1].eval()
    batches = [torch.tensor(v).view(-1, 1, 1, 1).double() for v in ([0.0, 2.0], [3.0, 9.0])]
    reestimate_batchnorm(net, iter(batches))
    assert net[0].running_mean.item() == pytest.approx((1 + 6) / 2)
    assert net[0].running_var.item() == pytest.approx((2 + 18) / 2)  # unbiased within a batch
    assert net[0].momentum == 0.3
    assert (net.training, net[0].training, net[1].training) == (True, True, False)


def test_without_batchnorm_no_batch_is_made():
    def forbidden():
        raise AssertionError("a batch was made")
        yield

    reestimate_batchnorm(nn.Linear(2, 2), forbidden())


def test_swa_is_the_mean_over_the_ends_of_epochs():
    trainer = Trainer(tiny_run(training=SWA, model=NORMED))
    ends = []
    for metrics in trainer.epochs():
        ends.append(copied(trainer.net))
        assert trainer.network is (trainer.average.net if metrics["epoch"] >= 2 else trainer.net)
    for name, parameter in trainer.average.net.named_parameters():
        mean = torch.stack([end[name] for end in ends[1:]]).mean(0)
        torch.testing.assert_close(parameter, mean, rtol=0, atol=1e-6)
    estimated = copy.deepcopy(trainer.average.net)
    reestimate_batchnorm(estimated, (batch.x for batch in trainer.batches.epoch(4)))
    for name, value in trainer.average.net.named_buffers():
        assert torch.equal(value, estimated.get_buffer(name)), name
        if "running" in name:
            assert not torch.equal(value, trainer.net.get_buffer(name)), name


def test_ema_follows_each_step(monkeypatch):
    trainer = Trainer(tiny_run(training=EMA, model=NORMED))
    expected = copied(trainer.net)
    step = trainer.step

    def followed(*args):
        result = step(*args)
        followed.steps += 1
        weight = 1 - min(0.8, followed.steps / (followed.steps + 9))
        for name, value in trainer.net.state_dict().items():
            if value.is_floating_point():
                expected[name] = (1 - weight) * expected[name] + weight * value
        return result

    followed.steps = 0
    monkeypatch.setattr(trainer, "step", followed)
    trainer.fit()
    assert followed.steps == 9
    for name, value in trainer.average.net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [EMA, SWA])
def test_averaging_does_not_change_the_training(training):
    plain = Trainer(
        tiny_run(training=replace(training, ema_decay=None, swa_start_epoch=None), model=NORMED)
    )
    averaged = Trainer(tiny_run(training=training, model=NORMED))
    for ours, theirs in zip(averaged.fit(), plain.fit(), strict=True):
        losses = {k: v for k, v in theirs.items() if k.startswith("loss.")}
        assert {k: ours[k] for k in losses} == losses
    for name, value in plain.net.state_dict().items():
        assert torch.equal(averaged.net.state_dict()[name], value)


@pytest.mark.parametrize("training", [EMA, SWA])
@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_equals_the_uninterrupted_one(training, every, tmp_path):
    config = tiny_run(
        training=training,
        model=NORMED,
        evaluation=EvaluationConfig(attack=EVAL_ATTACK, batch_size=16, every=every),
    )
    whole = Trainer(config)
    whole.fit()
    for stop in (1, 2):
        first = Trainer(config)
        for _ in range(stop):
            first.run_epoch()
        first.save(tmp_path / str(stop))
        second = Trainer(config)
        second.load(tmp_path / str(stop))
        second.fit()
        assert [lasting(m) for m in second.history] == [lasting(m) for m in whole.history]
        for mine, theirs in (
            (second.average.net.state_dict(), whole.average.net.state_dict()),
            (second.net.state_dict(), whole.net.state_dict()),
            (second.best_state, whole.best_state),
        ):
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("training", [EMA, SWA])
def test_an_average_outlives_a_step_that_is_not_finite(training):
    lr = OptimizerConfig(lr=0.01, schedule="piecewise", milestones=[2], factors=[1e11])
    trainer = Trainer(tiny_run(training=replace(training, epochs=6), model=NORMED, optimizer=lr))
    trainer.fit()
    assert trainer.diverged
    assert trainer.average.net.encoder.features[1].running_var.abs().sum() > 0
    assert all(value.isfinite().all() for value in trainer.average.net.state_dict().values())


@pytest.mark.parametrize("training", [EMA, SWA])
def test_the_average_is_what_is_measured_and_kept(training, tmp_path):
    trainer = Trainer(tiny_run(training=training, model=NORMED))
    history = trainer.fit()
    measured = trainer.evaluate("holdout", {})["clean"].accuracy
    assert measured == history[-1]["clean_accuracy"]
    if trainer.best["epoch"] == trainer.epoch:
        average = trainer.average.net.state_dict()
        assert all(torch.equal(average[k], v) for k, v in trainer.best_state.items())
    trainer.save(tmp_path)
    assert checkpoint.load_network(tmp_path, "averaged").keys() == trainer.best_state.keys()
    trainer.load_best()
    for net in (trainer.net, trainer.network):
        assert all(torch.equal(net.state_dict()[k], v) for k, v in trainer.best_state.items())
    assert trainer.evaluate("holdout", {})["clean"].accuracy == history[-1]["best_clean_accuracy"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema_decay": 1.0}, "ema_decay = 1.0: null"),
        ({"ema_decay": 0.0}, "ema_decay = 0.0: null"),
        ({"swa_start_epoch": 0}, "swa_start_epoch = 0: null"),
        ({"swa_start_epoch": 11}, "swa_start_epoch = 11: null (off) or an epoch from 1 to epochs"),
        ({"ema_decay": 0.9, "swa_start_epoch": 2}, "swa_start_epoch = 2: one average at a time"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**settings)
    assert str(caught.value).startswith(message)
