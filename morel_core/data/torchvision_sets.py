"""CIFAR-10, CIFAR-100, SVHN and Fashion-MNIST, through torchvision."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morel_core.config import DataConfig
from morel_core.data.base import Official, TensorSource, data_root
from morel_core.errors import MorelError

TRAIN_OR_TEST: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})


def cifar10(config: DataConfig) -> Official:
    """50,000 + 10,000 colour images of 32×32 in 10 classes (Krizhevsky 2009)."""
    train, test = _read(config, "CIFAR10", "cifar-10-batches-py/", TRAIN_OR_TEST)
    return Official(_source(train, "targets"), _source(test, "targets"), num_classes=10)


def cifar100(config: DataConfig) -> Official:
    """50,000 + 10,000 colour images of 32×32 in 100 classes (Krizhevsky 2009)."""
    train, test = _read(config, "CIFAR100", "cifar-100-python/", TRAIN_OR_TEST)
    return Official(_source(train, "targets"), _source(test, "targets"), num_classes=100)


def svhn(config: DataConfig) -> Official:
    """73,257 + 26,032 colour images of 32×32, house-number digits (Netzer et al. 2011)."""
    parts: tuple[dict[str, Any], dict[str, Any]] = ({"split": "train"}, {"split": "test"})
    train, test = _read(config, "SVHN", "train_32x32.mat, test_32x32.mat", parts)
    return Official(_source(train, "labels"), _source(test, "labels"), num_classes=10)


def fashion_mnist(config: DataConfig) -> Official:
    """60,000 + 10,000 grey images of 28×28 in 10 classes (Xiao et al. 2017)."""
    train, test = _read(config, "FashionMNIST", "FashionMNIST/raw/*-ubyte", TRAIN_OR_TEST)
    return Official(_source(train, "targets"), _source(test, "targets"), num_classes=10)


def _read(
    config: DataConfig,
    class_name: str,
    files: str,
    parts: tuple[dict[str, Any], dict[str, Any]],
) -> tuple[Any, Any]:
    """torchvision's training and test set, fetched first if missing and ``data.download``."""
    root = data_root(config)
    try:
        factory = getattr(importlib.import_module("torchvision.datasets"), class_name)
    except ImportError as error:
        raise MorelError(
            f"data.name = {config.name!r} needs torchvision: pip install torchvision"
        ) from error
    try:
        return factory(root, **parts[0]), factory(root, **parts[1])
    except ImportError as error:  # SVHN is read with scipy
        raise MorelError(
            f"data.name = {config.name!r} needs {error.name}: pip install {error.name}"
        ) from error
    except Exception as error:  # torchvision reports damage in a dozen types
        if not config.download:
            raise MorelError(
                f"data.name = {config.name!r}: missing or damaged in {str(root)!r}: {files} "
                f"({_reason(error)}); set data.download=true to fetch them, or data.root=… (or "
                f"MOREL_DATA_ROOT) to a folder that holds them"
            ) from error
    return _download(config, factory, root, files, parts)


def _download(
    config: DataConfig,
    factory: Callable[..., Any],
    root: Path,
    files: str,
    parts: tuple[dict[str, Any], dict[str, Any]],
) -> tuple[Any, Any]:
    from filelock import FileLock  # a dependency of torch

    try:
        # The workers of a host share the folder: one fetches, the others wait and find the files.
        with FileLock(root / f".{config.name}.lock"):
            train = factory(root, download=True, **parts[0])
            test = factory(root, download=True, **parts[1])
            return train, test
    except Exception as error:
        raise MorelError(
            f"data.name = {config.name!r}: could not fetch into {str(root)!r}: {files} "
            f"({_reason(error)}); remove damaged files and try again, or set data.root=… (or "
            f"MOREL_DATA_ROOT) to a folder that holds them"
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _source(part: Any, labels: str) -> TensorSource:
    """As (N, C, H, W); torchvision has CIFAR (N, H, W, C), SVHN (N, C, H, W), MNIST (N, H, W)."""
    images: Tensor = torch.as_tensor(part.data)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return TensorSource(
        images.contiguous(), torch.as_tensor(getattr(part, labels), dtype=torch.int64)
    )
