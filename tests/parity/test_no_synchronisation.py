"""A step never waits for its device: seen without one, on meta tensors, which hold no values.

There reading a value (``tolist``, a copy to the host) raises. A dispatch mode looks for the rest:
it fails on operations whose result is a value (``item``, ``bool``) or has a shape that depends on
values (``nonzero``, ``unique``), by torch's own tags, on masks among indices, and where a tensor
lies on another device, as one copied onto the device would.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from morel_core import PGD, MorelNet, MorelObjective, ObjectiveConfig, OptimizerConfig
from morel_core.config import AttackConfig
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
    "at": ObjectiveConfig(accuracy="at", features="adversarial"),
    "plain trades": ObjectiveConfig(accuracy="trades", morel=False),
    "plain at": ObjectiveConfig(accuracy="at", morel=False),
}


@pytest.fixture(autouse=True)
def _meta_like_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two things that torch has for every device one would train on, and not for meta."""
    autocast = torch.autocast

    def autocast_as_on_cpu(_device: str, *args: Any, **kwargs: Any) -> torch.autocast:
        return autocast("cpu", *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", autocast_as_on_cpu)
    optimizer = import_module("torch.optim.optimizer")  # torch.optim hides its own submodules
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"])


class NoWaiting(TorchDispatchMode):
    """Fails on what waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_):
            waits = {t for t in tree_leaves(args[1]) if t is not None and t.dtype == torch.bool}
        assert not waits, f"{func} waits for the device"
        fused = func.overloadpacket is torch.ops.aten._fused_sgd_  # which has no meta kernel
        result = None if fused else func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        assert {t.device.type for t in tensors} <= {"meta"}, f"{func} moves values"
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
