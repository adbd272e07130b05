"""Handwritten digits, 8×8, from scikit-learn: real data without a download."""

from __future__ import annotations

from typing import Any

import torch

from morel_core.config import DataConfig
from morel_core.data.base import Official, TensorSource
from morel_core.data.split import stratified_order
from morel_core.errors import MorelError

TEST_FRACTION = 0.2


def digits(config: DataConfig) -> Official:
    """The 1,797 images of `sklearn.datasets.load_digits`, grey values 0..16 stretched to 0..255.

    There is no official test set: a fixed, class-balanced 20 % (359 images) stands in for it,
    whatever ``split_seed`` says, so that the numbers of different splits compare.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MorelError(
            f"data.name = {config.name!r} needs scikit-learn: pip install scikit-learn"
        ) from error
    bunch: Any = load_digits()
    grey = torch.as_tensor(bunch["images"], dtype=torch.float64)
    images = (grey * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.as_tensor(bunch["target"], dtype=torch.int64)
    order = stratified_order(labels, "digits", "test")
    num_test = round(TEST_FRACTION * len(labels))
    whole = TensorSource(images, labels)
    return Official(
        train=whole.subset(order[num_test:].sort().values),
        test=whole.subset(order[:num_test].sort().values),
        num_classes=10,
    )
