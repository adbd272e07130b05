"""Optimisers, learning-rate schedules and the guarded update."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morel_core.config import OptimizerConfig
from morel_core.errors import MorelError


def make_optimizer(config: OptimizerConfig, net: nn.Module) -> Optimizer:
    """The optimiser over ``net``'s trainable parameters.

    Fused versions: besides their speed, they can leave an update out on the device's own decision.
    With ``no_decay_on_norm_and_bias`` parameters of one dimension (biases, scales and shifts of
    normalisations) form a second group without weight decay.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if config.no_decay_on_norm_and_bias:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    sgd = torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )
    _make_momentum_buffers(sgd)
    return sgd


def _make_momentum_buffers(optimizer: Optimizer) -> None:
    """Zeros where SGD with momentum has no buffer yet.

    Left to itself the first step makes the buffers, and makes them of uninitialised memory if that
    step is refused. From zero the first step is the same.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else []:
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take in the buffers of a saved state; learning rate, decay and momentum stay as they are.

    Raises:
        MorelError: it belongs to other parameters.
    """
    own = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise MorelError(
            f"the optimiser's state is of other trainable parameters: {error}"
        ) from None
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
    _make_momentum_buffers(optimizer)


def learning_rate(config: OptimizerConfig, epochs_done: float, num_epochs: int) -> float:
    """The learning rate after ``epochs_done`` epochs (a fraction inside an epoch).

    piecewise: ``lr · factors[i]`` from ``milestones[i]`` on; cosine: from lr to 0 over the run; a
    linear warm-up over ``warmup_epochs`` multiplies either. one_cycle (Smith 2018): linear from
    ``lr · one_cycle_start`` up to lr at ``one_cycle_peak`` of the run, down again over as long, and
    on to 0 at the end.
    """
    factor = 1.0
    if config.schedule == "piecewise":
        passed = [
            f for m, f in zip(config.milestones, config.factors, strict=True) if epochs_done >= m
        ]
        factor = passed[-1] if passed else 1.0
    elif config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, epochs_done / num_epochs)))
    elif config.schedule == "one_cycle":
        factor = _one_cycle(epochs_done / num_epochs, config.one_cycle_peak, config.one_cycle_start)
    if epochs_done < config.warmup_epochs:
        factor *= epochs_done / config.warmup_epochs
    return config.lr * factor


def _one_cycle(done: float, peak: float, start: float) -> float:
    """Multiple of lr after the fraction ``done`` of the run."""
    if done < 2 * peak:
        return start + (1 - start) * (1 - abs(done - peak) / peak)
    return start * max(0.0, 1 - done) / (1 - 2 * peak) if peak < 0.5 else 0.0


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def update_if_finite(
    optimizer: Optimizer,
    loss: Tensor,
    clip_norm: float | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Clip, then update unless loss or gradient is not finite; decided on the device.

    Args:
        optimizer: fused, with gradients in place.
        loss: scalar.
        clip_norm: largest norm of the whole gradient; None does not clip.
        allowed: boolean scalar on the device; where it is false, nothing is updated either.

    Returns:
        Boolean scalar on the device: whether the update was made.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    finite = torch.isfinite(norm) & torch.isfinite(loss.detach())
    if allowed is not None:
        finite = finite & allowed
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    # Fused optimisers read these two attributes, as they do under a GradScaler.
    optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    return finite
