"""Splits: sizes, disjointness, balance, nesting, determinism, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from morel_core.config import DataConfig
from morel_core.data import DATASETS, Dataset, SyntheticConfig, TensorSource, load_data, to_unit
from morel_core.data.split import stratified_order
from morel_core.errors import ConfigError, MorelError

TINY = SyntheticConfig(
    num_classes=4, image_size=6, channels=2, num_train=100, num_test=40, holdout=20
)


def images(source: object) -> Tensor:
    assert isinstance(source, TensorSource)
    return source.images


def check_contract(data: Dataset, config: DataConfig) -> None:
    for source in (data.train, data.holdout, data.test):
        fetched = source.fetch(torch.arange(len(source)))
        assert fetched.dtype == torch.uint8
        assert fetched.shape == (len(source), *data.shape)
        assert source.shape == data.shape
        assert source.labels.dtype == torch.int64
        assert source.labels.shape == (len(source),)
        assert source.labels.min() >= 0
        assert source.labels.max() < data.num_classes
    assert len(data.holdout) == config.holdout
    together = torch.cat([data.train_indices, data.holdout_indices])
    assert len(together.unique()) == len(together) == len(data.train) + len(data.holdout)


def test_synthetic_has_the_shape_of_its_config() -> None:
    data = load_data(TINY)
    check_contract(data, TINY)
    assert data.shape == (2, 6, 6)
    assert data.num_classes == 4
    assert (len(data.train), len(data.holdout), len(data.test)) == (80, 20, 40)
    assert data.train.labels.bincount().tolist() == [20] * 4
    assert images(data.train).float().std() > 20


def test_synthetic_classes_are_learnable_and_noise_makes_them_harder() -> None:
    def accuracy(noise: float) -> float:
        data = load_data(
            SyntheticConfig(num_classes=5, num_train=500, holdout=50, image_size=8, noise=noise)
        )
        x, y = to_unit(images(data.train)).flatten(1), data.train.labels
        means = torch.stack([x[y == c].mean(0) for c in range(5)])
        found = torch.cdist(to_unit(images(data.test)).flatten(1), means).argmin(1)
        return (found == data.test.labels).double().mean().item()

    assert accuracy(0.2) == 1.0
    assert 0.3 < accuracy(2.0) < 0.95


def test_synthetic_follows_from_its_seed_across_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_data(TINY)
    assert torch.equal(images(first.train), images(load_data(TINY).train))
    other = load_data(dataclasses.replace(TINY, seed=1))
    assert not torch.equal(images(first.train), images(other.train))
    assert first.fingerprint != other.fingerprint
    assert torch.equal(first.train_indices, other.train_indices)
    # Large sets are made in pieces: every piece has noise of its own.
    monkeypatch.setattr("morel_core.data.synthetic.CHUNK", 8)
    whole = DATASETS.get("synthetic").factory(dataclasses.replace(TINY, noise=0.1)).train.images
    assert len(whole.flatten(1).unique(dim=0)) == len(whole)


def test_digits_are_stretched_to_bytes_and_have_a_fixed_test_set() -> None:
    pytest.importorskip("sklearn")
    data = load_data(DataConfig())
    check_contract(data, DataConfig())
    assert data.shape == (1, 8, 8)
    assert (len(data.train), len(data.holdout), len(data.test)) == (1238, 200, 359)
    assert images(data.train).max() == 255
    assert images(data.train).min() == 0
    counts = data.test.labels.bincount()
    assert counts.min() >= 34
    assert counts.max() <= 37
    other = load_data(DataConfig(split_seed=1))
    assert torch.equal(images(data.test), images(other.test))
    assert not torch.equal(images(data.holdout), images(other.holdout))
    # The three parts make up the whole set again, image and label.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    whole = torch.as_tensor(bunch.images).mul(255 / 16).round().to(torch.uint8).flatten(1)
    parts = (data.train, data.holdout, data.test)
    ours = torch.cat([images(part).flatten(1) for part in parts]).tolist()
    labels = torch.cat([part.labels for part in parts]).tolist()
    assert sorted(zip(ours, labels, strict=True)) == sorted(
        zip(whole.tolist(), bunch.target.tolist(), strict=True)
    )


def test_a_split_follows_from_its_seed() -> None:
    first, again = load_data(TINY), load_data(TINY)
    assert torch.equal(first.holdout_indices, again.holdout_indices)
    assert torch.equal(first.train_indices, again.train_indices)
    assert first.fingerprint == again.fingerprint
    other = load_data(dataclasses.replace(TINY, split_seed=1))
    assert not torch.equal(first.holdout_indices, other.holdout_indices)
    assert first.fingerprint != other.fingerprint
    assert torch.equal(images(first.test), images(other.test))


def test_the_indices_point_into_the_original_training_set() -> None:
    data = load_data(TINY)
    original = DATASETS.get("synthetic").factory(TINY).train
    assert torch.equal(images(data.train), original.images[data.train_indices])
    assert torch.equal(images(data.holdout), original.images[data.holdout_indices])
    assert torch.equal(data.holdout.labels, original.labels[data.holdout_indices])


def test_draws_are_balanced_and_nested() -> None:
    full = load_data(TINY)
    small, large = (load_data(dataclasses.replace(TINY, train_size=n)) for n in (14, 40))
    for drawn in (small, large):
        assert torch.equal(drawn.holdout_indices, full.holdout_indices)
        counts = drawn.train.labels.bincount(minlength=4)
        assert counts.max() - counts.min() <= 1
    assert full.holdout.labels.bincount().tolist() == [5] * 4
    assert set(small.train_indices.tolist()) < set(large.train_indices.tolist())
    assert set(large.train_indices.tolist()) < set(full.train_indices.tolist())
    more = load_data(dataclasses.replace(TINY, holdout=30))
    assert set(full.holdout_indices.tolist()) < set(more.holdout_indices.tolist())


def test_test_size_takes_a_fixed_balanced_nested_part_in_the_original_order() -> None:
    rows = {}
    for size in (8, 20, 40):
        for split_seed in (0, 1):
            config = dataclasses.replace(TINY, test_size=size, split_seed=split_seed)
            rows[size, split_seed] = images(load_data(config).test).flatten(1)
        assert torch.equal(rows[size, 0], rows[size, 1])
    eight = load_data(dataclasses.replace(TINY, test_size=8)).test
    assert eight.labels.bincount().tolist() == [2] * 4
    sets = {size: set(map(tuple, rows[size, 0].tolist())) for size in (8, 20, 40)}
    assert sets[8] < sets[20] < sets[40]
    assert torch.equal(rows[40, 0], images(load_data(TINY).test).flatten(1))


def test_every_prefix_of_a_stratified_order_has_the_classes_in_proportion() -> None:
    counts = torch.tensor([60, 30, 10])
    labels = torch.repeat_interleave(torch.arange(3), counts)
    order = stratified_order(labels, 3)
    assert torch.equal(order.sort().values, torch.arange(100))
    for size in range(1, 101):
        got = labels[order[:size]].bincount(minlength=3)
        assert ((got - counts * size / 100).abs() < 1.5).all(), (size, got)
    # Classes of equal size: to one image, and the odd ones are not always the first classes.
    balanced = torch.arange(4).repeat_interleave(10)
    odd = set()
    for seed in range(20):
        prefix = balanced[stratified_order(balanced, seed)[:5]].bincount(minlength=4)
        assert sorted(prefix.tolist()) == [1, 1, 1, 2]
        odd.add(int(prefix.argmax()))
    assert odd == {0, 1, 2, 3}


@pytest.mark.parametrize("part", ["train", "holdout", "test"])
def test_the_fingerprint_sees_one_bit_of_any_part(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_data(TINY)
    entry = DATASETS.get("synthetic")

    def altered(config: SyntheticConfig) -> object:
        official = entry.factory(config)
        if part == "test":
            official.test.images[3, 1, 2, 3] ^= 1
        else:
            row = int(getattr(before, f"{part}_indices")[3])
            official.train.images[row, 1, 2, 3] ^= 1
        return official

    monkeypatch.setattr(DATASETS, "get", lambda _: dataclasses.replace(entry, factory=altered))
    assert load_data(TINY).fingerprint != before.fingerprint


def test_a_digest_sees_images_labels_order_and_shape() -> None:
    x = torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2)
    y = torch.arange(4)
    sources = [
        TensorSource(x, y),
        TensorSource(x, y.flip(0)),
        TensorSource(x.flip(0), y.flip(0)),
        TensorSource(x.view(4, 3, 4, 1), y),
        TensorSource(x[:3], y[:3]),
    ]
    assert len({source.digest() for source in sources}) == len(sources)
    strided = TensorSource(x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), y)
    assert strided.digest() == sources[0].digest()


@pytest.mark.parametrize(
    ("change", "key", "available"),
    [
        ({"holdout": 100}, "data.holdout", "at most 99"),
        ({"train_size": 81}, "data.train_size", "at most 80"),
        ({"test_size": 41}, "data.test_size", "at most 40"),
    ],
)
def test_more_images_than_there_are_is_refused(
    change: dict[str, int], key: str, available: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_data(dataclasses.replace(TINY, **change))
    assert caught.value.key == key
    assert available in str(caught.value)
    load_data(dataclasses.replace(TINY, **{k: v - 1 for k, v in change.items()}))


def test_names_and_config_classes_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"data\.name = 'cifar11'.*did you mean 'cifar10'"):
        load_data(DataConfig(name="cifar11"))
    with pytest.raises(ConfigError, match="is configured by SyntheticConfig, not by DataConfig"):
        load_data(DataConfig(name="synthetic"))
    with pytest.raises(ConfigError, match="is configured by DataConfig, not by SyntheticConfig"):
        load_data(SyntheticConfig(name="digits"))
    assert {
        "digits",
        "synthetic",
        "cifar10",
        "cifar100",
        "svhn",
        "fashion_mnist",
        "image_folder",
    } <= set(DATASETS)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"image_size": 0}, "image_size"),
        ({"channels": 0}, "channels"),
        ({"num_train": 9}, "num_train"),
        ({"num_test": 9}, "num_test"),
        ({"noise": -0.1}, "noise"),
        ({"holdout": 0}, "holdout"),
    ],
)
def test_synthetic_settings_are_checked(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SyntheticConfig(**settings)
    assert caught.value.key == key


def test_importing_needs_torch_alone() -> None:
    """Without scikit-learn, torchvision, Pillow and scipy the synthetic set still loads."""
    program = """
import sys
sys.modules |= dict.fromkeys(("sklearn", "torchvision", "PIL", "scipy"))  # as if not there
from morel_core.data import DataConfig, SyntheticConfig, load_data
from morel_core.errors import MorelError
load_data(SyntheticConfig(num_train=40, holdout=10))
try:
    load_data(DataConfig())
except MorelError as error:
    print(error)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install scikit-learn" in done.stdout


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load_data(TINY)
    assert torch.equal(torch.get_rng_state(), before)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MorelError, match="pip install scikit-learn"):
        load_data(DataConfig())
