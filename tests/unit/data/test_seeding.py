"""Derived seeds and sliced noise."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from morel_core.seeding import derive_seed, generator, sliced_randn


def test_seeds_are_these_forever() -> None:
    """A change here changes every recorded number: it must not happen by accident."""
    assert derive_seed() == 6510301506637419378
    assert derive_seed("noise") == 635909521753556759
    assert derive_seed(0, "order", 1) == 5516302486551140061


def test_seeds_are_the_same_in_another_process() -> None:
    program = "from morel_core.seeding import derive_seed; print(derive_seed(3, 'Größe', -1))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        env={"PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) == derive_seed(3, "Größe", -1)


def test_seeds_depend_on_every_part_its_type_and_the_order() -> None:
    parts = [
        (), (0,), (1,), (-1,), ("",), ("0",), (0, 0), ("a", "b"), ("ab",), ("b", "a"),
        ("a", "b", ""), (12, 3), (1, 23), (1, 2, 3), (2**64,), ("1", 2), (1, "2"),
    ]  # fmt: skip
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_are_fresh_and_follow_from_their_parts() -> None:
    first, again, other = (
        torch.rand(4, generator=generator("cpu", *p)) for p in ((1, "a"), (1, "a"), (1, "b"))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (3, 2, 2), (1, 0, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ranks_noise_together_is_that_of_one_process(
    sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    whole = sliced_randn(5, (7,), 0, (2, 3), dtype, "cpu")
    parts = [sliced_randn(5, sizes, rank, (2, 3), dtype, "cpu") for rank in range(len(sizes))]
    assert [len(part) for part in parts] == list(sizes)
    assert torch.equal(torch.cat(parts), whole)
    assert whole.dtype == dtype
    assert not torch.equal(whole, sliced_randn(6, (7,), 0, (2, 3), dtype, "cpu"))


def test_the_noise_is_standard_normal_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    noise = sliced_randn(0, (100, 100), 1, (50,), torch.float64, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert abs(noise.mean().item()) < 0.05
    assert abs(noise.std().item() - 1) < 0.05
    rows = noise[:6]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(rows, 2))
