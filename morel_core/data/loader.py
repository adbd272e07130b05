"""Training batches: shuffled, augmented on the device, divided over ranks to the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from morel_core.data.augment import Augmentation, crop_flip, draw
from morel_core.data.base import ImageSource, TensorSource, to_unit
from morel_core.errors import check
from morel_core.seeding import derive_seed, generator


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's rows of a global batch."""

    x: Tensor
    """(b, C, H, W) float32 in [0, 1]."""
    y: Tensor
    """(b,) int64."""
    sizes: tuple[int, ...]
    """Rows of every rank; ``sizes[rank] == b``."""
    rank: int
    seed: int
    """Of the global batch, so the same on every rank: for the step's noise, see `sliced_randn`."""


class Batches:
    """The epochs of a training run.

    Order and augmentation are drawn for the global batch and follow from (seed, epoch, step) alone;
    rank r gets the rows that `torch.tensor_split` would give it. So the ranks' batches,
    concatenated, are bitwise those of one process, and any step can be made without the ones before
    it. The last images of an epoch, fewer than a batch, are left out of that epoch.

    Args:
        source: what to draw from. A `TensorSource` is read in place; anything else one batch ahead,
            in a thread, while the step before computes.
        batch_size: rows of the global batch.
        seed: of the run.
        augmentation: none, crop (zero-padded random crops) or crop_flip (half of them mirrored).
        crop_padding: pixels on each side.
        rank: which of ``world_size`` parts to make.

    Raises:
        ConfigError: the source has fewer images than ``batch_size``, or a rank would get no rows.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        crop_padding: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check(
            batch_size <= len(source),
            "training.batch_size",
            batch_size,
            f"at most {len(source)}, the number of training images",
        )
        check(
            batch_size >= world_size,
            "training.batch_size",
            batch_size,
            f"at least {world_size}, one image for each worker",
        )
        check(
            augmentation in get_args(Augmentation),
            "data.augmentation",
            augmentation,
            f"one of {', '.join(get_args(Augmentation))}",
        )
        assert 0 <= rank < world_size, (rank, world_size)
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation: Augmentation = augmentation
        self.crop_padding = crop_padding
        self.rank = rank
        each, more = divmod(batch_size, world_size)
        self.sizes = tuple(each + (r < more) for r in range(world_size))

    def __len__(self) -> int:
        """Steps of an epoch."""
        return len(self.source) // self.batch_size

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches from ``start_step`` (counted from 0) on, as if those before had been made."""
        assert 0 <= start_step <= len(self), (start_step, len(self))
        device = self.source.labels.device
        order = torch.randperm(
            len(self.source), generator=generator("cpu", self.seed, "order", epoch)
        )
        # Drawn and moved once an epoch, so that no step waits for a copy to the device.
        draws = draw(
            len(order),
            self.augmentation,
            self.crop_padding,
            generator("cpu", self.seed, "augmentation", epoch),
        ).to(device)
        placed = order.to(device)
        first = sum(self.sizes[: self.rank])
        rows = [
            slice(start := step * self.batch_size + first, start + self.sizes[self.rank])
            for step in range(start_step, len(self))
        ]
        # Files are named on the host, tensors indexed on the device.
        wanted = placed if isinstance(self.source, TensorSource) else order
        images = self._fetched([wanted[part] for part in rows])
        for step, (part, raw) in enumerate(zip(rows, images, strict=True), start_step):
            if self.augmentation != "none":
                raw = crop_flip(raw, draws[part], self.crop_padding)
            yield Batch(
                x=to_unit(raw),
                y=self.source.labels[placed[part]],
                sizes=self.sizes,
                rank=self.rank,
                seed=derive_seed(self.seed, "step", epoch, step),
            )

    def _fetched(self, wanted: list[Tensor]) -> Iterator[Tensor]:
        if isinstance(self.source, TensorSource):
            yield from map(self.source.fetch, wanted)
            return
        with ThreadPoolExecutor(1) as reader:
            ahead: Future[Tensor] | None = None
            for indices in wanted:
                ready, ahead = ahead, reader.submit(self.source.fetch, indices)
                if ready is not None:
                    yield ready.result()
            if ahead is not None:
                yield ahead.result()
