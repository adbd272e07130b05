"""Which images, and how they are augmented and divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from morel_core.errors import check


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are divided. The split follows from ``split_seed`` alone."""

    name: str = "digits"
    """Which data set; the names are below."""
    root: str | None = None
    """Folder of the files; default: the environment's MOREL_DATA_ROOT, else ~/.cache/morel/data."""
    download: bool = False
    """Let torchvision fetch the files into ``root`` when they are missing."""
    holdout: int = 200
    """Images of the training set kept out of training: what selects is measured on them."""
    split_seed: int = 0
    """Of the draws of held-out images and of ``train_size``."""
    train_size: int | None = None
    """Use only this many training images (class-balanced draw); default: all that are left."""
    test_size: int | None = None
    """Use only this many test images (class-balanced draw); default: all."""
    augmentation: Literal["none", "crop", "crop_flip", "idbh"] = "none"
    """idbh: flips, CropShift and ColorShape (Li & Spratling 2023); with ``erasing`` 0.5 or 1 it is
    the whole of their IDBH-weak or -strong."""
    crop_padding: int = 4
    """Pixels on each side; crop and crop_flip only."""
    erasing: float = 0.0
    """Probability that a box of an image is erased with random pixels (Zhong et al. 2020)."""
    cutmix: float = 0.0
    """Probability that a box of an image comes from another one (CutMix, Yun et al. 2019).

    Labels are then (b, K) shares, which an objective of your own must expect.
    """
    extra: str | None = None
    """An npz of more training images (image: NHWC uint8, label: int), as public EDM sets come.

    Generated ones help (Gowal et al. 2021), those of diffusion models most (Wang et al. 2023).
    """
    extra_ratio: float = 0.7
    """Share of each batch that is taken from ``extra`` (Gowal et al. 2021: 0.7 of CIFAR-10's
    batches); the steps of an epoch stay as many."""

    def __post_init__(self) -> None:
        check(self.holdout >= 1, "holdout", self.holdout, "at least 1 image must be held out")
        for key in ("train_size", "test_size"):
            size = getattr(self, key)
            check(size is None or size >= 1, key, size, "null (all) or a number of images >= 1")
        check(self.crop_padding >= 0, "crop_padding", self.crop_padding, "pixels >= 0")
        for key in ("erasing", "cutmix"):
            check(0 <= getattr(self, key) <= 1, key, getattr(self, key), "a probability in [0, 1]")
        share = self.extra_ratio
        check(0 < share < 1, "extra_ratio", share, "a share in (0, 1)")
        used = self.extra is not None or share == DataConfig.extra_ratio
        check(used, "extra_ratio", share, "only with extra, the file that it is a share of")


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(DataConfig):
    """One smooth random picture for each class, plus pixel noise."""

    name: str = "synthetic"
    num_classes: int = 10
    """Pictures, one a class."""
    image_size: int = 16
    """Side in pixels."""
    channels: int = 3
    """1: grey, 3: colour."""
    num_train: int = 2000
    """Training images, the held-out ones among them."""
    num_test: int = 500
    """Test images."""
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


@dataclass(frozen=True, kw_only=True)
class ImageFolderConfig(DataConfig):
    """``ROOT/train/<class>/**`` and ``ROOT/test/<class>/**`` (or ``val``); ROOT: ``data.root``."""

    name: str = "image_folder"
    image_size: int = 64
    """Side in pixels: the middle square of each image is resized to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.image_size >= 1, "image_size", self.image_size, "pixels >= 1")
