"""Made-up images of any size: for tests, benchmarks and machines without data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from morel_core.config import DataConfig
from morel_core.data.base import DATASETS, Official, TensorSource
from morel_core.errors import check
from morel_core.seeding import generator

PROTOTYPE_GRID = 4
"""Side of the grid that a class's picture is blown up from: smooth, so small networks learn it."""
CHUNK = 4096
"""Images made at a time: bounds the memory that the float noise takes."""


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(DataConfig):
    """One smooth random picture for each class, plus pixel noise."""

    name: str = "synthetic"
    num_classes: int = 10
    image_size: int = 16
    channels: int = 3
    num_train: int = 2000
    """Training images, the held-out ones among them."""
    num_test: int = 500
    noise: float = 0.2
    """Standard deviation of the pixel noise (images lie in [0, 1]): how hard the task is."""
    seed: int = 0
    """Of the pictures and the noise; ``split_seed`` only divides them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.num_classes >= 2, "num_classes", self.num_classes, "must be >= 2")
        check(self.image_size >= 1, "image_size", self.image_size, "pixels >= 1")
        check(self.channels >= 1, "channels", self.channels, "must be >= 1")
        for key in ("num_train", "num_test"):
            check(
                getattr(self, key) >= self.num_classes,
                key,
                getattr(self, key),
                f"at least one image for each of num_classes = {self.num_classes}",
            )
        check(self.noise >= 0, "noise", self.noise, "must be >= 0")


@DATASETS.register("synthetic", SyntheticConfig)
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
