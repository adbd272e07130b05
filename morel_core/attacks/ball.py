"""The ℓ∞ and the ℓ2 ball: start, step and projection as pure functions on (B, C, H, W)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from morel_core.config import Norm


def l2_norm(delta: Tensor) -> Tensor:
    """ℓ2 norm of each sample, broadcastable to ``delta``."""
    # Axis by axis: a single fp32 sum over 150,528 pixels loses a digit.
    for axis in range(1, delta.dim()):
        delta = delta.norm(dim=-axis, keepdim=True)
    return delta


def uniform_in_ball(noise: Tensor, eps: float, norm: Norm) -> Tensor:
    """Standard normal ``noise`` mapped to the uniform distribution on the ball.

    Each coordinate's distribution function gives the cube; a direction and the distribution
    function of the squared radius (χ² with d degrees of freedom) give the ℓ2 ball. One kind of
    noise thus serves every start and can be drawn for a global batch and sliced.
    """
    if norm == "linf":
        return eps * torch.erf(noise / math.sqrt(2.0))
    d = noise[0].numel()
    length = l2_norm(noise)
    quantile = torch.special.gammainc(torch.full_like(length, d / 2), length.square() / 2)
    return eps * quantile.pow(1 / d) * noise / length


def ascent_step(x_adv: Tensor, grad: Tensor, step_size: float, norm: Norm) -> Tensor:
    """One step of steepest ascent; where an ℓ2 gradient is zero the image stays.

    Each gradient is first divided by its largest entry: the squares of a confident network's would
    underflow, and the image stay.
    """
    if norm == "linf":
        return torch.add(x_adv, grad.sign(), alpha=step_size)
    largest = grad.abs().amax(dim=tuple(range(1, grad.dim())), keepdim=True)
    scaled = torch.where(largest > 0, grad / largest, torch.zeros_like(grad))
    return x_adv + step_size * scaled / l2_norm(scaled).clamp(min=1.0)


def projection(x: Tensor, eps: float, norm: Norm) -> Callable[[Tensor], Tensor]:
    """Maps to the points of ball and box around ``x``; what does not change is computed once.

    ℓ∞: the exact projection. ℓ2: onto the ball, then onto [0, 1], which moves towards ``x``
    coordinate by coordinate and so stays in the ball.
    """
    if norm == "linf":
        low, high = (x - eps).clamp(min=0.0), (x + eps).clamp(max=1.0)
        return lambda x_adv: torch.clamp(x_adv, low, high)

    def onto_ball_and_box(x_adv: Tensor) -> Tensor:
        delta = x_adv - x
        length = l2_norm(delta)
        return (x + delta * (eps / length.clamp(min=eps))).clamp(0.0, 1.0)

    return onto_ball_and_box


def project(x_adv: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """The point of ball and box for ``x_adv``; see `projection`."""
    return projection(x, eps, norm)(x_adv)


def outside(x_adv: Tensor, x: Tensor, eps: float, norm: Norm) -> float:
    """How far the worst image lies outside its ball or [0, 1]; 0 if none does, up to rounding."""
    delta = x_adv - x
    size = delta.abs().amax() if norm == "linf" else l2_norm(delta).amax()
    box = torch.stack([-x_adv.amin(), x_adv.amax() - 1])
    excess = torch.stack([size - eps, box.amax()]).amax().item()
    unit = torch.finfo(x.dtype).eps
    rounding = 4 * unit * max(1.0, eps)
    if norm == "l2":  # every pixel of x + δ may have been rounded outwards
        rounding += unit / 2 * math.sqrt(x[0].numel())
    return excess if excess > rounding or math.isnan(excess) else 0.0
