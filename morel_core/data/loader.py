"""Training batches: shuffled, augmented on the device, divided over ranks to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from morel_core.data.augment import (
    Augmentation,
    crop_flip,
    draw,
    draw_cutmix,
    draw_erasing,
    mixed_labels,
    put_boxes,
)
from morel_core.data.base import ImageSource, TensorSource, to_unit
from morel_core.data.extra import mixed_order
from morel_core.data.idbh import Idbh, draw_idbh
from morel_core.errors import check
from morel_core.seeding import derive_seed, generator


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's rows of a global batch."""

    x: Tensor
    """(b, C, H, W) float32 in [0, 1]."""
    y: Tensor
    """(b,) int64; with CutMix (b, K) float32, each label's share of the image."""
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
        augmentation: none, crop (zero-padded random crops), crop_flip (half of them mirrored) or
            idbh (see `morel_core.data.idbh`).
        crop_padding: pixels on each side, for crop and crop_flip.
        rank: which of ``world_size`` parts to make.
        extra: more images (with a `TensorSource` only), which make up ``extra_ratio`` of each
            batch; the epochs keep their number of steps.
        extra_ratio: in [0, 1).
        erasing: probability of random erasing, with random pixels.
        cutmix: probability of CutMix with another image of the global batch.
        num_classes: needed with ``cutmix``.

    Raises:
        ConfigError: the source has fewer images than ``batch_size``, a rank would get no rows, or
            a batch would hold no image of ``source`` or of ``extra``.
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
        *,
        extra: TensorSource | None = None,
        extra_ratio: float = 0.0,
        erasing: float = 0.0,
        cutmix: float = 0.0,
        num_classes: int = 0,
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
        assert cutmix == 0 or num_classes > 0, "labels are mixed over num_classes"
        self.num_images = len(source)
        self.num_extra = 0 if extra is None else round(extra_ratio * batch_size)
        if extra is not None:
            assert isinstance(source, TensorSource), "load_data sees to it"
            check(
                0 < self.num_extra < batch_size,
                "data.extra_ratio",
                extra_ratio,
                f"of a batch of {batch_size} at least one image must be extra, and one not",
            )
            images = torch.cat([source.fetch(torch.arange(len(source))), extra.images])
            source = TensorSource(images, torch.cat([source.labels, extra.labels]))
        self.source = source
        self.erasing = erasing
        self.cutmix = cutmix
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation: Augmentation = augmentation
        self.crop_padding = crop_padding
        self.rank = rank
        each, more = divmod(batch_size, world_size)
        self.sizes = tuple(each + (r < more) for r in range(world_size))

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.num_images // self.batch_size

    def _order(self, epoch: int) -> Tensor:
        """Which image stands at which place of the epoch, (at least steps · batch_size,) int64."""
        order = torch.randperm(
            self.num_images, generator=generator("cpu", self.seed, "order", epoch)
        )
        if not self.num_extra:
            return order
        extra_order = torch.randperm(
            len(self.source) - self.num_images,
            generator=generator("cpu", self.seed, "extra", epoch),
        )
        return mixed_order(order, extra_order, self.batch_size, self.num_extra)

    def places(self, epoch: int, step: int) -> Tensor:
        """Which images make up the global batch of a step (counted from 0): (batch_size,) int64."""
        return self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]

    def _partners(self, epoch: int) -> Tensor:
        """At which place of the epoch the partner of each image stands, within the same batch."""
        keys = torch.rand(
            (len(self), self.batch_size), generator=generator("cpu", self.seed, "partner", epoch)
        )
        return (keys.argsort(1) + self.batch_size * torch.arange(len(self))[:, None]).flatten()

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches from ``start_step`` (counted from 0) on, as if those before had been made."""
        assert 0 <= start_step <= len(self), (start_step, len(self))
        device = self.source.labels.device
        order = self._order(epoch)
        size = self.source.shape[1:]
        # All draws of an epoch are made at once and those of this rank's rows moved at once, so
        # that no step waits for a copy to the device.
        first = sum(self.sizes[: self.rank])
        rows = first + torch.arange(self.sizes[self.rank])
        places = rows + self.batch_size * torch.arange(start_step, len(self))[:, None]
        erased = exchanged = None
        if self.erasing:
            drawn = generator("cpu", self.seed, "erasing", epoch)
            erased = draw_erasing(len(order), size, self.erasing, drawn)[places].to(device)
        if self.cutmix:
            drawn = generator("cpu", self.seed, "cutmix", epoch)
            exchanged = draw_cutmix(len(order), size, self.cutmix, drawn)[places].to(device)
            # A step's rows are followed by their partners.
            places = torch.cat([places, self._partners(epoch)[places]], dim=1)
        augment = self._augmentation_of(epoch, len(order), places, device)
        indices = order[places]
        placed = indices.to(device)
        # Files are named on the host, tensors indexed on the device.
        wanted = placed if isinstance(self.source, TensorSource) else indices
        for i, raw in enumerate(self._fetched(wanted)):
            step = start_step + i
            raw = augment(raw, i)
            y = self.source.labels[placed[i]]
            if exchanged is not None:
                raw, other = raw.chunk(2)
                raw = put_boxes(raw, other, exchanged[i])
                y = mixed_labels(*y.chunk(2), exchanged[i], size, self.num_classes)
            if erased is not None:
                pixels = torch.randint(
                    256,
                    (self.batch_size, *raw.shape[1:]),
                    generator=generator(device, self.seed, "pixels", epoch, step),
                    dtype=torch.uint8,
                    device=device,
                )
                raw = put_boxes(raw, pixels[first : first + len(raw)], erased[i])
            yield Batch(
                x=to_unit(raw),
                y=y,
                sizes=self.sizes,
                rank=self.rank,
                seed=derive_seed(self.seed, "step", epoch, step),
            )

    def _augmentation_of(
        self, epoch: int, num_places: int, places: Tensor, device: torch.device
    ) -> Callable[[Tensor, int], Tensor]:
        """What augments the images of the i-th step, which stand at ``places[i]``."""
        drawn = generator("cpu", self.seed, "augmentation", epoch)
        if self.augmentation == "none":
            return lambda images, _step: images
        if self.augmentation == "idbh":
            draws = draw_idbh(num_places, self.source.shape[1:], drawn)[places]
            return Idbh(draws, device)
        draws = draw(num_places, self.augmentation, self.crop_padding, drawn)[places].to(device)
        return lambda images, step: crop_flip(images, draws[step], self.crop_padding)

    def _fetched(self, wanted: Tensor) -> Iterator[Tensor]:
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
