"""IDBH: each part by hand, against a loop over pixels, and against torchvision image by image."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torchvision.transforms.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from morel_core.data import Batches, TensorSource
from morel_core.data.idbh import (
    FACTORS,
    KINDS,
    Idbh,
    IdbhDraws,
    color_shape,
    crop_shift,
    draw_idbh,
)
from morel_core.seeding import generator

CPU = torch.device("cpu")
NONE = torch.zeros(0)


def pictures(num_images: int, *shape: int, seed: int = 0) -> Tensor:
    """Smooth enough that equalising or sharpening them is not noise on noise."""
    draws = generator("cpu", seed)
    coarse = torch.rand((num_images, shape[0], 4, 4), generator=draws)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    low = torch.rand((num_images, 1, 1, 1), generator=draws) * 0.5
    return ((low + smooth * (1 - low)) * 230).round().to(torch.uint8)


def test_crop_shift_by_hand() -> None:
    """The lower right 2 × 2 of a mirrored 3 × 3 image, shown at its upper left."""
    image = torch.arange(1, 10).view(1, 1, 3, 3)
    box = torch.tensor([[1, 1, 0, 0, 2, 2]])
    assert crop_shift(image, torch.tensor([False]), box)[0, 0].tolist() == [
        [5, 6, 0],
        [8, 9, 0],
        [0, 0, 0],
    ]
    assert crop_shift(image, torch.tensor([True]), box)[0, 0].tolist() == [
        [5, 4, 0],
        [8, 7, 0],
        [0, 0, 0],
    ]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 5, 9)])
def test_crop_shift_against_a_loop(shape: tuple[int, int, int]) -> None:
    images = pictures(60, *shape) + 1
    before = images.clone()
    draws = draw_idbh(60, shape[1:], generator("cpu", 1))
    out = crop_shift(images, draws.flip, draws.box)
    assert torch.equal(images, before)
    assert out.dtype == torch.uint8
    for image, flip, box, got in zip(
        images, draws.flip.tolist(), draws.box.tolist(), out, strict=True
    ):
        top, left, to_top, to_left, rows, columns = box
        part = (image.flip(-1) if flip else image)[:, top : top + rows, left : left + columns]
        assert part.shape[1:] == (rows, columns)  # inside the image
        expected = torch.zeros_like(image)
        expected[:, to_top : to_top + rows, to_left : to_left + columns] = part
        assert torch.equal(got, expected)


def test_draws_are_those_of_the_paper() -> None:
    """On 32 × 32: up to ten rows and columns together, any place alike, each kind an eighth."""
    num = 40000
    draws = draw_idbh(num, (32, 32), generator("cpu", 0))
    top, left, to_top, to_left, rows, columns = draws.box.T
    cut_rows, cut_columns = 32 - rows, 32 - columns
    strengths = (cut_rows + cut_columns).bincount(minlength=11) / num
    assert strengths.tolist() == pytest.approx([1 / 11] * 11, abs=0.01)
    four = cut_rows + cut_columns == 4
    shares = cut_columns[four].bincount(minlength=5) / four.sum()
    assert shares.tolist() == pytest.approx([0.2] * 5, abs=0.03)
    for place, cut in ((top, cut_rows), (left, cut_columns), (to_top, cut_rows)):
        three = cut == 3
        shares = place[three].bincount(minlength=4) / three.sum()
        assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    assert (to_left <= cut_columns).all()
    assert draws.flip.float().mean().item() == pytest.approx(0.5, abs=0.01)

    shares = draws.kind.bincount(minlength=len(KINDS)) / num
    assert shares.tolist() == pytest.approx([1 / 8] * 6 + [2 / 8], abs=0.01)
    for kind, (low, high) in enumerate(FACTORS.values()):
        factor = draws.factor[draws.kind == kind]
        assert low <= factor.min() < low + 0.01
        assert high - 0.01 < factor.max() <= high
    (a, b), (c, d) = draws.matrix.permute(1, 2, 0).unbind(0)
    rotated = (draws.kind == 6) & (a != 1)
    sheared = (draws.kind == 6) & (a == 1)
    assert rotated.float().mean().item() == pytest.approx(1 / 8, abs=0.01)
    degrees = torch.rad2deg(torch.atan2(c, a))[rotated].round().int()
    assert Counter(degrees.tolist()).keys() == {*range(-10, 0), *range(1, 11)}
    assert torch.allclose(a, d)
    assert torch.allclose((a * d - b * c)[rotated], torch.ones(()))
    slopes = torch.where(b != 0, b, c)[sheared].abs()
    assert math.tan(0.05) <= slopes.min() < 0.052
    assert 0.15 < slopes.max() <= math.tan(0.15) + 1e-6
    assert (b[sheared] != 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(
        draws.matrix[draws.kind != 6], torch.eye(2).expand(num, 2, 2)[draws.kind != 6]
    )


TWINS: dict[str, Any] = {
    "saturation": F.adjust_saturation,
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "sharpness": F.adjust_sharpness,
    "autocontrast": lambda image, _factor: F.autocontrast(image),
    "equalize": lambda image, _factor: F.equalize(image),
}


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 20, 24)])
@pytest.mark.parametrize("name", TWINS)
def test_colours_are_torchvisions_image_by_image(name: str, shape: tuple[int, int, int]) -> None:
    images = pictures(40, *shape)
    images[0] = 77  # nothing to stretch or equalise
    factor = torch.linspace(0.1, 1.9, 40)
    out = KINDS[name](images, factor, NONE)
    assert out.dtype == torch.uint8
    twins = torch.stack([TWINS[name](i, f) for i, f in zip(images, factor.tolist(), strict=True)])
    difference = (out.int() - twins.int()).abs()
    assert difference.max() <= 1  # float32 against Python's double factors, just before a cut
    assert (difference > 0).float().mean() < 0.01
    if shape[0] == 3 or name != "saturation":
        assert (out != images).flatten(1).any(1)[1:].float().mean() > 0.9


def test_colours_by_hand() -> None:
    """A 3 × 3 image of one channel: 0 but for a 130 in the middle and a 26 beside it."""
    image = torch.zeros((1, 1, 3, 3), dtype=torch.uint8)
    image[0, 0, 1, 1], image[0, 0, 1, 2] = 130, 26
    half = torch.tensor([0.5])

    def middle_row(name: str) -> list[int]:
        return KINDS[name](image, half, NONE)[0, 0, 1].tolist()

    assert middle_row("brightness") == [0, 65, 13]
    assert middle_row("saturation") == [0, 130, 26]  # grey as it is
    # The mean is 156 / 9 = 17.3, halfway to which a pixel loses its fraction.
    assert middle_row("contrast") == [8, 73, 21]
    # Smoothed, the middle is (5 · 130 + 26) / 13 = 52.
    assert middle_row("sharpness") == [0, 91, 26]
    assert middle_row("autocontrast") == [0, 255, 51]
    # 8 pixels below the brightest make no step of 8 / 255: nothing happens, as in PIL.
    assert middle_row("equalize") == [0, 130, 26]
    # 510 pixels of 10, 510 of 20 and one of 30: steps of 1020 // 255 = 4, half of one added.
    tall = torch.cat([torch.full((510,), 10), torch.full((510,), 20), torch.tensor([30])])
    equal = KINDS["equalize"](tall.to(torch.uint8).view(1, 1, 1021, 1), half, NONE).flatten()
    assert equal.unique().tolist() == [0, (510 + 2) // 4, 255]


def reshaped(image: Tensor, matrix: Tensor) -> Tensor:
    """Pixel by pixel."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    (a, b), (c, d) = matrix.tolist()
    for row in range(height):
        for column in range(width):
            y, x = row - middle_row, column - middle_column
            from_row, from_column = (
                round(a * y + b * x + middle_row),
                round(c * y + d * x + middle_column),
            )
            if 0 <= from_row < height and 0 <= from_column < width:
                out[:, row, column] = image[:, from_row, from_column]
    return out


def test_shapes_against_a_loop_and_torchvision() -> None:
    images = pictures(200, 3, 11, 9) + 1
    draws = draw_idbh(200, (11, 9), generator("cpu", 3))
    out = KINDS["shape"](images, NONE, draws.matrix)
    different = []
    for image, matrix, got in zip(images, draws.matrix, out, strict=True):
        different.append((got != reshaped(image, matrix)).any(0).float().mean())
    assert torch.stack(different).mean() < 0.001  # ties, decided by the last bit

    for name, matrix, twin in (
        ("rotation", turn(-8), lambda i: F.rotate(i, 8.0)),
        ("shear", [[1, 0], [math.tan(0.1), 1]], lambda i: sheared(i, [math.degrees(0.1), 0.0])),
        ("shear", [[1, math.tan(0.1)], [0, 1]], lambda i: sheared(i, [0.0, math.degrees(0.1)])),
    ):
        large = pictures(4, 3, 32, 32)
        ours = KINDS["shape"](large, NONE, torch.tensor([matrix] * 4))
        theirs = twin(large)
        assert (ours != theirs).float().mean() < 0.01, name
        assert (ours != large).float().mean() > 0.3, name


def turn(degrees: float) -> list[list[float]]:
    angle = math.radians(degrees)
    return [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]


def sheared(images: Tensor, degrees: list[float]) -> Tensor:
    return F.affine(images, 0.0, [0, 0], 1.0, degrees)


def test_shape_by_hand() -> None:
    """Rows sheared by one column for each row above or below the middle."""
    image = torch.arange(1, 10).view(1, 1, 3, 3)
    out = KINDS["shape"](image, NONE, torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
    assert out[0, 0].tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 0]]


def changed(images: Tensor, draws: IdbhDraws) -> Tensor:
    out = images.clone()
    counts = draws.kind.bincount(minlength=len(KINDS)).tolist()
    color_shape(out, draws, draws.kind.argsort(stable=True), counts)
    return out


def test_each_image_is_changed_in_its_own_way_alone() -> None:
    """And comes out bitwise the same whatever else is in the batch."""
    images = pictures(97, 3, 32, 32)
    draws = draw_idbh(97, (32, 32), generator("cpu", 5))
    whole = changed(images, draws)
    for i in range(97):
        one = slice(i, i + 1)
        name = list(KINDS)[int(draws.kind[i])]
        alone = KINDS[name](images[one], draws.factor[one], draws.matrix[one])
        assert torch.equal(whole[one], alone)
    together = Idbh(draws[torch.arange(97)[None]], CPU)(images, 0)
    assert torch.equal(together, changed(crop_shift(images, draws.flip, draws.box), draws))


def test_no_value_is_read_from_the_device() -> None:
    """Meta tensors have none."""
    meta = torch.device("meta")
    draws = draw_idbh(24, (8, 8), generator("cpu", 0))[torch.arange(24).view(2, 12)]
    out = Idbh(draws, meta)(torch.empty((12, 3, 8, 8), dtype=torch.uint8, device=meta), 1)
    assert (out.device, out.dtype, out.shape) == (meta, torch.uint8, (12, 3, 8, 8))


class Counting(TorchDispatchMode):
    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("augmentation", ["crop_flip", "idbh"])
def test_no_work_for_each_sample_or_step(augmentation: str) -> None:
    """A step takes as many operations for 64 images as for 256, an epoch as many as its steps."""
    images = pictures(2048, 3, 32, 32)
    source = TensorSource(images, torch.arange(2048) % 10)

    def operations(batch_size: int, steps: int) -> int:
        loader = Batches(source, batch_size, 0, augmentation, 4, erasing=0.5)
        with Counting() as seen:
            list(loader.epoch(1, start_step=len(loader) - steps))
        return seen.operations

    assert operations(64, 4) == operations(256, 4)
    each = operations(64, 2) - operations(64, 1)
    assert operations(64, 4) - operations(64, 2) == 2 * each
