"""Erased and exchanged boxes, and extra images: against loops and by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from morel_core import ConfigError
from morel_core.data import Batches, SyntheticConfig, TensorSource, load_data, loader
from morel_core.data.augment import draw_cutmix, draw_erasing, mixed_labels, put_boxes
from morel_core.data.extra import load_extra, mixed_order
from morel_core.seeding import generator

SIZE = (8, 12)


def source(num_images: int = 40, first: int = 0) -> TensorSource:
    """Image i is i everywhere and has label i mod 4."""
    values = torch.arange(first, first + num_images)
    images = values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, *SIZE).contiguous()
    return TensorSource(images, values % 4)


def batches(rank: int = 0, world_size: int = 1, **settings: object) -> Batches:
    return Batches(
        source(), 8, 3, "none", 0, rank=rank, world_size=world_size, num_classes=4, **settings
    )


def test_boxes_against_a_loop() -> None:
    draws = generator("cpu", 0)
    images, others = torch.randint(256, (2, 30, 3, *SIZE), generator=draws, dtype=torch.uint8)
    boxes = draw_cutmix(30, SIZE, 0.7, draws)
    out = put_boxes(images, others, boxes)
    for image, other, (top, left, bottom, right), got in zip(
        images, others, boxes.tolist(), out, strict=True
    ):
        expected = image.clone()
        expected[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        assert torch.equal(got, expected)


def test_labels_by_hand() -> None:
    """A box of 4 × 6 pixels is a quarter of 8 × 12; an empty one leaves the label alone."""
    boxes = torch.tensor([[0, 0, 4, 6], [0, 0, 0, 0], [0, 0, 4, 6]])
    labels = mixed_labels(
        torch.tensor([0, 1, 2]), torch.tensor([1, 0, 2]), boxes, SIZE, num_classes=3
    )
    assert labels.tolist() == [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


@pytest.mark.parametrize("draw", [draw_cutmix, draw_erasing])
def test_boxes_lie_in_the_image_and_come_as_often_as_asked(draw) -> None:
    for probability in (0.0, 0.25, 1.0):
        boxes = draw(4000, (32, 32), probability, generator("cpu", 1))
        assert boxes.min() >= 0
        assert boxes.max() <= 32
        drawn = (area(boxes) > 0).double().mean().item()
        assert drawn == pytest.approx(probability, abs=0.03 + (0.02 if draw is draw_cutmix else 0))


def test_distributions_of_the_papers() -> None:
    erased = draw_erasing(4000, (64, 64), 1.0, generator("cpu", 2))
    share = area(erased) / 64**2
    assert share.min() > 0.015
    assert share.max() < 0.42
    assert share.mean().item() == pytest.approx(0.21, abs=0.01)
    aspect = ((erased[:, 2] - erased[:, 0]) / (erased[:, 3] - erased[:, 1])).log()
    assert aspect.mean().item() == pytest.approx(0.0, abs=0.04)
    assert aspect.abs().max() < math.log(1 / 0.3) + 0.2
    # Uncut, a box has 1 − λ of the area, half on average; those in the middle are hardly cut.
    boxes = draw_cutmix(20000, (64, 64), 1.0, generator("cpu", 3))
    middle = boxes[:, :2].min(1).values > 0
    middle &= boxes[:, 2:].max(1).values < 64
    sides = (boxes[:, 2:] - boxes[:, :2])[middle]
    assert torch.equal(sides[:, 0], sides[:, 1])  # the image's own shape


def test_cutmix_batches_mix_pixels_and_labels_in_the_same_share() -> None:
    seen = set()
    for batch in batches(cutmix=1.0).epoch(1):
        assert batch.y.shape == (8, 4)
        for x, y in zip((batch.x * 255).round().long(), batch.y, strict=True):
            share = torch.bincount(x.flatten() % 4, minlength=4) / x.numel()
            torch.testing.assert_close(y, share.float(), rtol=0, atol=1e-6)
            seen.add(len(x.unique()))
    assert seen == {1, 2}


def test_erasing_keeps_the_label() -> None:
    batch = next(iter(batches(erasing=1.0).epoch(1)))
    assert batch.y.dtype == torch.int64
    for x, y in zip((batch.x * 255).round().long(), batch.y, strict=True):
        counts = torch.bincount(x.flatten())
        assert counts.argmax() % 4 == y
        assert 1 < len(x.unique()) < x.numel()


def extra_images() -> dict[str, object]:
    return {"extra": source(5, first=200), "extra_ratio": 0.375}


@pytest.mark.parametrize(
    "settings", [{"cutmix": 0.6, "erasing": 0.5}, {"erasing": 0.5}, {"extra": 1}]
)
def test_the_same_on_any_number_of_ranks_and_from_any_step(settings: dict[str, object]) -> None:
    if "extra" in settings:
        settings = {**extra_images(), "cutmix": 0.5}
    whole = list(batches(**settings).epoch(2))
    parts = [list(batches(rank, 3, **settings).epoch(2)) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.x, torch.cat([part[step].x for part in parts]))
        assert torch.equal(batch.y, torch.cat([part[step].y for part in parts]))
    later = list(batches(**settings).epoch(2, start_step=3))
    assert [torch.equal(a.x, b.x) for a, b in zip(later, whole[3:], strict=True)] == [True, True]
    assert list(batches(**settings).epoch(2, start_step=5)) == []
    other = next(iter(batches(**settings).epoch(3)))
    assert not torch.equal(other.x, whole[0].x)


def test_every_epoch_has_draws_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself: a new order would hide that boxes or extra images come again as they were."""
    seen: dict[str, list[Tensor]] = {"draw_erasing": [], "draw_cutmix": [], "mixed_order": []}
    for name, made in seen.items():
        original = getattr(loader, name)

        def watched(*given: Any, original: Any = original, made: list[Tensor] = made) -> Tensor:
            result = original(*given)
            made.append(given[1] if original is mixed_order else result)
            return result

        monkeypatch.setattr(loader, name, watched)
    made = batches(erasing=0.5, cutmix=0.5, extra=source(100), extra_ratio=0.5)
    for epoch in (1, 2):
        next(iter(made.epoch(epoch)))
    seen["partners"] = [made._partners(epoch) for epoch in (1, 2)]
    for name, (first, second) in seen.items():
        assert not torch.equal(first, second), name


def test_every_step_erases_with_pixels_of_its_own() -> None:
    black = TensorSource(torch.zeros((40, 1, *SIZE), dtype=torch.uint8), torch.zeros(40).long())
    whole = Batches(black, 20, 3, "none", 0, num_classes=4, erasing=1.0)
    first, second, later = (*whole.epoch(1), next(iter(whole.epoch(2))))
    for one, other in ((first, second), (first, later)):
        both = (one.x > 0) & (other.x > 0)
        assert both.sum() > 20
        assert (one.x == other.x)[both].double().mean() < 0.1


def test_extra_images_have_their_share_of_each_batch() -> None:
    steps = list(batches(**extra_images()).epoch(1))
    assert len(steps) == 5  # as many as without
    original, extra = [], []
    for batch in steps:
        values = (batch.x[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(values % 4, batch.y)
        assert (values >= 200).tolist() == [False, False, True, False, False, True, False, True]
        original += values[values < 200].tolist()
        extra += values[values >= 200].tolist()
    assert len(set(original)) == len(original) == 25
    assert sorted(extra) == sorted([200, 201, 202, 203, 204] * 3)  # begun again, none left out


def test_mixed_order_by_hand() -> None:
    order, extra_order = torch.tensor([2, 0, 1, 3, 4]), torch.tensor([1, 0])
    assert mixed_order(order, extra_order, 2, 1).tolist() == [2, 6, 0, 5]


def write_npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def test_an_npz_is_read_as_it_stands(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", image=IMAGES, label=np.array([1, 0], dtype=np.int32))
    read = load_extra(path, (3, 4, 4), 2)
    assert read.labels.tolist() == [1, 0]
    assert read.labels.dtype == torch.int64
    assert read.images[1, 2, 3, 1] == IMAGES[1, 3, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGES}, "an npz whose array image is"),
        ({"image": IMAGES / 255, "label": np.array([0, 1])}, "image must be (2, 4, 4, 3) uint8"),
        ({"image": IMAGES[:, :3], "label": np.array([0, 1])}, "image must be (2, 4, 4, 3) uint8"),
        ({"image": IMAGES, "label": np.array([0])}, "image must be (1, 4, 4, 3) uint8"),
        ({"image": IMAGES, "label": np.array([0.0, 1.0])}, "label must be (N,) of integers"),
        ({"image": IMAGES, "label": np.array([0, 2])}, "labels must lie in [0, 2), they span 0"),
        ({"image": np.array([{}], dtype=object), "label": np.array([0])}, "no npz of plain arrays"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    path = write_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(ConfigError) as caught:
        load_extra(path, (3, 4, 4), 2)
    assert str(caught.value).startswith(f"data.extra = {path!r}: {message}")


def test_no_file_and_no_npz(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_extra(str(tmp_path / "none.npz"), (3, 4, 4), 2)
    for content in (b"", b"PK\x03\x04 torn", b"text"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ConfigError, match="no npz of plain arrays"):
            load_extra(str(tmp_path / "bad.npz"), (3, 4, 4), 2)
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(ConfigError, match="no npz of plain arrays"):
        load_extra(str(tmp_path / "one.npy"), (3, 4, 4), 2)


def test_the_fingerprint_tells_of_extra_images(tmp_path: Path) -> None:
    path = write_npz(
        tmp_path / "a.npz",
        image=np.zeros((3, 8, 8, 1), np.uint8),
        label=np.array([0, 1, 2], dtype=np.int64),
    )
    settings = {"image_size": 8, "channels": 1, "num_train": 60, "num_test": 10, "holdout": 10}
    without = load_data(SyntheticConfig(**settings))
    with_extra = load_data(SyntheticConfig(**settings, extra=path))
    assert without.extra is None
    assert with_extra.extra is not None
    assert len(with_extra.extra) == 3
    assert without.fingerprint != with_extra.fingerprint


def test_a_batch_needs_both_kinds() -> None:
    for ratio in (0.01, 0.99):
        with pytest.raises(ConfigError, match=r"data.extra_ratio = .*at least one image must be"):
            batches(extra=source(5), extra_ratio=ratio)
