"""What a data set is: sources of uint8 images on a device, and a split of them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from morel_core.config import DataConfig
from morel_core.errors import MorelError


class ImageSource(Protocol):
    """Labelled images of one shape, read by index."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        ...

    @property
    def labels(self) -> Tensor:
        """(N,) int64 on the source's device."""
        ...

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor) -> Tensor:
        """(B, C, H, W) uint8 on the source's device; ``indices``: (B,) int64 on any device."""
        ...


class Pool(ImageSource, Protocol):
    """A source that can be divided, fingerprinted and moved: what a data set's adapter returns."""

    def subset(self, indices: Tensor) -> Pool:
        """Only the images of ``indices`` ((M,) int64 on the CPU), in that order."""
        ...

    def digest(self) -> bytes:
        """SHA-256 of the content, the labels and the order."""
        ...

    def to(self, device: torch.device | str) -> Pool:
        """The same images, fetched onto ``device``."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class TensorSource:
    """Images that lie on the device already.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64 on the same device.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8, self.images.dtype
        assert self.images.dim() == 4, self.images.shape
        assert self.labels.dtype == torch.int64, self.labels.dtype
        assert self.labels.shape == self.images.shape[:1], self.labels.shape
        assert self.labels.device == self.images.device, self.labels.device

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor) -> Tensor:
        return self.images.index_select(0, indices.to(self.images.device))

    def subset(self, indices: Tensor) -> TensorSource:
        return TensorSource(self.images[indices], self.labels[indices])

    def digest(self) -> bytes:
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for tensor in (self.labels, self.images):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.digest()

    def to(self, device: torch.device | str) -> TensorSource:
        return TensorSource(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Official:
    """A data set as its authors divide it, on the CPU, before anything is held out."""

    train: Pool
    test: Pool
    num_classes: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set divided for a run; `load_data` makes one.

    Every prefix of ``train`` and of ``holdout`` has the classes in proportion; ``test`` keeps its
    own order.
    """

    name: str
    num_classes: int
    shape: tuple[int, int, int]
    """(C, H, W)."""
    train: ImageSource
    holdout: Pool
    """Images of the training set that are not trained on: what selects is measured on them."""
    test: Pool
    fingerprint: str
    """SHA-256 over all parts' images (a folder: file names and sizes), labels and order."""
    train_indices: Tensor = field(repr=False)
    """(len(train),) int64: where the images stood in the original training set."""
    holdout_indices: Tensor = field(repr=False)
    extra: TensorSource | None = None
    """Images of ``data.extra``, in the order of their file."""


def to_unit(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1], the range that attacks and networks expect."""
    return images.to(torch.float32).div_(255.0)


def data_root(config: DataConfig, layout: str = "") -> Path:
    """The folder of the files: ``data.root``, else MOREL_DATA_ROOT, else ~/.cache/morel/data.

    Args:
        config: of the data set.
        layout: what the folder has to hold, of a set that nobody can fetch.

    Raises:
        MorelError: it is missing or cannot be read. With ``data.download`` a missing one is made.
    """
    from_environment = os.environ.get("MOREL_DATA_ROOT")
    if config.root:
        said, chosen = "data.root", config.root
    elif from_environment:
        said, chosen = "MOREL_DATA_ROOT", from_environment
    else:
        said, chosen = "data.root, by default", "~/.cache/morel/data"
    root = Path(chosen).expanduser().absolute()
    try:
        if config.download:
            root.mkdir(parents=True, exist_ok=True)
        with os.scandir(root):
            pass
    except OSError as error:
        fetched = isinstance(error, FileNotFoundError) and not layout
        raise MorelError(
            f"{said} = {str(root)!r}: {error.strerror}; set data.root=… (or MOREL_DATA_ROOT) to a "
            f"folder that holds {config.name}"
            + (f", which is {layout}" if layout else "")
            + ("; data.download=true fetches torchvision's sets into it" if fetched else "")
        ) from error
    return root
