"""IDBH (Li & Spratling 2023, "Data augmentation alone can improve adversarial training").

Every image is flipped or not, then CropShift moves a random part of it to a random place on black,
then ColorShape changes its colours or its shape in one of eight ways, here in the balance that the
paper found for CIFAR-10. The paper's third part, random erasing, is `augment.draw_erasing`.

A whole batch at once, on its device, with the arithmetic of whole numbers wherever sums are formed:
an image comes out the same whatever stands beside it in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

CROPPED = 10 / 32
"""Of the side, at most: up to 10 rows and columns together on CIFAR's 32 × 32."""
FACTORS = {
    "saturation": (0.1, 1.9),
    "brightness": (0.5, 1.9),
    "contrast": (0.5, 1.9),
    "sharpness": (0.1, 1.9),
}
SHEAR = (0.05, 0.15)
"""Radians, to either side, along rows or columns."""
ROTATION = 10
"""Whole degrees from 1 on, to either side."""


@dataclass(frozen=True, eq=False)
class IdbhDraws:
    """What happens to each of N images."""

    flip: Tensor
    """(N,) bool."""
    box: Tensor
    """(N, 6) int64: the part's top and left, its place's top and left, its height and width."""
    kind: Tensor
    """(N,) int64, an index into `KINDS`."""
    factor: Tensor
    """(N,) float32: for the first four kinds."""
    matrix: Tensor
    """(N, 2, 2) float32: where (row, column) of a changed shape comes from, about the middle."""

    def __getitem__(self, images: Tensor | int) -> IdbhDraws:
        """The draws of some images, in the shape of ``images``, or of one step."""
        return IdbhDraws(*(getattr(self, field.name)[images] for field in fields(self)))

    def to(self, device: torch.device | str) -> IdbhDraws:
        """The same on another device."""
        return IdbhDraws(*(getattr(self, field.name).to(device) for field in fields(self)))


def draw_idbh(num_images: int, size: tuple[int, int], generator: torch.Generator) -> IdbhDraws:
    """Random draws as in the authors' code: flips with probability 1/2, each kind with 1/8.

    CropShift: s is uniform in 0 … `CROPPED` of the smaller side, of which a uniform share is cut
    off the width and the rest off the height; where from, and where to, is uniform.
    """
    uniform = torch.rand((9, num_images), generator=generator)
    strength = _whole(uniform[0], round(CROPPED * min(size)))
    cut_columns = _whole(uniform[1], strength)
    cut_rows = strength - cut_columns
    places = [
        _whole(u, cut) for u, cut in zip(uniform[2:6], (cut_rows, cut_columns) * 2, strict=True)
    ]
    box = torch.stack([*places, size[0] - cut_rows, size[1] - cut_columns], dim=1)

    # Sixteenths, of which shearing along rows and along columns has one each.
    sixteenth = torch.randint(16, (num_images,), generator=generator)
    kind = sixteenth.div(2, rounding_mode="floor").clamp(max=len(KINDS) - 1)
    low, high = torch.tensor([*FACTORS.values(), *[(1.0, 1.0)] * (len(KINDS) - len(FACTORS))]).T
    factor = low[kind] + (high - low)[kind] * uniform[6]

    side = torch.where(uniform[7] < 0.5, -1.0, 1.0)
    shear = side * torch.tan(SHEAR[0] + (SHEAR[1] - SHEAR[0]) * uniform[6])
    angle = side * torch.deg2rad(1 + _whole(uniform[6], ROTATION - 1).float())
    matrix = torch.eye(2).repeat(num_images, 1, 1)
    for row, column, where in ((1, 0, sixteenth == 12), (0, 1, sixteenth == 13)):
        matrix[:, row, column] = torch.where(where, shear, 0.0)
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    matrix = torch.where((sixteenth >= 14)[:, None, None], turned, matrix)
    return IdbhDraws(uniform[8] < 0.5, box, kind, factor, matrix)


def _whole(uniform: Tensor, most: Tensor | int) -> Tensor:
    """int64, uniform in 0 … ``most``, of a uniform number in [0, 1)."""
    return (uniform.double() * (most + 1)).long()


def crop_shift(images: Tensor, flip: Tensor, box: Tensor) -> Tensor:
    """Mirror where ``flip`` says, then show one part of each image elsewhere, on black.

    Args:
        images: (B, C, H, W), any dtype.
        flip: (B,) bool.
        box: (B, 6) int64, see `IdbhDraws`.

    Returns:
        (B, C, H, W) in new memory.
    """
    height, width = images.shape[-2:]
    top, left, to_top, to_left, rows, columns = box[:, :, None].unbind(1)
    row = torch.arange(height, device=images.device) - to_top
    column = torch.arange(width, device=images.device) - to_left
    shown = ((row >= 0) & (row < rows))[:, :, None] & ((column >= 0) & (column < columns))[:, None]
    row = (row + top).clamp(0, height - 1)
    column = (column + left).clamp(0, width - 1)
    column = torch.where(flip[:, None], width - 1 - column, column)
    return _pick(images, row[:, :, None] * width + column[:, None], shown)


def _pick(images: Tensor, pixels: Tensor, shown: Tensor) -> Tensor:
    """Pixels (B, H, W) of (B, C, H, W), counted along rows; black where not ``shown``."""
    channels = images.shape[1]
    picked = images.flatten(2).gather(2, pixels.flatten(1)[:, None].expand(-1, channels, -1))
    return picked.view_as(images) * shown[:, None]


def color_shape(images: Tensor, draws: IdbhDraws, order: Tensor, counts: list[int]) -> None:
    """Change every image in one way, in place.

    Args:
        images: (B, C, H, W) uint8.
        draws: of these images.
        order: (B,) int64, the images sorted by ``draws.kind``.
        counts: how many images each of `KINDS` has; on the host, so that no device is waited for.
    """
    for change, rows in zip(KINDS.values(), order.split(counts), strict=True):
        if len(rows) > 0:
            changed = change(images[rows], draws.factor[rows], draws.matrix[rows])
            images.index_copy_(0, rows, changed)


class Idbh:
    """The augmentation of a run of steps: ``idbh(images, step) -> images``.

    Args:
        draws: (steps, B) each, on the CPU.
        device: where the images lie.
    """

    def __init__(self, draws: IdbhDraws, device: torch.device) -> None:
        self.counts = F.one_hot(draws.kind, len(KINDS)).sum(1).tolist()
        self.order = draws.kind.argsort(dim=1, stable=True).to(device)
        self.draws = draws.to(device)

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """(B, C, H, W) uint8 → the same, in new memory."""
        draws = self.draws[step]
        images = crop_shift(images, draws.flip, draws.box)
        color_shape(images, draws, self.order[step], self.counts[step])
        return images


def _mixed(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """``factor · image + (1 − factor) · other``, cut to whole numbers of 0 … 255."""
    factor = factor[:, None, None, None]
    return (factor * images + (1 - factor) * other).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) whole numbers, ITU-R 601; a single channel is grey already."""
    if images.shape[1] != 3:
        return images[:, :1]
    red, green, blue = images.split(1, dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8)


def saturation(images: Tensor, factor: Tensor, _matrix: Tensor) -> Tensor:
    """Between grey (0) and the image (1), and beyond; what has no three channels stays."""
    return _mixed(images, _grey(images), factor) if images.shape[1] == 3 else images


def brightness(images: Tensor, factor: Tensor, _matrix: Tensor) -> Tensor:
    """Between black (0) and the image (1), and beyond."""
    return _mixed(images, torch.zeros_like(images), factor)


def contrast(images: Tensor, factor: Tensor, _matrix: Tensor) -> Tensor:
    """Between the image's mean grey (0) and the image (1), and beyond."""
    grey = _grey(images)
    mean = grey.sum((1, 2, 3), keepdim=True) / grey[0].numel()
    return _mixed(images, mean, factor)


def sharpness(images: Tensor, factor: Tensor, _matrix: Tensor) -> Tensor:
    """Between the smoothed image (0) and the image (1), and beyond; the border stays.

    Smoothed by weights 1 around 5, over 13.
    """
    height, width = images.shape[-2:]
    if height < 3 or width < 3:
        return images
    values = images.int()
    inner = values[:, :, 1:-1, 1:-1]
    sums = 4 * inner
    for row in range(3):
        for column in range(3):
            sums = sums + values[:, :, row : row + height - 2, column : column + width - 2]
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = (sums / 13).round()
    return _mixed(images, smooth, factor)


def autocontrast(images: Tensor, _factor: Tensor, _matrix: Tensor) -> Tensor:
    """Stretch every channel to 0 … 255; one of a single value stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    scale = 255.0 / (high - low).clamp(min=1)
    stretched = ((images - low) * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def equalize(images: Tensor, _factor: Tensor, _matrix: Tensor) -> Tensor:
    """Spread every channel's values to equal frequency, as PIL does; one of a single value stays.

    A step is the number of pixels below the brightest value, over 255; a value becomes the number
    of pixels darker than it plus half a step, in steps.
    """
    values = images.flatten(2).long()
    counts = values.new_zeros((*values.shape[:2], 256))
    counts.scatter_add_(2, values, torch.ones_like(values))
    brightest = values.amax(2, keepdim=True)
    step = (values.shape[2] - counts.gather(2, brightest)).div(255, rounding_mode="floor")
    darker = counts.cumsum(2) - counts
    half = step.div(2, rounding_mode="floor")
    table = (darker + half).div(step.clamp(min=1), rounding_mode="floor").clamp(max=255)
    equal = table.gather(2, values).to(torch.uint8).view_as(images)
    return torch.where(step[..., None] > 0, equal, images)


def reshape(images: Tensor, _factor: Tensor, matrix: Tensor) -> Tensor:
    """Shear or rotate about the middle: the nearest pixel, black where it would lie outside."""
    height, width = images.shape[-2:]
    row = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    column = torch.arange(width, device=images.device)[None, :] - (width - 1) / 2
    (a, b), (c, d) = ((entry[:, None, None] for entry in r.unbind(1)) for r in matrix.unbind(1))
    from_row = (a * row + b * column + (height - 1) / 2).round().long()
    from_column = (c * row + d * column + (width - 1) / 2).round().long()
    shown = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
    pixels = from_row.clamp(0, height - 1) * width + from_column.clamp(0, width - 1)
    return _pick(images, pixels, shown)


KINDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "saturation": saturation,
    "brightness": brightness,
    "contrast": contrast,
    "sharpness": sharpness,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "shape": reshape,
}
