"""What holds on a CPU holds on CUDA, and what only CUDA has: no waiting, captured attacks, bf16."""

from __future__ import annotations

import copy
from typing import Any

import naive
import pytest
import torch
from parity_cases import assert_equal_to, small_batch, small_net, state
from test_step_parity import OBJECTIVES
from torch import Tensor

from benchmarks.captured_step import CapturedStep
from morel_core import PGD, MorelNet, MorelObjective, ObjectiveConfig, OptimizerConfig
from morel_core.capture import CapturedAttack
from morel_core.models import ResNetConfig, build_net
from morel_core.optim import make_optimizer
from morel_core.precision import EncoderPasses
from morel_core.step import train_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

BALL: dict[str, Any] = {"eps": 0.06, "step_size": 0.02, "num_steps": 5}
NUM_STEPS = 10
CUDA = torch.device("cuda")


def on_cuda(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    x, y, noise = small_batch(size, seed=seed)
    return x.to(CUDA), y.to(CUDA), noise.to(CUDA)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_ten_steps_are_the_published_ones(name: str, captured: bool) -> None:
    config = OBJECTIVES[name]
    settings = OptimizerConfig(lr=0.05, momentum=0.9, weight_decay=1e-3)
    net = small_net(seed=3).to(CUDA)
    for parameter in net.embedder_parameters():
        parameter.requires_grad_(config.morel)
    twin, start = copy.deepcopy(net), state(net)
    objective = MorelObjective(config)
    pgd = PGD(**BALL, loss=objective.attack_loss)
    attack = CapturedAttack(pgd) if captured else pgd
    optimizer = make_optimizer(settings, net)
    plain = torch.optim.SGD(
        [p for p in twin.parameters() if p.requires_grad],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        foreach=False,
        fused=False,
    )
    for step in range(NUM_STEPS):
        x, y, noise = on_cuda(8, seed=step)
        epochs = {"epoch": step + 1, "num_epochs": NUM_STEPS}
        terms, finite = train_step(net, objective, attack, optimizer, x, y, noise=noise, **epochs)
        kind = "kl" if "trades" in name else "ce"
        loss = naive.published_step(
            twin, plain, x, y, noise, config, **BALL, attack_loss=kind, **epochs
        )
        assert finite
        assert terms.total.item() == pytest.approx(loss.item(), rel=1e-8)
    end = twin.state_dict()
    for key, value in net.state_dict().items():
        assert (value - end[key]).abs().max() <= 1e-8, key
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert max((net.state_dict()[key] - start[key]).abs().max().item() for key in trained) > 1e-2


def test_a_step_on_cuda_is_the_step_on_a_cpu() -> None:
    ends: list[dict[str, Tensor]] = []
    for device in (torch.device("cpu"), CUDA):
        net = small_net(seed=5).to(device)
        optimizer = make_optimizer(OptimizerConfig(lr=0.05), net)
        for step in range(3):
            x, y, noise = (values.to(device) for values in small_batch(8, seed=step))
            train_step(
                net,
                MorelObjective(ObjectiveConfig()),
                PGD(**BALL, loss="kl"),
                optimizer,
                x,
                y,
                noise=noise,
                epoch=1,
                num_epochs=1,
            )
        ends.append({key: value.cpu() for key, value in state(net).items()})
    for key, value in ends[0].items():
        assert_equal_to(ends[1][key], value, 1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_a_captured_attack_is_the_attack_also_after_updates(loss: Any, norm: Any) -> None:
    """Up to rounding: the library may choose other convolutions while a graph is recorded."""
    net = small_net(seed=1, norm="batch").to(CUDA)
    pgd = PGD(**BALL, loss=loss, norm=norm)
    captured = CapturedAttack(pgd)

    def compare(net: MorelNet, x: Tensor, y: Tensor, noise: Tensor) -> None:
        assert_equal_to(captured(net, x, y, noise=noise), pgd(net, x, y, noise=noise), 1e-8)

    for seed in range(3):
        compare(net, *on_cuda(8, seed))
        with torch.no_grad():  # as an optimiser does, in place
            for parameter in net.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    compare(net, *on_cuda(5, seed=9))  # another shape
    compare(small_net(seed=2, norm="batch").to(CUDA), *on_cuda(5, seed=9))  # other parameters
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("accuracy", ["trades", "mart", "loat", "at"])
def test_a_captured_step_trains_as_the_step_does(accuracy: Any) -> None:
    net = small_net(seed=4, norm="batch").to(CUDA).train()
    twin = copy.deepcopy(net)
    objective = MorelObjective(ObjectiveConfig(accuracy=accuracy))
    pgd = PGD(**BALL, loss=objective.attack_loss)
    optimizer, other = (make_optimizer(OptimizerConfig(lr=0.05), each) for each in (net, twin))
    captured = CapturedStep(twin, objective, pgd, other)
    for seed in range(NUM_STEPS):
        x, y, noise = on_cuda(8, seed)
        terms, _ = train_step(
            net, objective, pgd, optimizer, x, y, noise=noise, epoch=1, num_epochs=100
        )
        assert captured(x, y, noise).item() == pytest.approx(terms.total.item(), rel=1e-8)
    theirs = state(twin)
    for key, value in state(net).items():
        assert_equal_to(theirs[key], value, 1e-8)


def resnet(seed: int) -> MorelNet:
    config = ResNetConfig(width=16)
    return build_net(config, num_classes=10, shape=(3, 32, 32), seed=seed).to(CUDA).train()


class Run:
    """Steps on images that can be told apart; the i-th step of every run sees the same batch."""

    def __init__(self, net: MorelNet, accuracy: Any, *, captured: bool, **passes: Any) -> None:
        self.net = net
        self.objective = MorelObjective(ObjectiveConfig(accuracy=accuracy))
        pgd = PGD(eps=0.031, step_size=0.007, num_steps=10, loss=self.objective.attack_loss)
        self.attack = CapturedAttack(pgd) if captured else pgd
        self.optimizer = make_optimizer(OptimizerConfig(lr=0.01), net)
        self.passes = EncoderPasses(net, **passes)

    def step(self, i: int) -> float:
        """Its loss."""
        draws = torch.Generator().manual_seed(i)
        patterns = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(99))
        y = torch.randint(10, (64,), generator=draws)
        x = 0.6 * patterns[y] + 0.4 * torch.rand(64, 3, 32, 32, generator=draws)
        noise = torch.randn(x.shape, generator=draws)
        with self.passes.active():
            terms, _ = train_step(
                self.net,
                self.objective,
                self.attack,
                self.optimizer,
                x.to(CUDA),
                y.to(CUDA),
                noise=noise.to(CUDA),
                epoch=1,
                num_epochs=10,
            )
        return terms.total.item()


FAST: dict[str, Any] = {"precision": "bf16", "channels_last": True}


MISSED = pytest.mark.xfail(reason="0.0126 in one of the steps, H100, torch 2.11", strict=True)


@pytest.mark.parametrize("accuracy", ["mart", "at", pytest.param("loat", marks=MISSED)])
def test_each_bf16_loss_is_within_a_hundredth(accuracy: str) -> None:
    """Each of 20 steps from the weights that fp32 has reached; TRADES as on a CPU, over a run.

    LOAT's groups of right and wrong predictions change where rounding changes one of them.
    """
    plain = Run(resnet(0), accuracy, captured=False)
    fast = Run(copy.deepcopy(plain.net), accuracy, captured=True, **FAST)
    for i in range(20):
        fast.net.load_state_dict(plain.net.state_dict())
        assert fast.step(i) == pytest.approx(plain.step(i), rel=1e-2)


def test_a_bf16_run_of_trades_has_the_loss_of_an_fp32_run() -> None:
    plain = Run(resnet(0), "trades", captured=False)
    fast = Run(copy.deepcopy(plain.net), "trades", captured=True, **FAST)
    expected = sum(plain.step(i) for i in range(20)) / 20
    assert sum(fast.step(i) for i in range(20)) / 20 == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("accuracy", ["trades", "mart", "loat", "at"])
def test_a_step_never_waits_for_the_device(accuracy: Any) -> None:
    net = resnet(1)
    objective = MorelObjective(ObjectiveConfig(accuracy=accuracy))
    attack = PGD(eps=0.031, step_size=0.007, num_steps=3, loss=objective.attack_loss)
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0), net)
    x = torch.rand(16, 3, 32, 32, device=CUDA)
    y = torch.arange(16, device=CUDA) % 10
    noise = torch.randn_like(x)
    for mode in ("default", "error"):  # the first step chooses algorithms and may wait
        torch.cuda.set_sync_debug_mode(mode)
        try:
            train_step(net, objective, attack, optimizer, x, y, noise=noise, epoch=1, num_epochs=9)
        finally:
            torch.cuda.set_sync_debug_mode("default")
