"""A step never waits for its device: seen without one, on meta tensors, which hold no values.

There reading a value (``tolist``, a copy to the host) raises. A dispatch mode looks for the rest:
it fails on operations whose result is a value (``item``, ``bool``) or has a shape that depends on
values (``nonzero``, ``unique``), by torch's own tags, on masks among indices, and where a tensor
lies on another device, as one copied onto the device would. Neither does the trainer's loop around
its steps wait: loader, schedule, guard, sums of losses, averages.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from morel_core import (
    PGD,
    AttackConfig,
    AwpConfig,
    ExperimentConfig,
    MorelNet,
    MorelObjective,
    ObjectiveConfig,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
)
from morel_core.data import Batch, SyntheticConfig
from morel_core.finite import FiniteGuard
from morel_core.losses import Terms
from morel_core.models import DigitsCnn, DigitsCnnConfig
from morel_core.models.net import find_head
from morel_core.optim import make_optimizer
from morel_core.published_batchnorm import PublishedBatchNorm
from morel_core.step import train_step

OBJECTIVES = {
    "trades": ObjectiveConfig(accuracy="trades", features="both"),
    "mart": ObjectiveConfig(accuracy="mart"),
    "loat": ObjectiveConfig(accuracy="loat", loat_lore=True),
    "loat kl": ObjectiveConfig(accuracy="loat", loat_measure="kl", loat_lore=True),
    "loat on trades, late": ObjectiveConfig(
        accuracy="loat", loat_base="trades", loat_early_epochs=0, loat_late_start=1, loat_lore=True
    ),
    "loat, between": ObjectiveConfig(accuracy="loat", loat_early_epochs=0),
    "at": ObjectiveConfig(accuracy="at", features="adversarial", alignment=False),
    "chebyshev": ObjectiveConfig(scalarisation="chebyshev", label_smoothing=0.1),
    "smooth chebyshev": ObjectiveConfig(
        accuracy="at", scalarisation="smooth_chebyshev", label_smoothing=0.1
    ),
    "plain trades": ObjectiveConfig(accuracy="trades", morel=False),
    "plain at": ObjectiveConfig(accuracy="at", morel=False),
}


@pytest.fixture(autouse=True)
def _meta_like_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three things that torch has for every device one would train on, and not for meta."""
    autocast = torch.autocast

    class AnyGenerator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> AnyGenerator:
            return super().__new__(cls, "cpu" if torch.device(device).type == "meta" else device)

    def autocast_as_on_cpu(_device: str, *args: Any, **kwargs: Any) -> torch.autocast:
        return autocast("cpu", *args, **kwargs)

    import_module("torch._dynamo")  # annotates with torch.Generator
    monkeypatch.setattr(torch, "Generator", AnyGenerator)
    monkeypatch.setattr(torch, "autocast", autocast_as_on_cpu)
    optimizer = import_module("torch.optim.optimizer")  # torch.optim hides its own submodules
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"])


class NoWaiting(TorchDispatchMode):
    """Fails on what waits for a device.

    Args:
        draws: whether the host may still draw numbers of its own and move them to the device.
    """

    def __init__(self, *, draws: bool = False) -> None:
        super().__init__()
        self.draws = draws
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_):
            waits = {t for t in tree_leaves(args[1]) if t is not None and t.dtype == torch.bool}
        given = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        assert not waits or (self.draws and given == {"cpu"}), f"{func} waits for the device"
        # Without a meta kernel.
        fused = func.overloadpacket in (torch.ops.aten._fused_sgd_, torch.ops.aten._fused_adamw_)
        result = None if fused else func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        allowed = {"meta", "cpu"} if self.draws else {"meta"}
        assert {t.device.type for t in tensors} <= allowed, f"{func} moves values"
        return result


def meta_net() -> MorelNet:
    """Built in place: `MorelNet.wrap` draws initial weights."""
    encoder = DigitsCnn(DigitsCnnConfig(width=4, norm="batch"), 4, 3)
    name = find_head(encoder, None)
    head = encoder.get_submodule(name)
    assert isinstance(head, nn.Linear)
    encoder.set_submodule(name, nn.Identity())
    return MorelNet(
        encoder,
        head,
        head_name=name,
        embed_dim=8,
        num_heads=2,
        dropout=0.0,
        attention=True,
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.2, 0.3],
    )


def step_on_meta(
    config: ObjectiveConfig,
    *,
    clip_norm: float | None = 1.0,
    published_batchnorm: bool = False,
    spoil: Any = None,
    **attack: Any,
) -> int:
    """One step on meta tensors; the number of operations seen."""
    with torch.device("meta"):
        net = meta_net().train()
        for parameter in net.embedder_parameters():
            parameter.requires_grad_(config.morel)
        optimizer = make_optimizer(OptimizerConfig(), net)
        x = torch.rand(6, 3, 8, 8)
        y = torch.zeros(6, dtype=torch.int64)
        noise = torch.randn(6, 3, 8, 8)
        objective = MorelObjective(config)
        pgd = PGD.from_config(AttackConfig(num_steps=2, **attack), config.attack_loss)
        guard = FiniteGuard(net, x.device)
    # Outside of the default device: what the step makes has to be told where to lie.
    with NoWaiting() as seen:
        guard.before_step()
        terms, finite = train_step(
            net,
            PublishedBatchNorm(objective) if published_batchnorm else objective,
            pgd,
            optimizer,
            x,
            y,
            noise=noise,
            epoch=1,
            num_epochs=10,
            clip_norm=clip_norm,
            allowed=guard.allowed,
            inspect=spoil,
        )
        guard.after_step(finite)
    assert terms.total.device.type == finite.device.type == "meta"
    return seen.operations


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_value_is_read_within_a_step(name: str, norm: str) -> None:
    assert step_on_meta(OBJECTIVES[name], norm=norm) > 100


@pytest.mark.parametrize("init", ["gaussian", "uniform"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nor_by_another_start_or_without_clipping(norm: str, init: str) -> None:
    step_on_meta(OBJECTIVES["trades"], clip_norm=None, norm=norm, init=init)


def test_nor_by_the_published_batchnorm() -> None:
    step_on_meta(OBJECTIVES["trades"], published_batchnorm=True)


RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "published": {"data": {"augmentation": "crop_flip"}},
    "published statistics": {
        "data": {"augmentation": "crop"},
        "training": {"published_batchnorm": True, "swa_start_epoch": 1},
    },
    "strong": {
        "data": {"augmentation": "idbh", "erasing": 0.5},
        "objective": {"accuracy": "mart"},
        "training": {"ema_decay": 0.9, "awp": AwpConfig(gamma=0.01)},
        "optimizer": {"clip_norm": 1.0, "schedule": "one_cycle", "no_decay_on_norm_and_bias": True},
    },
    "mixed": {
        "data": {"cutmix": 0.5, "extra": "extra.npz", "extra_ratio": 0.5},
        "objective": {"accuracy": "at", "morel": False, "label_smoothing": 0.1},
        "attack": {"init": "none"},
        "optimizer": {"name": "adamw", "schedule": "cosine", "warmup_epochs": 1},
    },
    "mixed trades": {
        "data": {"cutmix": 0.5, "augmentation": "idbh"},
        "objective": {"morel": False},
        "attack": {"num_steps": 1, "init": "uniform"},
    },
    "in slices": {
        "objective": {"scalarisation": "chebyshev"},
        "attack": {"norm": "l2", "eps": 0.5},
        "training": {"micro_batches": 2, "precision": "bf16", "channels_last": True},
    },
}


def run_on_meta(options: dict[str, dict[str, Any]], folder: Path) -> ExperimentConfig:
    """Two steps of 8 images."""
    data: dict[str, Any] = {"image_size": 8, "num_train": 20, "num_test": 10, "holdout": 4}
    data |= options.get("data", {})
    if "extra" in data:
        data["extra"] = str(folder / data["extra"])
        images = np.zeros((9, 8, 8, 3), dtype=np.uint8)
        np.savez(data["extra"], image=images, label=np.arange(9))
    return ExperimentConfig(
        data=SyntheticConfig(**data),
        model=DigitsCnnConfig(width=4, norm="batch", embed_dim=8),
        objective=ObjectiveConfig(**options.get("objective", {})),
        attack=AttackConfig(**({"num_steps": 2} | options.get("attack", {}))),
        optimizer=OptimizerConfig(**options.get("optimizer", {})),
        training=TrainingConfig(epochs=1, batch_size=8, **options.get("training", {})),
    )


def steps_on_meta(trainer: Trainer) -> int:
    """Trains an epoch up to where the host reads it; the number of steps seen."""
    batches, steps = trainer.batches.epoch, 0

    def watched(epoch: int) -> Iterator[Batch]:
        nonlocal steps
        with NoWaiting(draws=True) as mode:  # an epoch's numbers are drawn with its first batch
            for batch in batches(epoch):
                mode.draws = False
                yield batch
                steps += 1

    trainer.batches.epoch = watched  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RuntimeError, match="on meta tensors"):
        trainer.run_epoch()
    return steps


@pytest.mark.parametrize("name", RUNS)
def test_nor_by_the_loop_around_the_steps(name: str, tmp_path: Path) -> None:
    trainer = Trainer(run_on_meta(RUNS[name], tmp_path), device="meta")
    assert steps_on_meta(trainer) == len(trainer.batches) == 2


def test_a_read_around_a_step_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FiniteGuard, "after_step", lambda _guard, finite: bool(finite))
    trainer = Trainer(run_on_meta({}, tmp_path), device="meta")
    with pytest.raises(AssertionError, match="waits for the device"):
        steps_on_meta(trainer)


READS: dict[str, tuple[Any, str]] = {
    "item": (lambda total: total.item(), "waits for the device"),
    "bool": (lambda total: bool(total > 0), "waits for the device"),
    "tolist": (lambda total: total.tolist(), "meta"),
    "nonzero": (lambda total: total.reshape(1).nonzero(), "waits for the device"),
    "unique": (lambda total: torch.unique(total), "waits for the device"),
    "mask": (lambda total: total.expand(2)[total.expand(2) > 0], "waits for the device"),
    "copy": (lambda total: total.cpu(), "meta"),
    "from the host": (lambda total: torch.ones(2).to(total.device), "moves values"),
}


@pytest.mark.parametrize("name", READS)
def test_a_read_would_be_seen(name: str) -> None:
    read, message = READS[name]

    def spoil(terms: Terms) -> None:
        read(terms.total)

    with pytest.raises((RuntimeError, AssertionError), match=message):
        step_on_meta(OBJECTIVES["mart"], spoil=spoil)
