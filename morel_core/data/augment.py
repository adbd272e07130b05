"""Random crops and flips of a whole batch at once, each image its own, on the device."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Augmentation = Literal["none", "crop", "crop_flip"]


def draw(
    num_images: int, augmentation: Augmentation, padding: int, generator: torch.Generator
) -> Tensor:
    """Random (num_images, 3) int64: the crop's first row and column, and 1 where it is flipped.

    Rows and columns are uniform in [0, 2·padding], flips have probability 1/2 (``crop``: 0);
    ``none`` does not move anything.
    """
    draws = torch.zeros((num_images, 3), dtype=torch.int64)
    if augmentation == "none":
        draws[:, :2] = padding
        return draws
    draws[:, :2] = torch.randint(2 * padding + 1, (num_images, 2), generator=generator)
    if augmentation == "crop_flip":
        draws[:, 2] = torch.randint(2, (num_images,), generator=generator)
    return draws


def crop_flip(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad every image with zeros, crop it to its old size and mirror it, as ``draws`` says.

    Args:
        images: (B, C, H, W), any dtype.
        draws: (B, 3) int64 on the same device, see `draw`.
        padding: pixels on each side.

    Returns:
        (B, C, H, W) in new memory.
    """
    height, width = images.shape[-2:]
    top, left, flip = draws.split(1, dim=1)
    column = torch.arange(width, device=images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.where(flip == 1, width - 1 - column, column)
    padded = F.pad(images, (padding, padding, padding, padding)).flatten(2)
    # One gather over flat pixels is 3 to 6 times as fast as one for each axis or advanced indexing.
    pixels = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).flatten(1)
    return padded.gather(2, pixels[:, None].expand(-1, images.shape[1], -1)).view_as(images)
