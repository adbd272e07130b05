"""A folder of image files, one folder for each class; read from disk batch by batch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from morel_core.config import ImageFolderConfig
from morel_core.data.base import Official, data_root
from morel_core.errors import MorelError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
MAX_THREADS = 16
LAYOUT = "train/<class>/* and test/<class>/* (or val/<class>/*)"


@dataclass(frozen=True)
class ImageFile:
    path: str
    """Relative to the root, with forward slashes."""
    size: int
    """Bytes."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageFolderSource:
    """Image files that are read, made RGB and resized whenever they are fetched."""

    root: Path
    files: list[ImageFile]
    labels: Tensor
    """(N,) int64; its device is where images are fetched to."""
    image_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.image_size, self.image_size

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, indices: Tensor) -> Tensor:
        """Reads with as many threads as torch computes with.

        Raises:
            MorelError: a file is gone or damaged.
        """
        device = self.labels.device
        # From pinned memory the copy need not wait for the kernels of the step before.
        images = torch.empty(
            (len(indices), *self.shape), dtype=torch.uint8, pin_memory=device.type == "cuda"
        )
        rows = images.numpy()
        paths = [self.root / self.files[i].path for i in indices.tolist()]

        def read(row: int) -> None:
            rows[row] = _read_image(paths[row], self.image_size)

        with ThreadPoolExecutor(min(MAX_THREADS, torch.get_num_threads())) as threads:
            list(threads.map(read, range(len(paths))))  # the list raises what a thread raised
        return images.to(device, non_blocking=True)

    def subset(self, indices: Tensor) -> ImageFolderSource:
        files = [self.files[i] for i in indices.tolist()]
        return ImageFolderSource(self.root, files, self.labels[indices], self.image_size)

    def digest(self) -> bytes:
        """Of names, sizes and labels: reading every file would take as long as an epoch."""
        digest = hashlib.sha256(repr(self.shape).encode())
        for file, label in zip(self.files, self.labels.tolist(), strict=True):
            digest.update(f"{file.path}\0{file.size}\0{label}\n".encode())
        return digest.digest()

    def to(self, device: torch.device | str) -> ImageFolderSource:
        return ImageFolderSource(self.root, self.files, self.labels.to(device), self.image_size)


def image_folder(config: ImageFolderConfig) -> Official:
    """Classes are the folders of ``train``, in alphabetical order; the test set may lack some.

    Raises:
        MorelError: Pillow is missing, a folder is missing or empty, or the test set has a class
            of its own.
    """
    if importlib.util.find_spec("PIL") is None:  # said now, not at the first batch
        raise MorelError(f"data.name = {config.name!r} needs Pillow: pip install pillow")
    root = data_root(config, LAYOUT)
    test_part = "test" if (root / "test").is_dir() else "val"
    for part in ("train", test_part):
        if not _folders(root / part):
            raise MorelError(
                f"data.root = {str(root)!r}: found no class folders in {part}/; {config.name} "
                f"expects {LAYOUT}"
            )
    classes = _folders(root / "train")
    return Official(
        train=_scan(root, "train", classes, config.image_size),
        test=_scan(root, test_part, classes, config.image_size),
        num_classes=len(classes),
    )


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _scan(root: Path, part: str, classes: list[str], image_size: int) -> ImageFolderSource:
    """The image files of ``part``, labelled by their class's place in ``classes``."""
    files: list[ImageFile] = []
    labels: list[int] = []
    for name in _folders(root / part):
        if name not in classes:
            raise MorelError(
                f"data.root = {str(root)!r}: {part}/{name}/ has no counterpart in train/, whose "
                f"classes are {', '.join(classes)}"
            )
        found = _image_files(root, root / part / name)
        if not found:
            raise MorelError(
                f"data.root = {str(root)!r}: {part}/{name}/ holds no images ({', '.join(SUFFIXES)})"
            )
        files += found
        labels += [classes.index(name)] * len(found)
    return ImageFolderSource(root, files, torch.tensor(labels, dtype=torch.int64), image_size)


def _image_files(root: Path, folder: Path) -> list[ImageFile]:
    found: list[ImageFile] = []
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(parent, name)
                found.append(ImageFile(path.relative_to(root).as_posix(), path.stat().st_size))
    return sorted(found, key=lambda file: file.path)


def _read_image(path: Path, side: int) -> object:
    """One file as a (3, side, side) uint8 array: of numpy, torch would start threads of its own."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            square = ImageOps.fit(
                image.convert("RGB"), (side, side), method=Image.Resampling.BILINEAR
            )
    # What Pillow raises for a damaged file depends on the format.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise MorelError(
            f"{str(path)!r} cannot be read as an image ({error}); mend or remove it"
        ) from error
    return np.asarray(square).transpose(2, 0, 1)
