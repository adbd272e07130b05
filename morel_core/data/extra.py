"""Extra or generated training images from an npz file, mixed into every batch at a ratio."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from morel_core.data.base import TensorSource
from morel_core.errors import check


def load_extra(path: str, shape: tuple[int, int, int], num_classes: int) -> TensorSource:
    """Read ``image: (N, H, W, C) uint8`` and ``label: (N,) int``, as the public EDM sets come.

    Args:
        path: of the npz; nothing in it is unpickled.
        shape: (C, H, W) that the images must have.
        num_classes: labels lie below it.

    Returns:
        The images as (N, C, H, W), on the CPU.

    Raises:
        ConfigError: there is no such file, it is no npz, or its arrays are others.
    """

    import numpy as np  # here, so that training without such a file needs torch alone

    def holds(condition: bool, allowed: str) -> None:
        check(condition, "data.extra", path, allowed)

    place = Path(path).expanduser()
    holds(place.is_file(), "no such file; an npz with image (N, H, W, C) uint8 and label (N,)")
    images, labels = np.empty(0), np.empty(0)
    try:
        with np.load(place, allow_pickle=False) as file:
            names = set(file.files)
            if {"image", "label"} <= names:
                images, labels = file["image"], file["label"]
    except (ValueError, OSError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        holds(False, f"no npz of plain arrays, or damaged ({reason})")
    channels, height, width = shape
    wanted = (len(labels), height, width, channels)
    holds(images.ndim == 4, "an npz whose array image is (N, H, W, C), with label (N,) beside it")
    holds(
        images.shape == wanted and images.dtype == np.uint8 and len(labels) > 0,
        f"image must be {wanted} uint8 with at least 1 image, it is {images.shape} {images.dtype}",
    )
    holds(
        labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer),
        f"label must be (N,) of integers, it is {labels.shape} {labels.dtype}",
    )
    low, high = int(labels.min()), int(labels.max())
    holds(
        low >= 0 and high < num_classes,
        f"labels must lie in [0, {num_classes}), they span {low} to {high}",
    )
    return TensorSource(
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        torch.from_numpy(labels.astype(np.int64)),
    )


def mixed_order(order: Tensor, extra_order: Tensor, batch_size: int, num_extra: int) -> Tensor:
    """Which image stands where in an epoch's batches, the extra ones spread over each batch.

    An epoch has as many steps as without extra images, so that schedules and budgets stay what they
    are: it leaves out ``num_extra / batch_size`` of the original images. The same places of every
    batch are extra, as far apart as they go, so that contiguous parts of a batch (the ranks')
    have their share.

    Args:
        order: (N,) int64 permutation of the original images.
        extra_order: (M,) int64 permutation of the extra ones; begun again where it ends.
        batch_size: of the global batch.
        num_extra: extra images in each, 0 … batch_size.

    Returns:
        (steps · batch_size,) int64; N + i stands for extra image i.
    """
    steps = len(order) // batch_size
    place = torch.arange(batch_size)
    is_extra = (place + 1) * num_extra // batch_size > place * num_extra // batch_size
    mixed = torch.empty((steps, batch_size), dtype=torch.int64)
    mixed[:, ~is_extra] = order[: steps * (batch_size - num_extra)].view(steps, -1)
    taken = torch.arange(steps * num_extra) % len(extra_order)
    mixed[:, is_extra] = len(order) + extra_order[taken].view(steps, -1)
    return mixed.flatten()
