"""What every attack is and promises."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from morel_core.config import Norm


class Attack(Protocol):
    """Makes adversarial images; leaves the network's mode, grads and statistics as they were."""

    @property
    def eps(self) -> float:
        """Radius of its ball, in units of the image range."""
        ...

    @property
    def norm(self) -> Norm:
        """Of its ball."""
        ...

    @property
    def name(self) -> str:
        """Short name with steps, ball and ε, as in ``pgd20_linf_8-255``; used in metric names."""
        ...

    @property
    def draws(self) -> int:
        """Standard normal tensors of the images' shape that one call takes as ``noise``."""
        ...

    @property
    def white_box(self) -> bool:
        """Whether it follows the gradient of the network that it is called with."""
        ...

    def describe(self) -> dict[str, Any]:
        """Its parameters, for the record of a number made with it."""
        ...

    def __call__(
        self,
        net: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Adversarial images.

        Args:
            net: maps images in [0, 1] to logits.
            x: (B, C, H, W) in [0, 1].
            y: (B,) int64.
            noise: standard normal, for the starts: (draws, B, C, H, W), (B, C, H, W) where draws is
                1, not looked at where it is 0; drawn here if None.
            generator: for the draw, on the device of ``x``.

        Returns:
            (B, C, H, W), in the ball around ``x`` and in [0, 1], without gradient.
        """
        ...


def size_label(size: float) -> str:
    """``8-255`` for 8/255, else the decimal number: ε or a step size as part of a metric's name.

    From 1 on, as ℓ2 balls may be, it is no level of a pixel.
    """
    level = size * 255
    if size < 1 and abs(level - round(level)) < 1e-6:
        return f"{round(level)}-255"
    return f"{size:.4g}"


@contextmanager
def attack_mode(net: nn.Module) -> Generator[None]:
    """Eval mode (frozen BatchNorm statistics) and parameters without gradient inside.

    Each module's own mode and each parameter's own ``requires_grad`` are restored after. Without
    the parameters' gradients a pass keeps less for its backward pass, and a compiled one, whose
    backward pass computes all gradients or none, does not compute them.
    """
    modes = [(module, module.training) for module in net.modules()]
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    net.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)
