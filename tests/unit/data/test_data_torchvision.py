"""torchvision's data sets: the adapters, the real files where there are any, and missing ones."""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from morel_core.config import DataConfig
from morel_core.data import TensorSource, load_data
from morel_core.errors import MorelError

datasets = pytest.importorskip("torchvision.datasets")

NAMES = ["cifar10", "cifar100", "svhn", "fashion_mnist"]
CLASSES = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "fashion_mnist": "FashionMNIST",
}


def fake(name: str, calls: list[dict[str, Any]]) -> Any:
    """A stand-in with the attributes, layouts and types of torchvision's class."""

    def make(root: Path, **arguments: Any) -> SimpleNamespace:
        calls.append(arguments)
        assert root.is_dir()
        train = arguments.get("train", arguments.get("split") == "train")
        num, num_classes = (60, 100) if name == "cifar100" else (40, 10)
        num = num if train else 20
        rng = np.random.default_rng(int(train))
        labels = np.arange(num) % num_classes
        chw = rng.integers(
            0, 256, (num, 1, 28, 28) if name == "fashion_mnist" else (num, 3, 32, 32)
        ).astype(np.uint8)
        if name == "svhn":
            return SimpleNamespace(data=chw, labels=labels, expected=chw)
        if name == "fashion_mnist":
            return SimpleNamespace(
                data=torch.from_numpy(chw[:, 0]), targets=torch.from_numpy(labels), expected=chw
            )
        hwc = np.ascontiguousarray(chw).transpose(0, 2, 3, 1)
        return SimpleNamespace(data=hwc, targets=labels.tolist(), expected=chw)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_turns_torchvisions_layout_into_ours(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    make = fake(name, calls)
    monkeypatch.setattr(datasets, CLASSES[name], make)
    data = load_data(DataConfig(name=name, root=str(tmp_path), holdout=10))
    assert data.num_classes == (100 if name == "cifar100" else 10)
    assert data.shape == ((1, 28, 28) if name == "fashion_mnist" else (3, 32, 32))
    assert all("download" not in call for call in calls)
    parts = ({"split": "train"}, {"split": "test"}) if name == "svhn" else None
    train, test = parts or ({"train": True}, {"train": False})
    assert calls == [train, test]
    for source, indices, arguments in (
        (data.train, data.train_indices, train),
        (data.holdout, data.holdout_indices, train),
        (data.test, torch.arange(20), test),
    ):
        expected = make(tmp_path, **arguments)
        assert isinstance(source, TensorSource)
        assert source.images.dtype == torch.uint8
        assert torch.equal(source.images, torch.from_numpy(expected.expected)[indices])
        labels = expected.labels if name == "svhn" else expected.targets
        assert torch.equal(source.labels, torch.as_tensor(labels)[indices])
        assert source.labels.dtype == torch.int64


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_name_the_root_and_both_remedies(name: str, tmp_path: Path) -> None:
    with pytest.raises(MorelError) as caught:
        load_data(DataConfig(name=name, root=str(tmp_path)))
    message = str(caught.value)
    assert "\n" not in message
    for part in (name, str(tmp_path), "missing", "data.download=true", "data.root=", "MOREL_DATA"):
        assert part in message, part


def test_the_root_is_the_settings_then_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def make(root: Path, **_: Any) -> Any:
        seen.append(root)
        raise RuntimeError("no files")

    monkeypatch.setattr(datasets, "CIFAR10", make)
    for part in ("set", "environment", "home/.cache/morel/data"):
        (tmp_path / part).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MOREL_DATA_ROOT", str(tmp_path / "environment"))
    with pytest.raises(MorelError):
        load_data(DataConfig(name="cifar10", root=str(tmp_path / "set")))
    with pytest.raises(MorelError):
        load_data(DataConfig(name="cifar10"))
    monkeypatch.delenv("MOREL_DATA_ROOT")
    with pytest.raises(MorelError):
        load_data(DataConfig(name="cifar10"))
    parts = ("set", "environment", "home/.cache/morel/data")
    assert seen == [tmp_path / part for part in parts]


def test_a_root_that_cannot_be_read_is_named_with_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(MorelError, match=r"data\.root = .*gone.*No such file.*data\.root=…"):
        load_data(DataConfig(name="cifar10", root=str(gone)))
    assert not gone.exists()
    monkeypatch.setenv("MOREL_DATA_ROOT", str(gone))
    with pytest.raises(MorelError, match=r"^MOREL_DATA_ROOT = .*gone"):
        load_data(DataConfig(name="cifar10"))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(MorelError, match="Not a directory"):
        load_data(DataConfig(name="cifar10", root=str(file)))


def test_download_is_tried_only_when_files_are_missing_and_makes_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    present = fake("cifar10", calls)

    def make(root: Path, download: bool = False, **arguments: Any) -> Any:
        if download:
            (root / "fetched").touch()
        if not (root / "fetched").exists():
            raise RuntimeError("Dataset not found or corrupted.")
        return present(root, download=download, **arguments)

    monkeypatch.setattr(datasets, "CIFAR10", make)
    config = DataConfig(name="cifar10", root=str(tmp_path / "new"), download=True, holdout=10)
    first = load_data(config)
    assert [call["download"] for call in calls] == [True, True]
    again = load_data(config)
    assert [call["download"] for call in calls] == [True, True, False, False]
    assert first.fingerprint == again.fingerprint


def test_a_download_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(root: Path, **_: Any) -> Any:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(datasets, "SVHN", make)
    with pytest.raises(MorelError, match=r"could not fetch into.*File not found or corrupted"):
        load_data(DataConfig(name="svhn", root=str(tmp_path), download=True))


def test_a_package_that_torchvision_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(root: Path, **_: Any) -> Any:
        raise ImportError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(datasets, "SVHN", make)
    with pytest.raises(MorelError, match="needs scipy: pip install scipy"):
        load_data(DataConfig(name="svhn", root=str(tmp_path), download=True))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_fashion_mnist_reads_real_idx_files_and_reports_a_truncated_one(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 28, 28))
    for part, num in (("train", 30), ("t10k", 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels[:num])
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(num) % 10)
    config = DataConfig(name="fashion_mnist", root=str(tmp_path), holdout=10)
    data = load_data(config)
    assert isinstance(data.train, TensorSource)
    expected = torch.as_tensor(pixels, dtype=torch.uint8)[data.train_indices].unsqueeze(1)
    assert torch.equal(data.train.images, expected)

    images = raw / "train-images-idx3-ubyte"
    for size in (3, 5000):
        images.write_bytes(images.read_bytes()[:size])
        with pytest.raises(MorelError, match=r"missing or damaged in .*FashionMNIST/raw"):
            load_data(config)
        write_idx(images, pixels)
    images.write_bytes(images.read_bytes()[:5000])
    with pytest.raises(MorelError, match="remove damaged files"):
        load_data(dataclasses.replace(config, download=True))


def cifar10_root() -> str:
    root = os.environ.get("MOREL_DATA_ROOT")
    if not root or not Path(root, "cifar-10-batches-py").is_dir():
        pytest.skip("needs the real CIFAR-10: set MOREL_DATA_ROOT to a folder that holds it")
    return root


def test_cifar10_is_the_published_set() -> None:
    root = cifar10_root()
    config = DataConfig(name="cifar10", root=root, holdout=1000, train_size=5000, test_size=1000)
    data = load_data(config)
    assert data.shape == (3, 32, 32)
    for source, each in ((data.train, 500), (data.holdout, 100), (data.test, 100)):
        assert source.labels.bincount().tolist() == [each] * 10
    assert not set(data.train_indices.tolist()) & set(data.holdout_indices.tolist())

    original = datasets.CIFAR10(root, train=True)
    for row in (0, 1234):
        index = int(data.train_indices[row])
        image, label = original[index]
        fetched = data.train.fetch(torch.tensor([row]))[0]
        assert torch.equal(fetched.permute(1, 2, 0), torch.from_numpy(np.array(image)))
        assert int(data.train.labels[row]) == label


def test_a_damaged_cifar10_file_is_reported(tmp_path: Path) -> None:
    source = Path(cifar10_root(), "cifar-10-batches-py")
    target = tmp_path / source.name
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    (target / "data_batch_1").unlink()
    (target / "data_batch_1").write_bytes(b"not the batch")
    with pytest.raises(MorelError, match=r"missing or damaged in .*cifar-10-batches-py/"):
        load_data(DataConfig(name="cifar10", root=str(tmp_path)))
