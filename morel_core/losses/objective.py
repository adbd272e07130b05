"""MOREL's objective: robustness in the embedding space, weighed against accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from morel_core.config import ObjectiveConfig
from morel_core.distributed import Shard
from morel_core.losses.alignment import cosine_alignment
from morel_core.losses.at import at
from morel_core.losses.contrastive import anchor_losses
from morel_core.losses.loat import loat
from morel_core.losses.mart import mart
from morel_core.losses.outputs import AccuracyObjective, Outputs
from morel_core.losses.scalarisation import scalarise
from morel_core.losses.trades import trades
from morel_core.precision import at_least_fp32

if TYPE_CHECKING:
    from morel_core.models import MorelNet

ACCURACY: dict[str, AccuracyObjective] = {"trades": trades, "mart": mart, "loat": loat, "at": at}


@dataclass(frozen=True)
class Terms:
    """The loss of one batch and what it is made of; all scalars, with gradients.

    Under DDP each rank's value is its weighted share: their mean over ranks is the global value.
    """

    total: Tensor
    accuracy: Tensor
    robustness: Tensor
    alignment: Tensor
    contrastive: Tensor
    parts: dict[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())
    """The accuracy objective's own parts, weighted: they sum to ``accuracy``."""

    def leaves(self) -> dict[str, Tensor]:
        """The terms that all others are sums of."""
        return {"alignment": self.alignment, "contrastive": self.contrastive, **self.parts}

    def scalars(self) -> dict[str, Tensor]:
        """Every term by name."""
        return {
            "total": self.total,
            "accuracy": self.accuracy,
            "robustness": self.robustness,
            **self.leaves(),
        }


class MorelObjective:
    """``objective(net, x, x_adv, y, epoch=1, num_epochs=110) -> Terms``.

    Args:
        config: weights and choices.
        accuracy: a user's own accuracy objective (with ``config.accuracy = "custom"``): called as
            ``accuracy(outputs, config)``, it returns named scalar parts whose sum is minimised.

    Raises:
        ValueError: ``accuracy`` and ``config.accuracy`` do not go together.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        accuracy: Callable[[Outputs, ObjectiveConfig], dict[str, Tensor]] | None = None,
    ) -> None:
        if (accuracy is not None) != (config.accuracy == "custom"):
            raise ValueError(
                f"accuracy = {config.accuracy!r}: pass a callable exactly with accuracy='custom'"
            )
        self.config = config
        self.accuracy = accuracy or ACCURACY[config.accuracy]

    @property
    def needs_natural(self) -> bool:
        """Whether a natural pass is needed: plain AT alone does without."""
        return self.config.morel or self.config.accuracy != "at"

    @property
    def attack_loss(self) -> str:
        """What the training attack maximises unless told."""
        return self.config.attack_loss

    def __call__(
        self,
        net: MorelNet,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        epoch: int,
        num_epochs: int,
        shard: Shard | None = None,
    ) -> Terms:
        """Pass each batch once through ``net`` (in train mode) and weigh the terms.

        Args:
            net: encoder, head and embedder.
            x: (b, C, H, W) in [0, 1].
            x_adv: (b, C, H, W), made from ``x``; no gradient flows into it.
            y: (b,) int64.
            epoch: counted from 1.
            num_epochs: length of the run.
            shard: this rank's part of the global batch; None asks the other ranks.
        """
        config = self.config
        shard = shard or Shard.of(len(y), y.device)
        features = net.features(x) if self.needs_natural else None
        features_adv = net.features(x_adv)
        outputs = Outputs(
            logits=None if features is None else at_least_fp32(net.head(features)),
            logits_adv=at_least_fp32(net.head(features_adv)),
            y=y,
            epoch=epoch,
            num_epochs=num_epochs,
            shard=shard,
        )
        parts = self.accuracy(outputs, config)
        accuracy = torch.stack(list(parts.values())).sum()
        if not config.morel or features is None:
            zero = accuracy.new_zeros(())
            return Terms(accuracy, accuracy, zero, zero, zero, parts)

        z = at_least_fp32(net.projection(features))
        z_adv = at_least_fp32(net.projection(features_adv))
        cosine = shard.mean(cosine_alignment(z, z_adv))
        alignment = cosine if config.alignment else torch.zeros_like(cosine)
        contrastive = self._contrastive(net, z, z_adv, y, shard)
        robustness = alignment + config.alpha * contrastive
        total = scalarise(robustness, accuracy, config)
        return Terms(total, accuracy, robustness, alignment, contrastive, parts)

    def _contrastive(
        self, net: MorelNet, z: Tensor, z_adv: Tensor, y: Tensor, shard: Shard
    ) -> Tensor:
        """The contrastive term of this rank's anchors against all ranks' rows.

        Each set of rows is attended on its own, this rank's among all ranks' of their class, so
        that neither scores nor similarities outgrow b × B.
        """
        chosen = {"natural": [z], "adversarial": [z_adv], "both": [z, z_adv]}[self.config.features]
        labels = shard.gather(y)
        attended = [net.attend(rows, y, shard.gather(rows), labels) for rows in chosen]
        mine = shard.first + torch.arange(len(y), device=y.device)
        losses = anchor_losses(
            torch.cat(attended),
            torch.cat([mine + i * shard.total for i in range(len(chosen))]),
            torch.cat([shard.gather(rows) for rows in attended]),
            labels.repeat(len(chosen)),
            self.config.temperature,
        )
        return shard.mean(losses) / len(chosen)
