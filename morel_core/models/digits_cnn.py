"""A small convolutional network for images of 8x8 to 28x28 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from morel_core.config import ModelConfig
from morel_core.errors import check
from morel_core.models.base import MODELS

_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class DigitsCnnConfig(ModelConfig):
    """Settings of `DigitsCnn`."""

    width: int = 32
    """Channels of the first convolution; the other two have twice as many."""
    norm: Literal["batch", "group", "none"] = "batch"
    """group and none couple no samples: the loss then does not depend on the number of workers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.width >= 1, "width", self.width, "channels >= 1")
        check(
            self.norm != "group" or self.width % _GROUPS == 0,
            "width",
            self.width,
            f"a multiple of {_GROUPS} with norm: group",
        )


class DigitsCnn(nn.Module):
    """Three 3x3 convolutions and a linear head `fc`; (B, C, H, W) → (B, num_classes).

    The features are pooled to 2x2, not to one value a channel: digits are told apart by where
    their strokes are. Any image size works.
    """

    def __init__(self, config: DigitsCnnConfig, num_classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = channels
        for out_channels, stride in (
            (config.width, 1),
            (2 * config.width, 2),
            (2 * config.width, 2),
        ):
            layers.append(
                nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=config.norm == "none")
            )
            if config.norm == "batch":
                layers.append(nn.BatchNorm2d(out_channels))
            elif config.norm == "group":
                layers.append(nn.GroupNorm(_GROUPS, out_channels))
            layers.append(nn.ReLU(inplace=True))
            in_channels = out_channels
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(4 * in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


@MODELS.register("digits_cnn", DigitsCnnConfig)
def digits_cnn(config: DigitsCnnConfig, num_classes: int, shape: tuple[int, int, int]) -> DigitsCnn:
    """`DigitsCnn` with torch's default initialisation."""
    return DigitsCnn(config, num_classes, shape[0])
