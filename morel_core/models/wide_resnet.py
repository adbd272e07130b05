"""Wide residual networks (Zagoruyko & Komodakis 2016), laid out and named as in TRADES' code."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from morel_core.config import WideResNetConfig
from morel_core.models.base import init_convolutions


class WideBlock(nn.Module):
    """BN, ReLU and 3x3 convolution, twice; a shortcut that changes width starts after the ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.convShortcut = (
            None
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = F.relu(self.bn2(self.conv1(out)), inplace=True)
        return self.conv2(out) + shortcut


class WideStage(nn.Module):
    """A row of `WideBlock`; the first one carries the stride."""

    def __init__(self, depth: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            WideBlock(in_channels, out_channels, stride),
            *(WideBlock(out_channels, out_channels, 1) for _ in range(depth - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Stem, three stages, BN, ReLU, average pooling, `fc`; (B, C, H, W) → (B, num_classes).

    Without dropout, as in adversarial training. TRADES' own file also builds a fourth stage,
    ``sub_block1``, that its forward pass never uses; it is left out here.
    """

    def __init__(self, *, depth: int, widen_factor: int, num_classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.block1 = WideStage(blocks, widths[0], widths[1], 1)
        self.block2 = WideStage(blocks, widths[1], widths[2], 2)
        self.block3 = WideStage(blocks, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = F.relu(self.bn1(out), inplace=True)
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


def wide_resnet(
    config: WideResNetConfig, num_classes: int, shape: tuple[int, int, int]
) -> WideResNet:
    """WRN-34-10 has 46,160,474 parameters for 3 channels and 10 classes."""
    return WideResNet(
        depth=config.depth,
        widen_factor=config.widen_factor,
        num_classes=num_classes,
        channels=shape[0],
    )
