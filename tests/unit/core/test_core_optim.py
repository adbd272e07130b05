"""Schedules against values worked out by hand; the update that refuses what is not finite."""

import copy
import math

import pytest
import torch
from torch import nn

from morel_core.config import OptimizerConfig
from morel_core.optim import (
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    set_learning_rate,
    update_if_finite,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("epochs_done", "lr"),
    [(0, 0.1), (74.99, 0.1), (75, 0.001), (89.99, 0.001), (90, 0.00001), (100, 0.00001)],
)
def test_piecewise_factors_are_of_the_base_rate(epochs_done, lr):
    config = OptimizerConfig(
        lr=0.1, schedule="piecewise", milestones=[75, 90], factors=[1e-2, 1e-4]
    )
    assert learning_rate(config, epochs_done, 100) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(
    ("epochs_done", "lr"),
    [(0, 0.2), (2.5, 0.2 * 0.8535533905932737), (5, 0.1), (7.5, 0.2 * 0.1464466094067263), (10, 0)],
)
def test_cosine(epochs_done, lr):
    config = OptimizerConfig(lr=0.2, schedule="cosine")
    assert learning_rate(config, epochs_done, 10) == pytest.approx(lr, abs=1e-15)


@pytest.mark.parametrize(
    ("epochs_done", "lr"), [(0, 0), (0.5, 0.1), (1.5, 0.3), (2, 0.4), (9, 0.4)]
)
def test_warm_up_is_linear_and_step_by_step(epochs_done, lr):
    config = OptimizerConfig(lr=0.4, warmup_epochs=2)
    assert learning_rate(config, epochs_done, 10) == pytest.approx(lr, abs=1e-15)


def test_warm_up_multiplies_the_schedule():
    config = OptimizerConfig(lr=1.0, schedule="cosine", warmup_epochs=4)
    expected = 0.25 * 0.5 * (1 + math.cos(math.pi * 0.1))
    assert learning_rate(config, 1, 10) == pytest.approx(expected, rel=1e-12)


def test_constant():
    assert [learning_rate(OptimizerConfig(lr=0.3), e, 10) for e in (0, 5, 9.9)] == [0.3] * 3


def test_set_learning_rate_reaches_every_group():
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [net.weight]}, {"params": [net.bias]}], lr=1.0)
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def with_gradient(net, value):
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_frozen_parameters_are_not_optimised():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    optimizer = make_optimizer(OptimizerConfig(), net)
    assert [p is net.weight for g in optimizer.param_groups for p in g["params"]] == [True]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs_plain_one(momentum, nesterov):
    if nesterov and not momentum:
        return
    torch.manual_seed(0)
    ours, plain = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    plain.load_state_dict(ours.state_dict())
    config = OptimizerConfig(lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.01)
    optimizer = make_optimizer(config, ours)
    reference = torch.optim.SGD(
        plain.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.01
    )
    for step in range(1, 6):
        for net in (ours, plain):
            with_gradient(net, 1.0 / step)
        assert update_if_finite(optimizer, torch.tensor(1.0))
        reference.step()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


def test_adamw():
    net = nn.Linear(2, 1)
    optimizer = make_optimizer(OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1), net)
    before = net.weight.detach().clone()
    with_gradient(net, 5.0)
    update_if_finite(optimizer, torch.tensor(1.0))
    # The first step of Adam has length lr whatever the gradient; the decay is decoupled.
    expected = before * (1 - 0.01 * 0.1) - 0.01
    torch.testing.assert_close(net.weight.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("gradient", "loss"), [(NAN, 1.0), (INF, 1.0), (1.0, NAN), (1.0, INF), (NAN, NAN)]
)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_nothing_moves_unless_loss_and_gradient_are_finite(name, gradient, loss, steps_before):
    torch.manual_seed(0)
    net = nn.Linear(64, 8)
    optimizer = make_optimizer(OptimizerConfig(name=name, lr=0.1), net)
    for _ in range(steps_before):
        with_gradient(net, 0.5)
        update_if_finite(optimizer, torch.tensor(1.0))
    twin, twin_optimizer = copy.deepcopy((net, optimizer))

    with_gradient(net, gradient)
    finite = update_if_finite(optimizer, torch.tensor(loss), clip_norm=1.0)
    assert finite.dtype == torch.bool
    assert not finite
    for left, right in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right)

    # Nor did the refused step leave anything in the optimiser: the next one is as without it.
    for model, its in ((net, optimizer), (twin, twin_optimizer)):
        with_gradient(model, 0.25)
        assert update_if_finite(its, torch.tensor(1.0))
    for left, right in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_refused_first_step_leaves_no_uninitialised_momentum():
    for _ in range(20):  # memory that is likely to be handed out again
        junk = [torch.full((64, 64), NAN) for _ in range(8)]
        del junk
        net = nn.Linear(64, 64, bias=False)
        optimizer = make_optimizer(OptimizerConfig(), net)
        with_gradient(net, NAN)
        update_if_finite(optimizer, torch.tensor(NAN))
        assert not optimizer.state[net.weight]["momentum_buffer"].any()


def test_one_bad_parameter_holds_back_all():
    net = nn.Linear(3, 2)
    optimizer = make_optimizer(OptimizerConfig(), net)
    before = copy.deepcopy(net.state_dict())
    with_gradient(net, 1.0)
    net.bias.grad[0] = NAN
    assert not update_if_finite(optimizer, torch.tensor(1.0))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_clipping_bounds_the_norm_of_the_whole_gradient():
    net = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(net.weight)
    config = OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0)
    optimizer = make_optimizer(config, net)
    net.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    update_if_finite(optimizer, torch.tensor(1.0), clip_norm=0.5)
    expected = torch.tensor([[-0.3, 0.0, -0.4]])
    torch.testing.assert_close(net.weight.detach(), expected, rtol=1e-5, atol=0)

    net.weight.grad = torch.tensor([[0.03, 0.0, 0.04]])  # short enough: left as it is
    update_if_finite(optimizer, torch.tensor(1.0), clip_norm=0.5)
    expected = torch.tensor([[-0.33, 0.0, -0.44]])
    torch.testing.assert_close(net.weight.detach(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("epochs_done", "lr"),
    [(0, 0.1), (2, 0.55), (4, 1.0), (6, 0.55), (8, 0.1), (9, 0.05), (10, 0.0)],
)
def test_one_cycle(epochs_done, lr):
    config = OptimizerConfig(lr=1.0, schedule="one_cycle", one_cycle_peak=0.4, one_cycle_start=0.1)
    assert learning_rate(config, epochs_done, 10) == pytest.approx(lr, abs=1e-15)


@pytest.mark.parametrize(("epochs_done", "lr"), [(0, 0.0), (1, 0.2), (5, 1.0), (8, 0.4), (10, 0)])
def test_one_cycle_without_a_tail_is_a_triangle(epochs_done, lr):
    config = OptimizerConfig(lr=1.0, schedule="one_cycle", one_cycle_peak=0.5, one_cycle_start=0.0)
    assert learning_rate(config, epochs_done, 10) == pytest.approx(lr, abs=1e-15)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("spared", [False, True])
def test_norms_and_biases_can_be_spared_the_decay(name, spared):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    config = OptimizerConfig(
        name=name, lr=0.5, weight_decay=0.2, momentum=0.0, no_decay_on_norm_and_bias=spared
    )
    optimizer = make_optimizer(config, net)
    with_gradient(net, 0.0)
    assert update_if_finite(optimizer, torch.tensor(1.0))
    for key, parameter in net.named_parameters():
        kept = spared and key not in ("0.weight", "3.weight")
        assert torch.allclose(parameter, torch.tensor(1.0 if kept else 0.9)), key


def test_a_loaded_state_leaves_the_settings_as_they_are():
    """A run that goes on under other settings: the saved ones must not come back."""
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for name in ("sgd", "adamw"):
        saved = make_optimizer(OptimizerConfig(name=name, lr=0.1, weight_decay=0.5), net)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        update_if_finite(saved, torch.tensor(1.0))
        config = OptimizerConfig(name=name, lr=0.3, weight_decay=0.0, momentum=0.5)
        optimizer = make_optimizer(config, other)
        load_optimizer_state(optimizer, saved.state_dict())
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.3, 0.0)
        assert name == "adamw" or group["momentum"] == 0.5
        for mine, theirs in zip(other.parameters(), net.parameters(), strict=True):
            for key, value in saved.state[theirs].items():
                assert torch.equal(optimizer.state[mine][key], value)


def test_momentum_that_begins_later_begins_from_zero():
    net = nn.Linear(2, 2)
    saved = make_optimizer(OptimizerConfig(momentum=0.0), net).state_dict()
    optimizer = make_optimizer(OptimizerConfig(momentum=0.9), net)
    load_optimizer_state(optimizer, saved)
    for parameter in net.parameters():
        buffer = optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(buffer, torch.zeros_like(parameter))
