"""The registry of classifiers and what their files share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from morel_core.registry import Registry

ModelFactory = Callable[[Any, int, tuple[int, int, int]], nn.Module]
"""``(config, num_classes, (channels, height, width)) -> classifier`` whose last `nn.Linear` is its
head, unless the config is an `ExternalConfig`, which can name another."""

MODELS: Registry[ModelFactory] = Registry("model.name")


def init_convolutions(model: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_out), as torchvision's and TRADES' networks do.

    Normalisation layers and linear layers keep torch's own initialisation.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
