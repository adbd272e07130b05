"""A config against its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from morel_core.config import ExperimentConfig
from morel_core.errors import check

if TYPE_CHECKING:
    from morel_core.data import Dataset


def check_fits(config: ExperimentConfig, data: Dataset) -> None:
    """Build the network and compare sizes, so that a mistake costs no start of Ray.

    Raises:
        ConfigError, MorelError: the data has fewer images than a batch, or the model cannot be
            built for them.
    """
    from morel_core.models import build_net

    check(
        config.training.batch_size <= len(data.train),
        "training.batch_size",
        config.training.batch_size,
        f"at most the {len(data.train)} training images of data.name = {data.name!r}",
    )
    build_net(config.model, num_classes=data.num_classes, shape=data.shape, seed=config.seed)
