"""Attacks that leave a line for each call, and one that kills the process it runs in."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from morel_core import PGD


@dataclass(frozen=True, kw_only=True)
class Logged(PGD):
    """PGD that writes down which chunk it attacks, known by the sum of its pixels."""

    log: str
    fatal: bool = False
    """The first process to call it dies in that call."""

    def describe(self) -> dict[str, Any]:
        """As a plain PGD, whatever its log."""
        return {**super().describe(), "log": "", "fatal": False}

    def __call__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """See `Attack`."""
        with Path(self.log).open("a") as file:
            file.write(f"{os.getpid()} {x.sum().item()}\n")
        if self.fatal and first(Path(f"{self.log}.killed")):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(net, x, y, noise=noise, generator=generator)


def first(marker: Path) -> bool:
    """Whether this process, of all, is the one that makes ``marker``."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
