"""Ten steps of `train_step` end where ten literal, unoptimised published steps end."""

from __future__ import annotations

import copy

import naive
import pytest
import torch
from parity_cases import small_batch, small_net, state

from morel_core import PGD, MorelObjective, ObjectiveConfig, OptimizerConfig
from morel_core.optim import make_optimizer
from morel_core.step import train_step

ATTACK = {"eps": 0.06, "step_size": 0.02, "num_steps": 5}
NUM_STEPS = 10

OBJECTIVES = {
    "trades": ObjectiveConfig(accuracy="trades"),
    "mart": ObjectiveConfig(accuracy="mart", features="adversarial"),
    "loat": ObjectiveConfig(accuracy="loat", features="both", loat_early_epochs=4, loat_lore=True),
    "loat on trades": ObjectiveConfig(
        accuracy="loat",
        loat_base="trades",
        loat_measure="kl",
        loat_early_epochs=2,
        loat_late_start=5,
        loat_lore=True,
    ),
    "at": ObjectiveConfig(accuracy="at", alpha=1.0, preference=(0.6, 0.4)),
    "trades chebyshev": ObjectiveConfig(
        accuracy="trades", scalarisation="chebyshev", preference=(0.7, 0.3)
    ),
    "at smooth chebyshev": ObjectiveConfig(
        accuracy="at", scalarisation="smooth_chebyshev", label_smoothing=0.1
    ),
    "plain trades": ObjectiveConfig(accuracy="trades", morel=False),
    "plain at": ObjectiveConfig(accuracy="at", morel=False),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    ("clip_norm", "awp_gamma"), [(None, 0.0), (0.5, 0.0), (None, 0.02), (0.5, 0.02)]
)
def test_ten_steps(name: str, clip_norm: float | None, awp_gamma: float) -> None:
    config = OBJECTIVES[name]
    settings = OptimizerConfig(lr=0.05, momentum=0.9, weight_decay=1e-3, clip_norm=clip_norm)
    net = small_net(seed=3)
    for parameter in net.embedder_parameters():
        parameter.requires_grad_(config.morel)
    twin = copy.deepcopy(net)
    start = state(net)
    objective = MorelObjective(config)
    attack = PGD(**ATTACK, loss=objective.attack_loss)
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
        x, y, noise = small_batch(8, seed=step)
        epoch = step + 1
        terms, finite = train_step(
            net,
            objective,
            attack,
            optimizer,
            x,
            y,
            noise=noise,
            epoch=epoch,
            num_epochs=NUM_STEPS,
            clip_norm=clip_norm,
            awp_gamma=awp_gamma,
        )
        loss = naive.published_step(
            twin,
            plain,
            x,
            y,
            noise,
            config,
            **ATTACK,
            attack_loss="kl" if "trades" in name else "ce",
            epoch=epoch,
            num_epochs=NUM_STEPS,
            clip_norm=clip_norm,
            awp_gamma=awp_gamma,
        )
        assert finite
        assert terms.total.item() == pytest.approx(loss.item(), rel=1e-8)
    end = twin.state_dict()
    for key, value in net.state_dict().items():
        assert (value - end[key]).abs().max() <= 1e-8, key
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    moved = max((net.state_dict()[key] - start[key]).abs().max().item() for key in trained)
    assert moved > 1e-2, "ten steps that change nothing would prove nothing"
