"""Micro-batches: a step's passes on slices of the batch, its losses on the whole (Gao et al. 2021).

GradCache: each slice is passed without keeping what a backward pass needs; the losses are computed
on the cached features of the whole batch, so that terms that couple samples (attention, contrastive
term, group means) stay exact; where their gradient arrives at the features of a slice, that slice
is passed once more and backpropagated. At any time the activations of one slice are in memory, for
one more forward pass of each batch.

It is one backward pass to autograd, and so one synchronisation to DDP.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.checkpoint import checkpoint


def pass_in_slices(
    encode: Callable[[Tensor], Tensor], encoder: nn.Module, x: Tensor, count: int
) -> Tensor:
    """``encode(x)``, of which no more than one slice's activations are ever kept.

    Without BatchNorm in train mode the features and all gradients are those of one pass. With it
    each slice is normalised by its own statistics, and moves the running ones once.

    Args:
        encode: (b, C, H, W) → (b, D); runs ``encoder``. Called once more for each slice by a
            backward pass.
        encoder: whose buffers the first call for a slice moves, and no other.
        x: (B, C, H, W).
        count: of slices, at most; their sizes differ by at most one.

    Returns:
        (B, D), with gradients.
    """

    slices = x.tensor_split(min(count, len(x)))
    features: list[Any] = [
        checkpoint(_moving_buffers_once(encode, encoder), part, use_reentrant=False)
        for part in slices
    ]
    return torch.cat(features)


def _moving_buffers_once(
    encode: Callable[[Tensor], Tensor], encoder: nn.Module
) -> Callable[[Tensor], Tensor]:
    """``encode``, whose calls after the first leave the encoder's buffers as they are."""
    called = False

    def call(part: Tensor) -> Tensor:
        nonlocal called
        if called:
            with _buffers_kept(encoder):
                return encode(part)
        called = True
        return encode(part)

    return call


def has_batchnorm(net: nn.Module) -> bool:
    """Whether slices of a batch are normalised by other statistics than the whole batch."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


@contextmanager
def _buffers_kept(encoder: nn.Module) -> Generator[None]:
    """Inside, passes move copies of the buffers: writing into them would reach saved tensors."""
    kept = [
        (module, name, buffer)
        for module in encoder.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)
