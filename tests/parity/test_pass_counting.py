"""A step makes each encoder pass once: what its speed rests on, counted and not timed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from parity_cases import small_batch, small_net
from torch import Tensor, nn

from morel_core import (
    PGD,
    AttackConfig,
    AwpConfig,
    EvaluationConfig,
    ExperimentConfig,
    MorelNet,
    MorelObjective,
    ObjectiveConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
)
from morel_core.data import SyntheticConfig
from morel_core.models import DigitsCnnConfig
from morel_core.optim import make_optimizer
from morel_core.step import train_step

EXTRA_PASSES = [  # beyond the attack's n
    (ObjectiveConfig(accuracy="trades"), 1 + 2),
    (ObjectiveConfig(accuracy="trades", features="both"), 1 + 2),
    (ObjectiveConfig(accuracy="trades", scalarisation="chebyshev", label_smoothing=0.1), 1 + 2),
    (ObjectiveConfig(accuracy="trades", scalarisation="smooth_chebyshev", alignment=False), 1 + 2),
    (ObjectiveConfig(accuracy="mart"), 2),
    (ObjectiveConfig(accuracy="mart", features="both"), 2),
    (ObjectiveConfig(accuracy="loat", loat_lore=True), 2),
    (ObjectiveConfig(accuracy="loat", loat_measure="kl", loat_early_epochs=0), 2),
    (ObjectiveConfig(accuracy="loat", loat_base="trades", loat_lore=True), 1 + 2),
    (ObjectiveConfig(accuracy="loat", loat_early_epochs=0, loat_late_start=1, loat_lore=True), 2),
    (ObjectiveConfig(accuracy="at"), 2),
    (ObjectiveConfig(accuracy="at", features="adversarial", label_smoothing=0.1), 2),
    (ObjectiveConfig(accuracy="trades", morel=False), 1 + 2),
    (ObjectiveConfig(accuracy="mart", morel=False), 2),
    (ObjectiveConfig(accuracy="loat", morel=False), 2),
    (ObjectiveConfig(accuracy="at", morel=False), 1),
]


@dataclasses.dataclass
class Counts:
    """Images that the encoder and the head of a net passed forward, and the encoder backward."""

    forward: int = 0
    backward: int = 0
    head: int = 0

    def __sub__(self, other: Counts) -> Counts:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Counts(*(now - then for now, then in zip(mine, theirs, strict=True)))


def counted(net: MorelNet) -> Counts:
    """Goes on counting what ``net`` does from here on."""
    counts = Counts()

    def count_forward(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        counts.forward += len(inputs[0])

    def watch_backward(_module: nn.Module, _inputs: object, features: Tensor) -> None:
        if features.requires_grad:
            features.register_hook(count_backward)

    def count_backward(grad: Tensor) -> None:
        counts.backward += len(grad)

    def count_head(_module: nn.Module, _inputs: object, logits: Tensor) -> None:
        counts.head += len(logits)

    net.encoder.register_forward_pre_hook(count_forward)  # what is passed again may end early
    net.encoder.register_forward_hook(watch_backward)
    net.head.register_forward_hook(count_head)
    return counts


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
    counts = counted(net)
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
    passes = 4 * (num_steps + extra)
    assert counts == Counts(forward=passes, backward=passes - 4 * natural_target, head=passes)


@pytest.mark.parametrize("loss", ["ce", "kl"])
@pytest.mark.parametrize("init", ["gaussian", "uniform", "none"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_passes_of_a_training_attack(norm: Any, init: Any, loss: Any) -> None:
    if init == "none" and loss == "kl":
        return  # refused
    net = small_net()
    counts = counted(net)
    config = AttackConfig(eps=0.1, step_size=0.02, num_steps=3, norm=norm, init=init, loss=loss)
    x, y, noise = small_batch(4, pixels=4)
    PGD.from_config(config, "auto")(net, x, y, noise=noise)
    passes = 4 * (3 + (loss == "kl"))
    assert counts == Counts(forward=passes, backward=4 * 3, head=passes)


BATCH, ATTACK_STEPS = 8, 2
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], int, int]] = {
    # of training, of data, and a step's further passes: forward and backward
    "published": ({"published_batchnorm": True}, {"augmentation": "crop_flip"}, 1 + 2, 2),
    "averaged": ({"ema_decay": 0.9}, {"augmentation": "idbh", "erasing": 0.5}, 1 + 2, 2),
    "awp": ({"awp": AwpConfig(gamma=0.01), "precision": "bf16"}, {}, 1 + 4, 4),
    "in slices": ({"micro_batches": 3, "channels_last": True}, {}, 1 + 2 * 2, 2),
}


@pytest.mark.parametrize("name", RUNS)
def test_passes_of_a_run(name: str) -> None:
    """The trainer adds none, but for the shares of gradients once an epoch: backward passes."""
    training, data, forward, backward = RUNS[name]
    trainer = Trainer(
        ExperimentConfig(
            data=SyntheticConfig(image_size=8, num_train=28, num_test=10, holdout=4, **data),
            model=DigitsCnnConfig(width=4, embed_dim=8),
            attack=AttackConfig(num_steps=ATTACK_STEPS),
            training=TrainingConfig(epochs=2, batch_size=BATCH, **training),
            evaluation=EvaluationConfig(every=2),
        )
    )
    counts = counted(trainer.net)
    each: list[Counts] = []
    step = trainer.step

    def counted_step(*args: Any) -> Any:
        before = dataclasses.replace(counts)
        result = step(*args)
        each.append(counts - before)
        return result

    trainer.step = counted_step  # pyright: ignore[reportAttributeAccessIssue]
    trainer.run_epoch()
    expected = Counts(
        forward=BATCH * (ATTACK_STEPS + forward),
        backward=BATCH * (ATTACK_STEPS + backward),
        head=BATCH * (ATTACK_STEPS + 1 + (4 if name == "awp" else 2)),
    )
    assert each[1:] == [expected, expected]
    shares = 4 * 2 * BATCH  # of four terms, each through one batch or both
    assert expected.backward < each[0].backward <= expected.backward + shares
    assert counts.forward == sum(seen.forward for seen in each), "none between the steps"
