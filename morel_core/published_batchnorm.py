"""BatchNorm's running statistics as the published step moves them, from ours' fewer passes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from morel_core.config import ObjectiveConfig
from morel_core.errors import MorelError
from morel_core.losses import MorelObjective, Terms
from morel_core.models import MorelNet

Kind = Literal["natural", "adversarial"]

ACCURACY_PASSES: dict[str, tuple[Kind, ...]] = {
    "trades": ("natural", "adversarial", "natural"),
    "mart": ("natural", "adversarial"),
    "at": ("adversarial",),
}
EMBEDDING_PASSES: tuple[Kind, ...] = ("natural", "adversarial")


def published_passes(config: ObjectiveConfig) -> tuple[Kind, ...]:
    """Which batches the published step passes in train mode after its attack, in order.

    TRADES: f(x) for the cross-entropy, f(x') and f(x) again for the KL term; MART, and LOAT on it:
    f(x), f(x'). MOREL then passes x and x' once more for the embedding: five with TRADES, four with
    MART and LOAT. Plain AT passes x' alone; with MOREL, which was not published for it, the same
    two passes follow.
    """
    base = config.loat_base if config.accuracy == "loat" else config.accuracy
    if base not in ACCURACY_PASSES:
        raise MorelError(
            "training.published_batchnorm: there is no published step for objective.accuracy = "
            f"{config.accuracy!r}: use {', '.join(ACCURACY_PASSES)} or loat, or leave it off"
        )
    return ACCURACY_PASSES[base] + (EMBEDDING_PASSES if config.morel else ())


def batch_weight(passes: Sequence[Kind], kind: Kind, momentum: float) -> float:
    """Weight of the statistics of batch ``kind`` in the running ones after all ``passes``.

    Each pass is ``running ← (1 − momentum) · running + momentum · batch``, and every pass of the
    same batch has the same statistics: the one made j passes before the last weighs
    ``momentum · (1 − momentum)^j``.
    """
    last = len(passes) - 1
    return sum(momentum * (1 - momentum) ** (last - i) for i, p in enumerate(passes) if p == kind)


class PublishedBatchNorm:
    """``objective`` of the same signature, with the published step's running statistics after it.

    The objective passes the natural batch once, if at all, then the adversarial one. With momentum
    ``b`` = weight of the adversarial statistics in the second pass and ``a`` = (weight of the
    natural ones) / (1 − b) in the first, the statistics after two passes are those after all of
    `published_passes`, in closed form.

    Raises:
        MorelError: the objective has no published step; when called: a BatchNorm layer averages
            over all batches (momentum None).
    """

    def __init__(self, objective: MorelObjective) -> None:
        self.objective = objective
        self.passes = published_passes(objective.config)

    def __call__(self, net: MorelNet, x: Tensor, x_adv: Tensor, y: Tensor, **kwargs: Any) -> Terms:
        """See `MorelObjective`; ``net`` is left with its layers' own momentum."""
        with self._momenta(net):
            return self.objective(net, x, x_adv, y, **kwargs)

    @contextmanager
    def _momenta(self, net: MorelNet) -> Generator[None]:
        layers = {
            layer: _momentum(layer)
            for layer in net.encoder.modules()
            if isinstance(layer, _BatchNorm) and layer.training and layer.running_mean is not None
        }
        kinds: list[Kind] = ["natural"] if self.objective.needs_natural else []
        todo = iter([*kinds, "adversarial"])

        run_encoder = net.encoder_passes

        def one_pass(images: Tensor) -> Tensor:
            kind = next(todo)
            for layer, momentum in layers.items():
                adversarial = batch_weight(self.passes, "adversarial", momentum)
                if kind == "adversarial":
                    layer.momentum = adversarial
                else:
                    natural = batch_weight(self.passes, "natural", momentum)
                    # momentum 1 keeps the last pass alone, which leaves nothing to divide
                    layer.momentum = natural / (1 - adversarial) if natural else 0.0
            return (run_encoder or net.encoder)(images)

        net.encoder_passes = one_pass
        try:
            yield
        finally:
            net.encoder_passes = run_encoder
            for layer, momentum in layers.items():
                layer.momentum = momentum
        for layer in layers:
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked += len(self.passes) - len(kinds) - 1


def _momentum(layer: nn.Module) -> float:
    momentum = layer.momentum
    if not isinstance(momentum, float):
        raise MorelError(
            "training.published_batchnorm: a BatchNorm layer has momentum = None, which averages "
            "over all batches: give it a number, or leave the option off"
        )
    return momentum
