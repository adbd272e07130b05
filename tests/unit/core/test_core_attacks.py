"""Every attack stays in its ball and in [0, 1], and leaves the network as it found it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from morel_core import PGD, AttackConfig, ConfigError
from morel_core.attacks import AutoAttack, attack_mode
from morel_core.attacks.ball import ascent_step, l2_norm, outside, project, uniform_in_ball
from morel_core.attacks.base import size_label


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(4 * 36, 3),
    )  # fmt: skip


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(1)
    return torch.rand(6, 1, 8, 8, generator=draws), torch.tensor([0, 1, 2, 0, 1, 2])


@given(
    seed=st.integers(0, 10_000),
    eps=st.floats(1e-3, 1.0),
    norm=st.sampled_from(["linf", "l2"]),
    scale=st.floats(0.0, 10.0),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_projection_lands_in_ball_and_box_and_keeps_what_is_inside(seed, eps, norm, scale):
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 1, 4, 4, generator=draws)
    x[0] = x[0].round()  # corners of the box
    start = x + scale * torch.randn(x.shape, generator=draws)
    once = project(start, x, eps, norm)
    assert outside(once, x, eps, norm) == 0.0
    assert once.amin() >= 0.0
    assert once.amax() <= 1.0
    torch.testing.assert_close(project(once, x, eps, norm), once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_outside_measures_by_how_much(norm):
    x = torch.full((2, 1, 2, 2), 0.5)
    moved = x.clone()
    moved[1, 0, 0, 0] += 0.3
    assert outside(moved, x, 0.1, norm) == pytest.approx(0.2, abs=1e-6)
    assert outside(moved, x, 0.3, norm) == 0.0
    assert outside(x + 0.6, x, 10.0, norm) == pytest.approx(0.1, abs=1e-6)
    assert math.isnan(outside(x * float("nan"), x, 0.1, norm))


def test_uniform_start_is_uniform_in_the_cube():
    noise = torch.randn(1000, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    start = uniform_in_ball(noise, 0.1, "linf")
    assert start.abs().amax() <= 0.1
    assert start.mean().abs() < 0.002
    assert start.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)


def test_uniform_start_fills_the_l2_ball():
    noise = torch.randn(4000, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    radius = l2_norm(uniform_in_ball(noise, 2.0, "l2")).flatten() / 2.0
    assert radius.amax() <= 1.0 + 1e-6
    # In two dimensions a share r² of the disc lies within r.
    for r in (0.3, 0.5, 0.8):
        assert (radius < r).double().mean().item() == pytest.approx(r * r, abs=0.03)


def test_an_image_without_gradient_stays():
    x = torch.rand(2, 1, 2, 2)
    gradient = torch.zeros_like(x)
    gradient[1, 0, 0, 0] = -4.0
    stepped = ascent_step(x, gradient, 0.1, "l2")
    assert torch.equal(stepped[0], x[0])
    torch.testing.assert_close(stepped[1] - x[1], gradient[1] / 40)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_confident_networks_tiny_gradient_still_moves_its_image(scale):
    """Its squares underflow to 0 in fp32, or overflow."""
    x, gradient = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    step = ascent_step(x, gradient, 0.1, "l2") - x
    torch.testing.assert_close(ascent_step(x, scale * gradient, 0.1, "l2") - x, step)
    assert l2_norm(step).flatten() == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize("init", ["gaussian", "uniform"])
def test_pgd_raises_the_loss_inside_its_ball_and_leaves_the_net_alone(net, batch, norm, loss, init):
    x, y = batch
    net.train()
    net[3].eval()  # a module in a mode of its own
    net[0].weight.requires_grad_(False)
    net[5].bias.grad = torch.ones(3)
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    attack = PGD(eps=0.2, step_size=0.05, num_steps=5, norm=norm, loss=loss, init=init)

    x_adv = attack(net, x, y, generator=torch.Generator().manual_seed(0))

    assert outside(x_adv, x, 0.2, norm) == 0.0
    assert not x_adv.requires_grad
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 5
    assert torch.equal(net[5].bias.grad, torch.ones(3))
    assert net[5].weight.grad is None
    with attack_mode(net), torch.no_grad():
        clean, attacked = (nn.functional.cross_entropy(net(images), y) for images in (x, x_adv))
        p, log_q = net(x).softmax(1), net(x_adv).log_softmax(1)
    if loss == "ce":
        assert attacked > clean
    else:
        start = PGD(eps=0.2, step_size=0.05, num_steps=1, norm=norm, loss=loss, init=init)
        first = start(net, x, y, generator=torch.Generator().manual_seed(0))
        with attack_mode(net), torch.no_grad():
            log_first = net(first).log_softmax(1)
        divergence = nn.functional.kl_div(log_q, p, reduction="sum")
        assert divergence > nn.functional.kl_div(log_first, p, reduction="sum")


def test_noise_given_is_the_noise_drawn(net, batch):
    x, y = batch
    attack = PGD(eps=0.1, step_size=0.05, num_steps=2, init="uniform")
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    drawn = attack(net, x, y, generator=torch.Generator().manual_seed(7))
    assert torch.equal(attack(net, x, y, noise=noise), drawn)
    assert not torch.equal(attack(net, x, y, noise=-noise), drawn)


def test_each_image_is_attacked_on_its_own(net, batch):
    x, y = batch
    net.double()
    x = x.double()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=x.dtype)
    attack = PGD(eps=0.1, step_size=0.05, num_steps=3)
    together = attack(net, x, y, noise=noise)
    for i in range(len(x)):
        rows = slice(i, i + 1)
        alone = attack(net, x[rows], y[rows], noise=noise[rows])
        torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-12)


def test_fgsm_is_one_signed_step(net, batch):
    x, y = batch
    net.eval()
    attack = PGD(eps=0.1, step_size=0.1, num_steps=1, init="none")
    images = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(images), y), images)
    expected = (x + 0.1 * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(attack(net, x, y), expected, rtol=0, atol=1e-6)


def test_the_mode_comes_back_after_an_error(net):
    net.train()

    def fail():
        assert not net.training
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), attack_mode(net):
        fail()
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (PGD(eps=8 / 255, step_size=2 / 255, num_steps=20), "pgd20_linf_8-255"),
        (PGD(eps=0.031, step_size=0.007, num_steps=10), "pgd10_linf_0.031"),
        (PGD(eps=0.5, step_size=0.1, num_steps=3, norm="l2"), "pgd3_l2_0.5"),
        (PGD(eps=0.1, step_size=0.1, num_steps=1, init="none"), "fgsm_linf_0.1"),
        (PGD(eps=0.1, step_size=0.1, num_steps=1), "pgd1_linf_0.1"),
        (PGD(eps=4 / 255, step_size=1 / 255, num_steps=5, loss="kl"), "kl_pgd5_linf_4-255"),
        (AutoAttack(eps=8 / 255), "autoattack_linf_8-255"),
        (AutoAttack(eps=0.5, norm="l2", version="plus"), "autoattack_plus_l2_0.5"),
    ],
)
def test_names_say_ball_and_eps(attack, name):
    assert attack.name == name
    assert attack.describe()["eps"] == attack.eps
    assert attack.describe()["norm"] == attack.norm


def test_eps_8_255_and_0_031_are_told_apart():
    assert (size_label(8 / 255), size_label(0.031)) == ("8-255", "0.031")
    assert (size_label(1.0), size_label(2.0), size_label(128 / 255)) == ("1", "2", "128-255")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 8, "step_size": 2}, "eps = 8: must be in"),
        ({"loss": "auto"}, "loss = 'auto': ce, kl or cw"),
        ({"loss": "kl", "init": "none"}, "init = 'none': gaussian or uniform"),
    ],
)
def test_pgd_checks_its_parameters(settings, message):
    with pytest.raises(ConfigError) as caught:
        PGD(**({"eps": 0.1, "step_size": 0.05, "num_steps": 3} | settings))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("loss", "expected"), [("auto", "kl"), ("ce", "ce")])
def test_from_config(loss, expected):
    config = AttackConfig(eps=0.05, step_size=0.01, num_steps=4, norm="l2", loss=loss)
    attack = PGD.from_config(config, "kl")
    assert attack == PGD(eps=0.05, step_size=0.01, num_steps=4, norm="l2", loss=expected)
