"""Which images are trained on, held out and tested on."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from morel_core.catalogue import DATASETS
from morel_core.config import DataConfig
from morel_core.data.base import Dataset, TensorSource
from morel_core.data.extra import load_extra
from morel_core.errors import ConfigError, check
from morel_core.seeding import generator


def stratified_order(labels: Tensor, *seed: int | str) -> Tensor:
    """A random permutation of which every prefix has the classes in proportion.

    Draws that take its first images are nested: a larger one contains the smaller.

    Args:
        labels: (N,) int64 on the CPU.
        seed: parts of the seed, see `derive_seed`.

    Returns:
        (N,) int64. With classes of equal size any two differ by at most one image in every prefix.
    """
    shuffled = torch.randperm(len(labels), generator=generator("cpu", *seed))
    grouped = shuffled[labels[shuffled].argsort(stable=True)]  # by class, random within
    counts = labels.bincount()
    classes = labels[grouped]
    rank_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[classes]
    place = torch.empty(len(labels), dtype=torch.float64)
    place[grouped] = (rank_in_class + 0.5) / counts[classes].double()
    return shuffled[place[shuffled].argsort(stable=True)]  # ties are broken at random


def load_data(config: DataConfig, device: torch.device | str = "cpu") -> Dataset:
    """Read the data set that ``config.name`` names, divide it, and put it on ``device``.

    The held-out images follow from ``split_seed`` and ``holdout`` alone, the training images from
    these and ``train_size``, the test images from ``test_size``; each is a class-balanced draw, and
    a larger draw contains the smaller one. Nothing depends on the device.

    Raises:
        ConfigError: an unknown name, the wrong config class for it, or more images than there are.
        MorelError: files or a package are missing or damaged.
    """
    entry = DATASETS.get(config.name)
    # Exactly its class: another one's settings would be read and ignored.
    check(
        type(config) is entry.config_class,
        "data.name",
        config.name,
        f"is configured by {entry.config_class.__name__}, not by {type(config).__name__}",
    )
    official = entry.factory(config)
    labels = official.train.labels
    available = f"{config.name} has {len(labels)} training images"
    if config.holdout >= len(labels):
        raise ConfigError(
            "data.holdout",
            config.holdout,
            f"at most {len(labels) - 1}: {available}, and some must be left to train on",
        )
    left = len(labels) - config.holdout
    if config.train_size is not None and config.train_size > left:
        raise ConfigError(
            "data.train_size",
            config.train_size,
            f"at most {left}: {available}, and data.holdout keeps {config.holdout}",
        )
    if config.test_size is not None and config.test_size > len(official.test):
        raise ConfigError(
            "data.test_size",
            config.test_size,
            f"at most {len(official.test)}: {config.name} has no more test images",
        )

    order = stratified_order(labels, config.split_seed, "holdout")
    holdout_indices, rest = order[: config.holdout], order[config.holdout :]
    # Drawn anew: the end of a balanced order is not itself balanced to the image.
    rest = rest[stratified_order(labels[rest], config.split_seed, "train")]
    train_indices = rest[: config.train_size]
    test = official.test
    if config.test_size is not None:
        chosen = stratified_order(test.labels, 0, "test")[: config.test_size]
        test = test.subset(chosen.sort().values)

    train = official.train.subset(train_indices)
    holdout = official.train.subset(holdout_indices)
    digest = hashlib.sha256()
    extra = None
    if config.extra is not None:
        check(
            isinstance(train, TensorSource),
            "data.extra",
            config.extra,
            f"null with {config.name}, which is read file by file and takes no array beside it",
        )
        extra = load_extra(config.extra, train.shape, official.num_classes)
    for part in (train, holdout, test, *([extra] if extra is not None else [])):
        digest.update(part.digest())
    return Dataset(
        name=config.name,
        num_classes=official.num_classes,
        shape=train.shape,
        train=train.to(device),
        holdout=holdout.to(device),
        test=test.to(device),
        fingerprint=digest.hexdigest(),
        train_indices=train_indices,
        holdout_indices=holdout_indices,
        extra=None if extra is None else extra.to(device),
    )
