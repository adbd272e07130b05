"""PGD against its naive twin, and what every attack promises."""

from __future__ import annotations

import math
from typing import Any

import naive
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from parity_cases import assert_equal_to, bounded, grads, small_batch, small_net, state
from torch import Tensor, nn

from morel_core import PGD
from morel_core.attacks.ball import ascent_step, l2_norm, outside, project, uniform_in_ball

NORMS = ("linf", "l2")
INITS = ("gaussian", "uniform", "none")
KINDS = [
    (norm, loss, init)
    for norm in NORMS
    for loss in ("ce", "kl")
    for init in INITS
    if (loss, init) != ("kl", "none")
]

images_at_the_borders = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 1e-9, 1 - 1e-9, 0.5]), st.floats(0, 1)),
    min_size=8,
    max_size=8,
)
radii = st.one_of(st.sampled_from([8 / 255, 0.031, 1 / 255, 1.0, 1e-6]), st.floats(1e-6, 1.0))


# Against the twins. ------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "loss", "init"), KINDS)
def test_pgd_equals_its_twin(norm: str, loss: str, init: str) -> None:
    net = small_net(spread=3.0)
    x, y, noise = small_batch(4)
    parameters: dict[str, Any] = {
        "eps": 0.1 if norm == "linf" else 0.8,
        "step_size": 0.03 if norm == "linf" else 0.3,
        "num_steps": 4,
        "norm": norm,
        "loss": loss,
        "init": init,
    }
    x_adv = PGD(**parameters)(net, x, y, noise=noise)
    assert_equal_to(x_adv, naive.pgd(net, x, y, noise, **parameters))
    assert (x_adv != x).any()


def test_mixed_labels_are_attacked_in_their_shares() -> None:
    """With CutMix: up the gradient of λ CE(y_1) + (1 − λ) CE(y_2)."""
    net = small_net(spread=3.0).eval()
    x, y, _ = small_batch(5)
    other = (y + 1) % 4
    mixed = 0.6 * F.one_hot(y, 4).double() + 0.4 * F.one_hot(other, 4).double()
    attack = PGD(eps=0.1, step_size=0.03, num_steps=1, init="none")
    moving = x.clone().requires_grad_()
    logits = net(moving)
    loss = 0.6 * naive.cross_entropy(logits, y.tolist()) + 0.4 * naive.cross_entropy(
        logits, other.tolist()
    )
    (grad,) = torch.autograd.grad(loss, moving)
    expected = (x + 0.03 * grad.sign()).clamp(0, 1)
    assert_equal_to(attack(net, x, mixed), expected)
    assert not torch.equal(attack(net, x, y), expected)


@pytest.mark.parametrize("norm", NORMS)
@bounded
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 4), eps=st.floats(1e-3, 3))
def test_start_step_and_projection_equal_their_twins(
    norm: str, seed: int, size: int, eps: float
) -> None:
    draws = torch.Generator().manual_seed(seed)
    noise, far, grad = (
        torch.randn((size, 2, 3, 2), generator=draws, dtype=torch.float64) for _ in range(3)
    )
    x = torch.rand(noise.shape, generator=draws, dtype=torch.float64)
    grad[0] = 0.0  # a sample without gradient beside others that have one
    start = uniform_in_ball(noise, eps, norm)
    stepped = ascent_step(x, grad, 0.7 * eps, norm)
    projected = project(x + far, x, eps, norm)
    for i in range(size):
        flat = [t[i].flatten().tolist() for t in (noise, x, grad, x + far)]
        for ours, twin in (
            (start[i], naive.uniform_in_ball(flat[0], eps, norm)),
            (stepped[i], naive.ascent_step(flat[1], flat[2], 0.7 * eps, norm)),
            (projected[i], naive.project(flat[3], flat[1], eps, norm)),
        ):
            assert_equal_to(ours.flatten(), torch.tensor(twin, dtype=torch.float64))
    assert torch.equal(stepped[0], x[0])


# In the ball and in [0, 1]. ----------------------------------------------------------------------


def assert_inside(x_adv: Tensor, x: Tensor, eps: float, norm: str) -> None:
    """No further out than the rounding of ``x ± eps`` in the images' precision."""
    assert x_adv.dtype == x.dtype
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if norm == "linf":
        assert (x_adv <= x + eps).all()
        assert (x_adv >= x - eps).all()
    else:
        unit = torch.finfo(x.dtype).eps
        length = (x_adv.double() - x.double()).flatten(1).norm(dim=1).max().item()
        assert length <= eps * (1 + 4 * unit) + math.sqrt(x[0].numel()) * unit / 2
    assert outside(x_adv, x, eps, norm) == 0.0


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@bounded
@given(pixels=images_at_the_borders, eps=radii, steps=st.integers(1, 3), data=st.data())
def test_stays_in_ball_and_box(
    norm: str, init: str, dtype: torch.dtype, pixels: list[float], eps: float, steps: int, data: Any
) -> None:
    x = torch.tensor(pixels, dtype=dtype).view(2, 1, 2, 2)
    step_size = data.draw(st.sampled_from([0.3, 1.0, 2.0])) * eps
    seed = data.draw(st.integers(0, 1000))
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to(dtype)
    attack = PGD(eps=eps, step_size=step_size, num_steps=steps, norm=norm, init=init)
    x_adv = attack(net, x, torch.tensor([0, 2]), generator=torch.Generator().manual_seed(seed))
    assert_inside(x_adv, x, eps, norm)


@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (4, 3, 224, 224)])
@pytest.mark.parametrize("eps", [0.01, 0.5, 3.0])
def test_the_l2_projection_keeps_its_accuracy_on_large_images(
    shape: tuple[int, ...], eps: float
) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.full(shape, 0.5)
    direction = torch.randn(shape, generator=draws)
    length = direction.double().flatten(1).norm(dim=1)
    assert (l2_norm(direction).flatten() / length - 1).abs().max() < 2e-7
    # Halving a difference of floats is where all pixels can round to the same side.
    x_adv = project(x + 2 * eps * direction / l2_norm(direction), x, eps, "l2")
    assert_inside(x_adv, x, eps, "l2")


def test_outside_sees_a_single_pixel_too_far() -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    beyond = x.clone()
    beyond[1, 0, 0, 0] += 0.11
    assert outside(beyond, x, 0.1, "linf") == pytest.approx(0.01, abs=1e-6)
    assert outside(beyond, x, 0.1, "l2") == pytest.approx(0.01, abs=1e-6)
    assert outside(beyond, x, 0.2, "linf") == 0.0
    assert outside(torch.full_like(x, -0.1), x, 1.0, "linf") == pytest.approx(0.1)
    assert math.isnan(outside(x * math.nan, x, 1.0, "l2"))


# The network as it was. --------------------------------------------------------------------------


class Failing(nn.Module):
    """Raises at its n-th forward pass."""

    def __init__(self, fail_at: int) -> None:
        super().__init__()
        self.passes = 0
        self.fail_at = fail_at

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == self.fail_at:
            raise RuntimeError("the network failed")
        return x


@pytest.mark.parametrize("fail_at", [None, 1, 3])
@pytest.mark.parametrize(("norm", "loss", "init"), KINDS)
def test_the_network_is_left_as_it_was(norm: str, loss: str, init: str, fail_at: int) -> None:
    net = small_net(norm="batch", dropout=0.3)
    net.encoder.add_module("failing", Failing(fail_at or 10**9))
    inner, failing = net.encoder.forward, net.encoder.failing
    net.encoder.forward = lambda x: failing(inner(x))
    modules = dict(net.named_modules())
    for i, module in enumerate(modules.values()):
        module.training = i % 3 != 0
    for i, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        parameter.grad = torch.full_like(parameter, i) if i % 4 == 0 else None
    modes = {name: module.training for name, module in modules.items()}
    flags = [p.requires_grad for p in net.parameters()]
    had_grad = [p.grad is not None for p in net.parameters()]
    before, before_grads = state(net), grads(net)
    x, y, noise = small_batch(4)
    x_before, random_state = x.clone(), torch.get_rng_state()

    attack = PGD(eps=0.1, step_size=0.05, num_steps=3, norm=norm, loss=loss, init=init)
    if fail_at is None:
        x_adv = attack(net, x, y, noise=noise)
        assert not x_adv.requires_grad
        assert x_adv.grad_fn is None
    else:
        with pytest.raises(RuntimeError, match="the network failed"):
            attack(net, x, y, noise=noise)

    assert {name: module.training for name, module in net.named_modules()} == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [p.grad is not None for p in net.parameters()] == had_grad
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    for key, value in grads(net).items():
        assert torch.equal(value, before_grads[key]), key
    assert torch.equal(x, x_before)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


class ModeSpy(nn.Module):
    """Notes the mode it is run in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.training)
        return x


def test_the_network_attacked_is_in_eval_mode_and_keeps_nothing_for_its_weights() -> None:
    spy = ModeSpy()
    net = nn.Sequential(spy, nn.Flatten(), nn.Linear(108, 4).double()).train()
    flags: list[bool] = []
    net[2].register_forward_pre_hook(lambda layer, _: flags.append(layer.weight.requires_grad))
    x, y, noise = small_batch(3)
    PGD(eps=0.1, step_size=0.05, num_steps=2, loss="kl")(net, x, y, noise=noise)
    assert spy.seen == flags == [False] * 3
    assert spy.training


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(grad_mode: Any) -> None:
    net = small_net()
    x, y, noise = small_batch(3)
    attack = PGD(eps=0.1, step_size=0.05, num_steps=2, loss="kl")
    expected = attack(net, x, y, noise=noise)
    with grad_mode():
        assert torch.equal(attack(net, x, y, noise=noise), expected)
    x_needs_grad = x.clone().requires_grad_()
    assert torch.equal(attack(net, x_needs_grad, y, noise=noise), expected)
    assert x_needs_grad.grad is None


# Randomness. -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "loss", "init"), KINDS)
def test_the_result_follows_from_noise_or_generator(norm: str, loss: str, init: str) -> None:
    net = small_net(spread=3.0)
    x, y, noise = small_batch(5)
    attack = PGD(eps=0.1, step_size=0.01, num_steps=3, norm=norm, loss=loss, init=init)
    x_adv = attack(net, x, y, noise=noise)
    assert torch.equal(attack(net, x, y, noise=noise), x_adv)

    def drawn(seed: int) -> Tensor:
        return attack(net, x, y, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1), drawn(1))
    assert torch.equal(drawn(1), drawn(2)) is (init == "none")
    # One image's result depends on its own noise only, so a batch can be divided over workers.
    for i in range(len(x)):
        alone = attack(net, x[i : i + 1], y[i : i + 1], noise=noise[i : i + 1])
        assert_equal_to(alone[0], x_adv[i])


@pytest.mark.parametrize(("norm", "loss", "init"), KINDS)
def test_the_loss_does_not_go_down(norm: str, loss: str, init: str) -> None:
    net = small_net(spread=5.0).eval()
    x, y, noise = small_batch(32)
    settings: dict[str, Any] = {"norm": norm, "loss": loss, "init": init, "num_steps": 1}
    eps = 0.05 if norm == "linf" else 0.5
    hardly_moved = PGD(eps=eps, step_size=1e-9, **settings)(net, x, y, noise=noise)
    settings["num_steps"] = 10
    x_adv = PGD(eps=eps, step_size=eps / 4, **settings)(net, x, y, noise=noise)

    def mean_loss(images: Tensor) -> float:
        with torch.no_grad():
            log_q, log_p = F.log_softmax(net(images), 1), F.log_softmax(net(x), 1)
        if loss == "ce":
            return F.nll_loss(log_q, y).item()
        return (log_p.exp() * (log_p - log_q)).sum(1).mean().item()

    start = mean_loss(hardly_moved)
    assert mean_loss(x_adv) > (start + 0.02 if loss == "ce" else 10 * start)


class Constant(nn.Module):
    """The same logits for every image: all input gradients are zero."""

    def forward(self, x: Tensor) -> Tensor:
        return (0 * x).flatten(1)[:, :4] + torch.arange(4.0, dtype=x.dtype)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("init", INITS)
def test_without_gradient_the_image_stays_at_its_start(norm: str, init: str) -> None:
    x, y, noise = small_batch(3)
    eps = 0.1
    attack = PGD(eps=eps, step_size=0.05, num_steps=3, norm=norm, init=init)
    start = {
        "gaussian": x + 0.001 * noise,
        "uniform": x + uniform_in_ball(noise, eps, norm),
        "none": x,
    }[init]
    x_adv = attack(Constant(), x, y, noise=noise)
    assert x_adv.isfinite().all()
    assert_equal_to(x_adv, project(start, x, eps, norm))
    if init == "none":
        assert torch.equal(x_adv, x)


# The uniform start. ------------------------------------------------------------------------------


def test_the_linf_start_is_uniform_on_the_cube() -> None:
    noise = torch.randn((20_000, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    start = uniform_in_ball(noise, 0.3, "linf").double()
    assert start.abs().max() <= 0.3
    coordinates = start.flatten(1)
    # Moments of U(-1, 1): 0, 1/3, 0, 1/5; standard errors below 0.005 with 20,000 draws.
    for power, moment in ((1, 0.0), (2, 1 / 3), (3, 0.0), (4, 1 / 5)):
        assert ((coordinates / 0.3) ** power).mean(0) == pytest.approx([moment] * 4, abs=0.02)
    covariance = coordinates.T @ coordinates / len(coordinates) / 0.3**2
    off_diagonal = covariance - covariance.diag().diag()
    assert off_diagonal.abs().max() < 0.02


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 2, 3), (3, 16, 16), (3, 32, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_l2_start_is_uniform_on_the_ball(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    eps, d = 0.5, math.prod(shape)
    size = 20_000 if d < 100 else 2_000
    draws = torch.Generator().manual_seed(0)
    start = uniform_in_ball(torch.randn((size, *shape), generator=draws, dtype=dtype), eps, "l2")
    assert start.isfinite().all()
    flat = start.double().flatten(1) / eps
    radius = flat.norm(dim=1)
    assert radius.max() <= 1 + 1e-6
    # Volume grows with r^d, so r^d is U(0, 1): moments 1/2, 1/3, 1/4.
    volume = radius**d
    for power, moment in ((1, 1 / 2), (2, 1 / 3), (3, 1 / 4)):
        assert (volume**power).mean().item() == pytest.approx(moment, abs=4 * 0.3 / math.sqrt(size))
    # No direction is preferred: mean 0, and E[x_i²] = 1 / (d + 2).
    scale = 1 / math.sqrt(d + 2)
    assert flat.mean(0).abs().max() < 5 * scale / math.sqrt(size)
    assert (flat**2).mean().item() == pytest.approx(scale**2, rel=0.02)
    if d < 100:
        assert (flat**2).mean(0) == pytest.approx([scale**2] * d, rel=0.05)
