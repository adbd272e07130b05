"""What the files of classifiers share."""

from __future__ import annotations

from torch import nn


def init_convolutions(model: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_out), as torchvision's and TRADES' networks do.

    Normalisation layers and linear layers keep torch's own initialisation.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
