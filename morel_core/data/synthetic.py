"""Made-up images of any size: for tests, benchmarks and machines without data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from morel_core.config import SyntheticConfig
from morel_core.data.base import Official, TensorSource
from morel_core.seeding import generator

PROTOTYPE_GRID = 4
"""Side of the grid that a class's picture is blown up from: smooth, so small networks learn it."""
CHUNK = 4096
"""Images made at a time: bounds the memory that the float noise takes."""


def synthetic(config: SyntheticConfig) -> Official:
    """Classes of equal size (to one image), the same for the same config on every machine's CPU."""
    coarse = torch.rand(
        (config.num_classes, config.channels, PROTOTYPE_GRID, PROTOTYPE_GRID),
        generator=generator("cpu", config.seed, "prototypes"),
    )
    prototypes = F.interpolate(coarse, size=config.image_size, mode="bilinear", align_corners=False)
    return Official(
        train=_noisy(prototypes, config.num_train, config, "train"),
        test=_noisy(prototypes, config.num_test, config, "test"),
        num_classes=config.num_classes,
    )


def _noisy(prototypes: Tensor, num_images: int, config: SyntheticConfig, part: str) -> TensorSource:
    labels = torch.arange(num_images) % config.num_classes
    images = torch.empty((num_images, *prototypes.shape[1:]), dtype=torch.uint8)
    draws = generator("cpu", config.seed, part)
    for target, classes in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        noise = torch.randn(target.shape, generator=draws)
        noisy = prototypes[classes] + config.noise * noise
        target.copy_(noisy.clamp_(0, 1).mul_(255).round_())
    return TensorSource(images, labels)
