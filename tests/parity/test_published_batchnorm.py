"""With `PublishedBatchNorm` parity with the published step holds with BatchNorm included."""

from __future__ import annotations

import copy
from typing import Any

import naive
import pytest
import torch
from parity_cases import small_batch, small_net, state
from torch import nn

from morel_core import PGD, MorelError, MorelObjective, ObjectiveConfig, OptimizerConfig
from morel_core.optim import make_optimizer
from morel_core.published_batchnorm import PublishedBatchNorm, batch_weight, published_passes
from morel_core.step import train_step

ATTACK: dict[str, Any] = {"eps": 0.06, "step_size": 0.02, "num_steps": 3}
NUM_STEPS = 10

OBJECTIVES = {
    "trades": (ObjectiveConfig(accuracy="trades"), 5),
    "mart": (ObjectiveConfig(accuracy="mart"), 4),
    "loat": (ObjectiveConfig(accuracy="loat", loat_lore=True), 4),
    "loat on trades": (ObjectiveConfig(accuracy="loat", loat_base="trades"), 5),
    "at": (ObjectiveConfig(accuracy="at"), 3),
    "plain trades": (ObjectiveConfig(accuracy="trades", morel=False), 3),
    "plain mart": (ObjectiveConfig(accuracy="mart", morel=False), 2),
    "plain at": (ObjectiveConfig(accuracy="at", morel=False), 1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ten_steps_with_batchnorm(name: str) -> None:
    config, passes = OBJECTIVES[name]
    settings = OptimizerConfig(lr=0.05, momentum=0.9, weight_decay=1e-3)
    net = small_net(norm="batch", seed=3)
    for parameter in net.embedder_parameters():
        parameter.requires_grad_(config.morel)
    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [0.3 / (index + 1) for index in range(len(layers))]
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    twin, plain = copy.deepcopy(net), copy.deepcopy(net)
    start = state(net)
    objective = MorelObjective(config)
    optimizers = [make_optimizer(settings, net), make_optimizer(settings, plain)]
    theirs = torch.optim.SGD(
        [p for p in twin.parameters() if p.requires_grad],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        foreach=False,
        fused=False,
    )
    for step in range(NUM_STEPS):
        x, y, noise = small_batch(8, seed=step)
        when = {"epoch": step + 1, "num_epochs": NUM_STEPS}
        attack = PGD(**ATTACK, loss=objective.attack_loss)
        for ours, optimizer, wanted in zip(
            (net, plain), optimizers, (PublishedBatchNorm(objective), objective), strict=True
        ):
            train_step(ours, wanted, attack, optimizer, x, y, noise=noise, **when)
        naive.published_step(
            twin, theirs, x, y, noise, config, **ATTACK, attack_loss=attack.loss, **when
        )
    end = twin.state_dict()
    for key, value in net.state_dict().items():
        assert (value - end[key]).abs().max() <= 1e-8, key
    counted = [value for key, value in net.state_dict().items() if "num_batches" in key]
    assert len(counted) >= 2
    assert all(value == NUM_STEPS * passes for value in counted)
    assert [layer.momentum for layer in layers] == momenta

    apart = max(
        (value - end[key]).abs().max().item()
        for key, value in plain.state_dict().items()
        if "running" in key
    )
    if len(published_passes(config)) > objective.needs_natural + 1:
        assert apart > 1e-3, "without the option the statistics differ: else this proves nothing"
    assert any((value - start[key]).abs().max() > 1e-2 for key, value in end.items())


def test_weights_of_both_batches_and_of_the_old_statistics_sum_to_one() -> None:
    passes = published_passes(ObjectiveConfig(accuracy="trades"))
    assert passes == ("natural", "adversarial", "natural", "natural", "adversarial")
    weights = [batch_weight(passes, kind, 0.1) for kind in ("natural", "adversarial")]
    assert sum(weights) + 0.9**5 == pytest.approx(1, abs=1e-15)
    assert weights[1] == pytest.approx(0.1 + 0.1 * 0.9**3, abs=1e-15)


def test_momentum_1_leaves_the_statistics_of_the_last_pass() -> None:
    net = small_net(norm="batch")
    layer = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    layer.momentum = 1.0
    twin = copy.deepcopy(net)
    x, y, noise = small_batch(4)
    x_adv = (x + 0.05 * noise).clamp(0, 1)
    objective = PublishedBatchNorm(MorelObjective(ObjectiveConfig()))
    objective(net, x, x_adv, y, epoch=1, num_epochs=2)
    twin(x_adv)
    first = next(m for m in twin.modules() if isinstance(m, nn.BatchNorm2d))
    assert torch.equal(layer.running_mean, first.running_mean)


def test_a_cumulative_average_is_refused() -> None:
    net = small_net(norm="batch")
    layer = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    layer.momentum = None
    x, y, _ = small_batch(4)
    objective = PublishedBatchNorm(MorelObjective(ObjectiveConfig()))
    with pytest.raises(MorelError, match=r"published_batchnorm.*momentum = None"):
        objective(net, x, x, y, epoch=1, num_epochs=2)
