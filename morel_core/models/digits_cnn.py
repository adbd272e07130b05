"""A small convolutional network for images of 8x8 to 28x28 pixels."""

from __future__ import annotations

from torch import Tensor, nn

from morel_core.config import DigitsCnnConfig
from morel_core.config.model import GROUPS


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
                layers.append(nn.GroupNorm(GROUPS, out_channels))
            layers.append(nn.ReLU(inplace=True))
            in_channels = out_channels
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(4 * in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def digits_cnn(config: DigitsCnnConfig, num_classes: int, shape: tuple[int, int, int]) -> DigitsCnn:
    """`DigitsCnn` with torch's default initialisation."""
    return DigitsCnn(config, num_classes, shape[0])
