"""Batches: what they hold, that ranks and restarts change nothing, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from morel_core.data import Batch, Batches, TensorSource
from morel_core.errors import ConfigError

NUM, BATCH = 23, 5


@pytest.fixture
def source() -> TensorSource:
    """Images that carry their own number in every pixel."""
    numbers = torch.arange(1, NUM + 1, dtype=torch.uint8)
    return TensorSource(numbers.view(-1, 1, 1, 1).repeat(1, 2, 4, 4), torch.arange(1, NUM + 1))


def batches(source: TensorSource, **changes: Any) -> Batches:
    settings = {"batch_size": BATCH, "seed": 0, "augmentation": "none", "crop_padding": 1}
    return Batches(source, **{**settings, **changes})


def numbers(epoch: list[Batch]) -> list[int]:
    return torch.cat([batch.y for batch in epoch]).tolist()


def test_an_epoch_has_every_image_once_but_the_last_partial_batch(source: TensorSource) -> None:
    loader = batches(source)
    epoch = list(loader.epoch(1))
    assert len(epoch) == len(loader) == 4
    assert len(set(numbers(epoch))) == 20
    for batch in epoch:
        assert batch.x.shape == (5, 2, 4, 4)
        assert batch.x.dtype == torch.float32
        assert batch.y.dtype == torch.int64
        assert (batch.sizes, batch.rank) == ((5,), 0)
        assert torch.equal(batch.x, (batch.y / 255).view(-1, 1, 1, 1).expand_as(batch.x))
    assert set().union(*(numbers(list(loader.epoch(e))) for e in range(6))) == set(range(1, 24))


def test_pixels_fill_the_unit_interval(source: TensorSource) -> None:
    source.images[0], source.images[1:] = 0, 255
    x = torch.cat([batch.x for batch in batches(source, batch_size=NUM).epoch(0)])
    assert (x.min(), x.max()) == (0.0, 1.0)


def test_the_order_follows_from_seed_and_epoch(source: TensorSource) -> None:
    orders = {
        (seed, epoch): tuple(numbers(list(batches(source, seed=seed).epoch(epoch))))
        for seed in (0, 1)
        for epoch in (1, 2)
    }
    assert len(set(orders.values())) == 4
    loader = batches(source)
    list(loader.epoch(2))
    torch.manual_seed(99)
    assert tuple(numbers(list(loader.epoch(1)))) == orders[0, 1]
    assert tuple(numbers(list(batches(source, batch_size=4).epoch(1)))) == orders[0, 1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("augmentation", ["none", "crop", "crop_flip", "idbh"])
def test_ranks_together_make_the_batch_of_one_process(
    source: TensorSource, world_size: int, augmentation: str
) -> None:
    source.images.random_(0, 256, generator=torch.Generator().manual_seed(0))
    whole = list(batches(source, augmentation=augmentation).epoch(3))
    ranks = [
        list(batches(source, augmentation=augmentation, rank=r, world_size=world_size).epoch(3))
        for r in range(world_size)
    ]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.x, torch.cat([part.x for part in parts]))
        for part, rows in zip(parts, batch.y.tensor_split(world_size), strict=True):
            assert torch.equal(part.y, rows)
            assert part.seed == batch.seed
            assert part.sizes == tuple(len(rows) for rows in batch.y.tensor_split(world_size))
            assert part.sizes[part.rank] == len(part.x)


def test_a_step_can_be_made_without_those_before_it(source: TensorSource) -> None:
    loader = batches(source, augmentation="crop_flip")
    epoch = list(loader.epoch(7))
    for start in range(len(loader) + 1):
        rest = list(loader.epoch(7, start_step=start))
        assert len(rest) == len(loader) - start
        for batch, expected in zip(rest, epoch[start:], strict=True):
            assert torch.equal(batch.x, expected.x)
            assert torch.equal(batch.y, expected.y)
            assert batch.seed == expected.seed


def test_augmentation_differs_by_epoch_and_step() -> None:
    same = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(20, 1, 1, 1)
    loader = batches(
        TensorSource(same, torch.zeros(20, dtype=torch.int64)), augmentation="crop", crop_padding=3
    )
    made = [batch.x for epoch in (1, 2) for batch in loader.epoch(epoch)]
    assert len(torch.stack(made).flatten(1).unique(dim=0)) == len(made) == 8


def test_noise_seeds_differ_by_seed_epoch_and_step(source: TensorSource) -> None:
    seeds = [b.seed for e in range(3) for b in batches(source).epoch(e)]
    seeds += [b.seed for b in batches(source, seed=1).epoch(0)]
    assert len(set(seeds)) == len(seeds)


def test_augmentation_leaves_the_source_alone(source: TensorSource) -> None:
    before = source.images.clone()
    for batch in batches(source, augmentation="crop_flip").epoch(0):
        batch.x.zero_()
    for batch in batches(source).epoch(0):
        batch.x.zero_()
    assert torch.equal(source.images, before)


def test_the_global_generator_is_left_alone(source: TensorSource) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(batches(source, augmentation="crop_flip").epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"batch_size": NUM + 1}, "training.batch_size", "at most 23"),
        ({"world_size": 6}, "training.batch_size", "at least 6"),
        ({"augmentation": "flip"}, "data.augmentation", "one of none, crop, crop_flip"),
    ],
)
def test_settings_out_of_range_are_refused(
    source: TensorSource, changes: dict[str, Any], key: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        batches(source, **changes)
    assert caught.value.key == key
