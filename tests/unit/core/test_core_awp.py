"""Adversarial weight perturbation against its formula on one weight, and inside a step."""

import math

import pytest
import torch
from tiny_run import tiny_run
from torch import nn

from morel_core import AwpConfig, ConfigError, Trainer, TrainingConfig
from morel_core.awp import perturbed_weights
from morel_core.models import DigitsCnnConfig


def test_by_hand():
    """L = w·x + b with w = (3, 4), x = (0, 2): g/‖g‖ = (0, 1), so w moves by γ · 5 · (0, 1)."""
    net = nn.Linear(2, 1).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3.0, 4.0]]))
        net.bias.fill_(1.0)
    x = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    with perturbed_weights(net, 0.1, lambda: net(x).sum()):
        assert torch.allclose(net.weight, torch.tensor([[3.0, 4.5]]).double(), atol=1e-15)
        assert net.bias.item() == 1.0
        assert net.weight.grad is None
        net(x).square().sum().backward()  # d(wx + b)²/dw₂ = 2 · (2 · 4.5 + 1) · 2
    assert net.weight.tolist() == [[3.0, 4.0]]
    assert net.weight.grad.tolist() == [[0.0, pytest.approx(40.0)]]


def test_zero_gamma_calls_nothing():
    with perturbed_weights(nn.Linear(1, 1), 0.0, lambda: pytest.fail("a pass was made")):
        pass


def test_a_zero_gradient_moves_nothing_and_a_bad_one_is_undone():
    net = nn.Linear(2, 1)
    before = net.weight.detach().clone()
    with perturbed_weights(net, 0.5, lambda: (net.weight * 0).sum()):
        assert torch.equal(net.weight, before)
    with perturbed_weights(net, 0.5, lambda: net.weight.sum() * math.nan):
        assert torch.equal(net.weight, before)
    assert torch.equal(net.weight, before)
    with pytest.raises(KeyError), perturbed_weights(net, 0.5, lambda: net.weight.sum()):
        raise KeyError
    assert torch.equal(net.weight, before)


def test_batchnorm_does_not_notice_the_pass():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in net.named_buffers()}
    with perturbed_weights(net, 0.1, lambda: net(torch.rand(4, 2)).square().sum()):
        assert all(torch.equal(net.get_buffer(name), value) for name, value in before.items())


def run(gamma, warmup=0, **sections):
    awp = AwpConfig(gamma=gamma, warmup_epochs=warmup)
    return tiny_run(
        training=TrainingConfig(epochs=2, batch_size=16, awp=awp),
        model=DigitsCnnConfig(width=4, embed_dim=8, norm="batch"),
        **sections,
    )


def test_it_begins_after_the_warm_up():
    plain, late, early = (Trainer(run(*s)) for s in ((0.0,), (0.02, 1), (0.02,)))
    for trainer in (plain, late, early):
        trainer.fit()
    loss = [[m["loss.total"] for m in t.history] for t in (plain, late, early)]
    assert loss[0][0] == loss[1][0] != loss[2][0]
    assert loss[0][1] != loss[1][1]


def test_the_reported_loss_is_the_worse_one():
    config = run(0.02)
    plain, worst = Trainer(run(0.0)), Trainer(config)
    for trainer in (plain, worst):
        batch = next(iter(trainer.batches.epoch(1)))
        trainer.epoch = 1
        trainer.first = trainer.step(batch, None)[0].total.item()
    assert worst.first > plain.first


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    config = run(0.02)
    whole = Trainer(config)
    whole.fit()
    first = Trainer(config)
    first.run_epoch()
    first.save(tmp_path)
    second = Trainer(config)
    second.load(tmp_path)
    second.fit()
    for name, value in whole.net.state_dict().items():
        assert torch.equal(second.net.state_dict()[name], value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gamma": 1.0}, "gamma = 1.0: 0"), ({"warmup_epochs": -1}, "warmup_epochs = -1: must be")],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigError) as caught:
        AwpConfig(**settings)
    assert str(caught.value).startswith(message)
