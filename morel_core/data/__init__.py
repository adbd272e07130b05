"""Data sets by name, divided for a run, and the batches that training draws from them.

    dataset = load_data(DataConfig(name="cifar10", holdout=1000), device="cuda")
    batches = Batches(
        dataset.train, batch_size=128, seed=0, augmentation="crop_flip", crop_padding=4
    )
    for batch in batches.epoch(1):
        ...

A data set of one's own is a function from a config to `Official`, entered into `DATASETS`.
"""

from morel_core.catalogue import DATASETS
from morel_core.config import DataConfig, ImageFolderConfig, SyntheticConfig
from morel_core.data.augment import Augmentation
from morel_core.data.base import (
    Dataset,
    ImageSource,
    Official,
    Pool,
    TensorSource,
    to_unit,
)
from morel_core.data.image_folder import ImageFolderSource
from morel_core.data.loader import Batch, Batches
from morel_core.data.split import load_data

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batch",
    "Batches",
    "DataConfig",
    "Dataset",
    "ImageFolderConfig",
    "ImageFolderSource",
    "ImageSource",
    "Official",
    "Pool",
    "SyntheticConfig",
    "TensorSource",
    "load_data",
    "to_unit",
]
