"""Pre-activation ResNet-18 (He et al. 2016, "Identity Mappings in Deep Residual Networks")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from morel_core.models.base import init_convolutions
from morel_core.models.resnet import ResNetConfig


class PreActBlock(nn.Module):
    """BN, ReLU and 3x3 convolution, twice; the first activation also feeds a strided shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, width, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = F.relu(self.bn2(self.conv1(out)), inplace=True)
        return self.conv2(out) + shortcut


class PreActResNet(nn.Module):
    """Stem, four stages, BN, ReLU, average pooling and `fc`; (B, C, H, W) → (B, num_classes).

    The last `bn` is the paper's and that of the adversarial-training literature (Rice et al. 2020);
    the common CIFAR implementation leaves it out, and has 16 · width = 1,024 parameters fewer.
    """

    def __init__(self, *, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.layer1 = nn.Sequential(PreActBlock(width, width, 1), PreActBlock(width, width, 1))
        self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                PreActBlock(factor * width, 2 * factor * width, 2),
                PreActBlock(2 * factor * width, 2 * factor * width, 1),
            )
            for factor in (1, 2, 4)
        )
        self.bn = nn.BatchNorm2d(8 * width)
        self.fc = nn.Linear(8 * width, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        out = F.relu(self.bn(out), inplace=True)
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


def preact_resnet18(
    config: ResNetConfig, num_classes: int, shape: tuple[int, int, int]
) -> PreActResNet:
    """11,172,170 parameters for 3 channels and 10 classes."""
    return PreActResNet(width=config.width, num_classes=num_classes, channels=shape[0])
