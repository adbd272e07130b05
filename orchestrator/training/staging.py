"""A data set loaded and hashed once, in the driver, and shared by all workers of a node.

Its images lie in Ray's object store, which brings them to each node once; the workers there map the
same memory. Data sets that are read file by file stay where they are.
"""

from __future__ import annotations

import dataclasses
import platform
import warnings
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from morel_core.config import DataConfig
from morel_core.data import Dataset, TensorSource
from morel_core.errors import MorelError

PARTS = ("train", "holdout", "test", "extra")
INDICES = ("train_indices", "holdout_indices")
# What is done with images, not which they are.
NOT_IMAGES = ("augmentation", "crop_padding", "erasing", "cutmix", "extra_ratio")


def same_images(config: DataConfig, other: DataConfig) -> bool:
    """Whether two configs load the same images, divided in the same way."""
    kept = {key: getattr(other, key) for key in NOT_IMAGES}
    return dataclasses.replace(config, **kept) == other


@dataclass(frozen=True)
class Staged:
    """Where a data set lies, small enough to travel to every worker."""

    config: DataConfig
    """What it was loaded by."""
    fingerprint: str
    """`Dataset.fingerprint`: SHA-256 of images, labels and their order."""
    reference: Any
    """Ray's, to the arrays; None if workers read the files themselves."""

    def fits(self, config: DataConfig) -> bool:
        """Whether ``config`` loads these images."""
        return same_images(config, self.config)

    def take(self, config: DataConfig, device: torch.device | str) -> Dataset | None:
        """The data set for ``config``, on ``device``; None if the caller has to load it.

        On the CPU its tensors are the node's shared memory, which nobody may write into.
        """
        if self.reference is None or not self.fits(config):
            return None
        import ray

        return unpacked(ray.get(self.reference), device)

    def check(self, config: DataConfig, data: Dataset) -> None:
        """Raise `MorelError` where this node's files are not the ones that the driver has hashed.

        Args:
            config: what ``data`` was loaded by, here.
            data: on this node.
        """
        if self.fits(config) and data.fingerprint != self.fingerprint:
            raise MorelError(
                f"data.root = {config.root}: the images on node {platform.node()} are not the "
                f"driver's (fingerprint {data.fingerprint[:12]}, not {self.fingerprint[:12]}): "
                "give every node the same files, or one shared folder"
            )


def stage(config: DataConfig, data: Dataset) -> Staged:
    """Put ``data``, as ``config`` loaded it on the CPU, where all workers find it. Ray runs."""
    import ray

    arrays = packed(data)
    reference = None if arrays is None else ray.put(arrays)
    return Staged(config, data.fingerprint, reference)


def packed(data: Dataset) -> dict[str, Any] | None:
    """``data`` as arrays and plain values; None if its images are read from files as needed."""
    content: dict[str, Any] = {
        field.name: getattr(data, field.name)
        for field in dataclasses.fields(data)
        if field.name not in PARTS
    }
    content |= {name: cast(Tensor, content[name]).numpy() for name in INDICES}
    for name in PARTS:
        source = getattr(data, name)
        if source is not None and not isinstance(source, TensorSource):
            return None
        arrays = None if source is None else (source.images.numpy(), source.labels.numpy())
        content[name] = arrays
    return content


def unpacked(content: dict[str, Any], device: torch.device | str = "cpu") -> Dataset:
    """The data set of `packed`, on ``device``; on the CPU it shares the arrays' memory."""
    values = dict(content)
    values |= {name: _tensor(values[name]) for name in INDICES}
    for name in PARTS:
        if values[name] is not None:
            images, labels = map(_tensor, values[name])
            values[name] = TensorSource(images, labels).to(device)
    return Dataset(**values)


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Without a copy. Sources are only read, which torch cannot be told: it would warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
