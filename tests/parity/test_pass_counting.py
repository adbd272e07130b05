"""A step makes each encoder pass once: what its speed rests on, counted and not timed."""

from __future__ import annotations

import pytest
from parity_cases import small_batch, small_net
from torch import Tensor, nn

from morel_core import PGD, MorelObjective, ObjectiveConfig, OptimizerConfig
from morel_core.optim import make_optimizer
from morel_core.step import train_step

EXTRA_PASSES = [  # beyond the attack's n
    (ObjectiveConfig(accuracy="trades"), 1 + 2),
    (ObjectiveConfig(accuracy="trades", features="both"), 1 + 2),
    (ObjectiveConfig(accuracy="mart"), 2),
    (ObjectiveConfig(accuracy="mart", features="both"), 2),
    (ObjectiveConfig(accuracy="loat", loat_lore=True), 2),
    (ObjectiveConfig(accuracy="loat", loat_base="trades", loat_lore=True), 1 + 2),
    (ObjectiveConfig(accuracy="at"), 2),
    (ObjectiveConfig(accuracy="trades", morel=False), 1 + 2),
    (ObjectiveConfig(accuracy="mart", morel=False), 2),
    (ObjectiveConfig(accuracy="loat", morel=False), 2),
    (ObjectiveConfig(accuracy="at", morel=False), 1),
]


@pytest.mark.parametrize("awp_gamma", [0.0, 0.01])
@pytest.mark.parametrize("num_steps", [1, 10])
@pytest.mark.parametrize(("config", "extra"), EXTRA_PASSES)
def test_encoder_passes(
    config: ObjectiveConfig, extra: int, num_steps: int, awp_gamma: float
) -> None:
    """AWP adds one forward and backward pass of each batch that the objective passes."""
    net = small_net()
    for parameter in net.embedder_parameters():
        parameter.requires_grad_(config.morel)
    counts = {"forward": 0, "backward": 0, "head": 0}

    def count(kind: str) -> None:
        counts[kind] += 1

    def watch_encoder(_module: nn.Module, _inputs: object, features: Tensor) -> None:
        count("forward")
        if features.requires_grad:
            features.register_hook(lambda _grad: count("backward"))

    net.encoder.register_forward_hook(watch_encoder)
    net.head.register_forward_hook(lambda *_: count("head"))
    objective = MorelObjective(config)
    x, y, noise = small_batch(4, pixels=4)
    train_step(
        net,
        objective,
        PGD(eps=0.1, step_size=0.02, num_steps=num_steps, loss=objective.attack_loss),
        make_optimizer(OptimizerConfig(), net),
        x,
        y,
        noise=noise,
        epoch=1,
        num_epochs=10,
        awp_gamma=awp_gamma,
    )
    # The clean prediction that a KL attack starts from needs no backward pass.
    natural_target = objective.attack_loss == "kl"
    if awp_gamma:
        extra += 1 + objective.needs_natural
    assert counts["forward"] == counts["head"] == num_steps + extra
    assert counts["backward"] == num_steps + extra - natural_target
