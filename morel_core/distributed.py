"""What makes the loss of W data-parallel workers equal the loss of one (METHOD, "Exactness").

DDP averages gradients over ranks. A per-sample mean is exact under that average when every rank
weighs its local sum by W / global count.

So is a term that couples samples, L = Σ_r L_r with L_r the share of rank r's anchors among all
rows, if rank r backpropagates W · L_r and the rows are gathered with the adjoint of a gather as its
backward, the sum over ranks. For then the ranks together differentiate Σ_s W · L_s, a function of
every rank's copy θ_r of the parameters: rank r receives ∂(Σ_s W · L_s)/∂θ_r, including what its
rows did to other ranks' anchors, and DDP's average (1/W) Σ_r of these is ∂L/∂θ. Parameters that act
on gathered rows (the keys of the attention) need nothing further: their use on rank s belongs to
θ_s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    """All-gather of unequal row blocks; backward: each rank gets the sum over ranks of its rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        longest = max(sizes)
        padded = local.new_zeros(longest, *local.shape[1:])
        padded[: len(local)] = local
        blocks = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(blocks, padded)
        return torch.cat([block[:size] for block, size in zip(blocks, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        grad = grad_outputs[0].contiguous().clone()
        dist.all_reduce(grad)
        start = sum(ctx.sizes[: rank()])
        return grad[start : start + ctx.sizes[rank()]], None


@dataclass(frozen=True)
class Shard:
    """This rank's part of a global batch.

    Args:
        sizes: rows of the global batch on every rank.
        rank: which of them are here.
    """

    sizes: tuple[int, ...]
    rank: int = 0

    @staticmethod
    def of(local_rows: int, device: torch.device | str = "cpu") -> Shard:
        """The shard of a rank that holds ``local_rows``; asks the other ranks for theirs."""
        if world_size() == 1:
            return Shard((local_rows,))
        rows = torch.tensor([local_rows], device=device)
        everyone = [torch.zeros_like(rows) for _ in range(world_size())]
        dist.all_gather(everyone, rows)
        return Shard(tuple(int(r) for r in everyone), rank())

    @property
    def total(self) -> int:
        """Rows of the global batch."""
        return sum(self.sizes)

    @property
    def first(self) -> int:
        """Place of this rank's first row in the global batch."""
        return sum(self.sizes[: self.rank])

    def mean(self, values: Tensor) -> Tensor:
        """This rank's share of the mean of ``values: (b,)``; averaged over ranks, the mean."""
        return values.sum() * (len(self.sizes) / self.total)

    def group_mean(self, values: Tensor, members: Tensor) -> Tensor:
        """As `mean`, over the samples where ``members: (b,) bool``; an empty group counts 0."""
        count = members.sum().to(values.dtype)
        if len(self.sizes) > 1:
            dist.all_reduce(count)
        total = torch.where(members, values, torch.zeros_like(values)).sum()
        return total * len(self.sizes) / count.clamp(min=1)

    def gather(self, rows: Tensor) -> Tensor:
        """All ranks' ``rows: (b, …)`` in rank order, (B, …); gradients sum over ranks."""
        if len(self.sizes) == 1:
            return rows
        return _GatherRows.apply(rows, self.sizes)  # pyright: ignore[reportReturnType]


def broadcast_buffers(module: nn.Module) -> None:
    """Give every rank the BatchNorm statistics of rank 0, so that all attack the same network."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def average_over_ranks(values: Tensor) -> Tensor:
    """Mean over ranks of a tensor of the same shape on each."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= world_size()
    return values


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum over ranks of a tensor of the same shape on each."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


class _Bound(nn.Module):
    """The objective as the forward pass of a module, which is what DDP can wrap."""

    def __init__(self, net: nn.Module, objective: Callable[..., Any]) -> None:
        super().__init__()
        self.net = net
        self.objective = objective

    def forward(self, x: Tensor | None, x_adv: Tensor, y: Tensor, **kwargs: Any) -> Any:
        return self.objective(self.net, x, x_adv, y, **kwargs)


def data_parallel(net: nn.Module, objective: Callable[..., Any]) -> Callable[..., Any]:
    """``objective`` of the same signature whose gradients DDP averages over ranks.

    One wrapped forward holds all passes of a step, so that the reducer sees a single graph. Without
    a process group the objective comes back as it is.
    """
    if world_size() == 1:
        return objective
    device = next(net.parameters()).device
    wrapped = DistributedDataParallel(
        _Bound(net, copy.copy(objective)),
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,  # done before the attack: see `broadcast_buffers`
        gradient_as_bucket_view=True,
    )

    def call(_net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, **kwargs: Any) -> Any:
        return wrapped(x, x_adv, y, **kwargs)

    return call
