"""Stopping at a step whose loss or gradient is not finite, without waiting for the device.

The host learns of it at the end of the epoch. Until then the device refuses every update by itself,
so that the network stays what it was before that step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FiniteGuard:
    """Watches the steps of one epoch.

    The forward passes of refused steps move BatchNorm's statistics, perhaps to NaN. So the buffers
    are kept as they were before the step: two kernels a step, whatever their number.

    Args:
        net: whose buffers are kept.
        device: of the net.

    Attributes:
        allowed: boolean scalar on the device: all steps so far were finite.
    """

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self._buffers = [b for b in net.buffers() if b.is_floating_point()]
        self._kept = self._flat()
        self.allowed = torch.ones((), dtype=torch.bool, device=device)
        self._done = torch.zeros((), dtype=torch.int64, device=device)

    def before_step(self) -> None:
        """Keep the buffers, unless a step before was not finite."""
        if self._kept is not None:
            flat = self._flat()
            assert flat is not None
            self._kept = torch.where(self.allowed, flat, self._kept)

    def after_step(self, finite: Tensor) -> None:
        """Take in whether a step was finite: boolean scalar on the device."""
        self.allowed = self.allowed & finite
        self._done += self.allowed

    def steps_done(self) -> int:
        """Steps before the first one that was not finite. Waits for the device."""
        return int(self._done.item())

    def restore_buffers(self) -> None:
        """Put the buffers back to before the first step that was not finite."""
        if self._kept is not None:
            sizes = [b.numel() for b in self._buffers]
            for buffer, kept in zip(self._buffers, self._kept.split(sizes), strict=True):
                buffer.copy_(kept.view_as(buffer))

    def _flat(self) -> Tensor | None:
        if not self._buffers:
            return None
        return torch.cat([b.detach().flatten() for b in self._buffers])
