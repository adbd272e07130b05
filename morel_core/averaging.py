"""Averages of the weights along training: exponential moving, and stochastic (SWA).

The average is a network of its own beside the trained one; it is what gets measured, kept as best
and exported. It never feeds back into training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import (
    _BatchNorm,  # pyright: ignore[reportPrivateUsage]  # the base that all BatchNorms share
)

from morel_core.config import TrainingConfig
from morel_core.distributed import average_over_ranks
from morel_core.models import MorelNet


def mix(average: nn.Module, net: nn.Module, weight: float) -> None:
    """``average ← average + weight · (net − average)`` in place, for parameters and buffers.

    Counters (integer buffers) are copied. ``average`` is a deep copy of ``net`` or was one.
    """
    mine: list[Tensor] = []
    theirs: list[Tensor] = []
    with torch.no_grad():
        for ours, other in zip(_tensors(average), _tensors(net), strict=True):
            if ours.is_floating_point():
                mine.append(ours)
                theirs.append(other)
            else:
                ours.copy_(other)
        # One kernel for all tensors, which torch's own swa_utils use as well.
        torch._foreach_lerp_(mine, theirs, weight)  # pyright: ignore[reportPrivateUsage]


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, each once however often it is tied."""
    return chain(net.parameters(), net.buffers())


def ema_weight(decay: float, step: int) -> float:
    """Weight of the newest parameters after ``step`` (counted from 0) steps before this one.

    ``1 − min(decay, (1 + step)/(10 + step))``: the first steps forget the initial weights faster,
    as in the public recipes of Rebuffi et al. 2021 and Wang et al. 2023.
    """
    return 1 - min(decay, (1 + step) / (10 + step))


def reestimate_batchnorm(net: nn.Module, batches: Iterator[Tensor]) -> None:
    """Set BatchNorm's running statistics to the mean over ``batches`` (Izmailov et al. 2018).

    The statistics gathered along training belong to other weights than an average's. Only the
    BatchNorm layers are in train mode meanwhile; every module's mode and momentum are restored.
    Under a process group each rank brings its rows and the ranks' statistics are averaged.

    Args:
        net: without BatchNorm nothing happens, and ``batches`` is not touched.
        batches: images (b, C, H, W) in [0, 1].
    """
    layers = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    modes = [(module, module.training) for module in net.modules()]
    momenta = [layer.momentum for layer in layers]
    net.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None  # the plain mean over all batches
    with torch.no_grad():
        for x in batches:
            net(x)
        for layer in layers:
            for statistic in (layer.running_mean, layer.running_var):
                if statistic is not None:
                    statistic.copy_(average_over_ranks(statistic))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    for module, training in modes:
        module.training = training


class WeightAverage:
    """The average that a config asks for: EMA after every step, or SWA after every epoch.

    EMA averages BatchNorm's statistics like the weights (they are moving averages themselves). SWA
    is the plain mean over the ends of the epochs from ``swa_start_epoch`` on, and its statistics
    are estimated anew before it is measured. All its state is ``net``: which step or epoch it is
    at, the caller knows.

    Args:
        config: with ``ema_decay`` or ``swa_start_epoch``.
        net: to be averaged; left as it is.
    """

    def __init__(self, config: TrainingConfig, net: MorelNet) -> None:
        assert (config.ema_decay is None) != (config.swa_start_epoch is None)
        self.config = config
        self.net = copy.deepcopy(net).requires_grad_(False)

    @staticmethod
    def of(config: TrainingConfig, net: MorelNet) -> WeightAverage | None:
        """The average of ``config``, if it asks for one."""
        if config.ema_decay is None and config.swa_start_epoch is None:
            return None
        return WeightAverage(config, net)

    def began(self, epoch: int) -> bool:
        """Whether there is an average after ``epoch`` (counted from 1)."""
        return self.config.swa_start_epoch is None or epoch >= self.config.swa_start_epoch

    def after_step(self, net: nn.Module, step: int) -> None:
        """Take in ``net`` after optimisation step ``step``, counted from 0 over the whole run."""
        if self.config.ema_decay is not None:
            mix(self.net, net, ema_weight(self.config.ema_decay, step))

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        """Take in ``net`` at the end of ``epoch``, counted from 1."""
        start = self.config.swa_start_epoch
        if start is not None and epoch >= start:
            mix(self.net, net, 1 / (epoch - start + 1))

    def before_measuring(self, batches: Iterator[Tensor]) -> None:
        """Re-estimate BatchNorm's statistics where they were not averaged."""
        if self.config.swa_start_epoch is not None:
            reestimate_batchnorm(self.net, batches)
