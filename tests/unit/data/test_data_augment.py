"""Batched crops and flips against a loop over samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from morel_core.data.augment import Augmentation, crop_flip, draw
from morel_core.seeding import generator


def naive(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    height, width = images.shape[-2:]
    out = []
    for image, (top, left, flip) in zip(images, draws.tolist(), strict=True):
        canvas = image.new_zeros((len(image), height + 2 * padding, width + 2 * padding))
        canvas[:, padding : padding + height, padding : padding + width] = image
        crop = canvas[:, top : top + height, left : left + width]
        out.append(crop.flip(-1) if flip else crop)
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9)])
@pytest.mark.parametrize("augmentation", ["none", "crop", "crop_flip"])
def test_batched_equals_the_loop(
    dtype: torch.dtype, padding: int, shape: tuple[int, int, int], augmentation: Augmentation
) -> None:
    images = torch.randint(1, 256, (33, *shape), generator=generator("cpu", 0)).to(dtype)
    before = images.clone()
    draws = draw(len(images), augmentation, padding, generator("cpu", 1))
    out = crop_flip(images, draws, padding)
    assert out.dtype == dtype
    assert torch.equal(out, naive(images, draws, padding))
    assert torch.equal(images, before)
    if augmentation == "none":
        assert torch.equal(out, images)


def test_draws_cover_their_range_evenly() -> None:
    draws = draw(9000, "crop_flip", 1, generator("cpu", 0))
    for column in (0, 1):
        assert (draws[:, column].bincount(minlength=3) - 3000).abs().max() < 200
    assert (draws[:, 2].bincount(minlength=2) - 4500).abs().max() < 250
    assert draws.double().T.corrcoef().triu(1).abs().max() < 0.05
    assert draw(100, "crop", 1, generator("cpu", 0))[:, 2].sum() == 0


def test_images_of_a_batch_are_moved_each_by_its_own_draw() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(64, -1, -1, -1)
    out = crop_flip(image, draw(64, "crop_flip", 2, generator("cpu", 0)), 2)
    assert len(out.flatten(1).unique(dim=0)) > 20
