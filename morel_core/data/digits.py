"""Handwritten digits, 8×8, from scikit-learn: real data without a download."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
    grey, labels = _read(config)
    images = (grey * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    order = stratified_order(labels, "digits", "test")
    num_test = round(TEST_FRACTION * len(labels))
    whole = TensorSource(images, labels)
    return Official(
        train=whole.subset(order[num_test:].sort().values),
        test=whole.subset(order[:num_test].sort().values),
        num_classes=10,
    )


def _read(config: DataConfig) -> tuple[Tensor, Tensor]:
    """Grey values (1797, 8, 8) float64 and labels (1797,) int64, as `load_digits` returns them.

    From the package's file: its import takes longer than a small training, in every process.
    """
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise MorelError(
            f"data.name = {config.name!r} needs scikit-learn: pip install scikit-learn"
        )
    folder = Path(package.submodule_search_locations[0])
    with gzip.open(folder / "datasets" / "data" / "digits.csv.gz", "rt") as table:
        rows = torch.from_numpy(np.loadtxt(table, delimiter=","))
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].long()
