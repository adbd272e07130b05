"""Folders of image files: labels, reading, resizing, batches, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from morel_core.data import Batches, Dataset, ImageFolderConfig, ImageFolderSource, load_data
from morel_core.errors import ConfigError, MorelError

Image = pytest.importorskip("PIL.Image")

CLASSES = ("ant", "bee", "cat")


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, each in (("train", 6), ("test", 2)):
        for name in CLASSES:
            for i in range(each):
                write(tmp_path / part / name / f"{i}.png", rng.integers(0, 256, (8, 8, 3)))
    return tmp_path


def config(root: Path, **settings: int) -> ImageFolderConfig:
    return ImageFolderConfig(root=str(root), **{"image_size": 8, "holdout": 3, **settings})


def folder(source: object) -> ImageFolderSource:
    assert isinstance(source, ImageFolderSource)
    return source


def test_files_are_labelled_by_folder_and_divided(root: Path) -> None:
    data = load_data(config(root))
    assert data.num_classes == 3
    assert data.shape == (3, 8, 8)
    assert (len(data.train), len(data.holdout), len(data.test)) == (15, 3, 6)
    assert data.holdout.labels.tolist().count(1) == 1
    paths = {}
    for name in ("train", "holdout", "test"):
        source = folder(getattr(data, name))
        paths[name] = {file.path for file in source.files}
        for file, label in zip(source.files, source.labels.tolist(), strict=True):
            assert file.path.split("/")[1] == CLASSES[label]
    assert not paths["train"] & paths["holdout"]
    assert all(path.startswith("test/") for path in paths["test"])


def test_fetch_reads_the_files_in_the_order_asked_for(root: Path) -> None:
    source = folder(load_data(config(root)).train)
    indices = torch.tensor([4, 0, 4, 7])
    fetched = source.fetch(indices)
    assert fetched.dtype == torch.uint8
    for row, index in enumerate(indices.tolist()):
        pixels = np.asarray(Image.open(root / source.files[index].path))
        assert torch.equal(fetched[row].permute(1, 2, 0), torch.from_numpy(pixels.copy()))
    assert torch.equal(fetched, source.fetch(indices))


def test_images_are_made_square_rgb_by_cropping_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((4, 12))
    wide[:, 2:10] = 200  # the middle square is columns 4 to 7; squeezing would mix in the black
    for name in ("a", "b"):
        for i in range(2):
            write(tmp_path / "train" / name / f"{i}.png", wide)
        write(tmp_path / "val" / name / "nested" / "0.PNG", wide)
    data = load_data(config(tmp_path, holdout=1, image_size=2))
    assert torch.equal(data.test.fetch(torch.tensor([0])), torch.full((1, 3, 2, 2), 200).byte())


def test_the_fingerprint_sees_names_sizes_and_labels(root: Path) -> None:
    def fingerprint(image_size: int = 8) -> str:
        return load_data(config(root, image_size=image_size)).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(image_size=4) != first
    moved = root.with_name("moved")
    shutil.copytree(root, moved)
    assert load_data(config(moved)).fingerprint == first
    (root / "test" / "ant" / "0.png").rename(root / "test" / "ant" / "00.png")
    assert fingerprint() != first
    (root / "test" / "ant" / "00.png").rename(root / "test" / "ant" / "0.png")
    assert fingerprint() == first
    with (root / "train" / "bee" / "3.png").open("ab") as file:
        file.write(b"\0")
    assert fingerprint() != first


def test_batches_read_ahead_are_those_of_any_world_size(root: Path) -> None:
    data: Dataset = load_data(config(root))
    settings = {"batch_size": 4, "seed": 1, "augmentation": "crop_flip", "crop_padding": 1}
    whole = list(Batches(data.train, **settings).epoch(2))
    assert len(whole) == 3
    ranks = [list(Batches(data.train, **settings, rank=r, world_size=3).epoch(2)) for r in range(3)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.x, torch.cat([part.x for part in parts]))
        assert torch.equal(batch.y, torch.cat([part.y for part in parts]))
    later = list(Batches(data.train, **settings).epoch(2, start_step=2))
    assert torch.equal(later[0].x, whole[2].x)
    assert list(Batches(data.train, **settings).epoch(2, start_step=3)) == []


def test_labels_stay_with_their_images(root: Path) -> None:
    for name, grey in zip(CLASSES, (10, 120, 250), strict=True):
        for i in range(6):
            write(root / "train" / name / f"{i}.png", np.full((8, 8, 3), grey))
    data = load_data(config(root))
    for batch in Batches(data.train, 4, 0, "none", 0).epoch(1):
        greys = (batch.x * 255).round().mean(dim=(1, 2, 3))
        assert torch.equal(greys, torch.tensor([10.0, 120.0, 250.0])[batch.y])


def test_an_epoch_left_early_leaves_no_thread(root: Path) -> None:
    before = threading.active_count()
    epoch = Batches(load_data(config(root)).train, 4, 0, "none", 0).epoch(1)
    next(epoch)
    del epoch
    assert threading.active_count() == before


def test_a_damaged_file_is_named(root: Path) -> None:
    data = load_data(config(root))
    source = folder(data.train)
    path = root / source.files[5].path
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(MorelError, match=path.name):
        source.fetch(torch.arange(8))
    path.unlink()
    with pytest.raises(MorelError, match="mend or remove"):
        list(Batches(data.train, len(source), 0, "none", 0).epoch(1))


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("train", r"found no class folders in train/"),
        ("test", r"found no class folders in val/"),
        ("train/bee", r"test/bee/ has no counterpart in train/, whose classes are ant, cat"),
    ],
)
def test_missing_folders_are_named(root: Path, remove: str, message: str) -> None:
    shutil.rmtree(root / remove)
    with pytest.raises(MorelError, match=message):
        load_data(config(root))


def test_an_empty_class_and_a_missing_root_are_refused(root: Path) -> None:
    for file in (root / "train" / "cat").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(MorelError, match=r"train/cat/ holds no images"):
        load_data(config(root))
    with pytest.raises(MorelError, match="No such file"):
        load_data(config(root / "nowhere"))
    with pytest.raises(ConfigError, match="image_size = 0"):
        dataclasses.replace(config(root), image_size=0)


def test_an_array_of_extra_images_is_refused(root: Path) -> None:
    settings = ImageFolderConfig(root=str(root), image_size=8, holdout=3, extra="more.npz")
    with pytest.raises(ConfigError, match=r"data\.extra = 'more\.npz': null with image_folder"):
        load_data(settings)
