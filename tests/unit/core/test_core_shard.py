"""Without a process group a shard is the whole batch."""

import pytest
import torch
from torch import nn

from morel_core.distributed import (
    Shard,
    average_over_ranks,
    broadcast_buffers,
    data_parallel,
    rank,
    sum_over_ranks,
    world_size,
)


def test_one_process():
    assert (rank(), world_size()) == (0, 1)
    assert Shard.of(7) == Shard((7,), 0)
    assert Shard.of(7).total == 7


def test_mean_is_the_mean():
    values = torch.rand(9, dtype=torch.float64)
    assert Shard.of(9).mean(values).item() == pytest.approx(values.mean().item(), abs=1e-15)


def test_shares_of_the_ranks_average_to_the_global_mean():
    values = torch.rand(7, dtype=torch.float64)
    shares = [Shard((4, 3), r).mean(v) for r, v in enumerate(values.split((4, 3)))]
    assert torch.stack(shares).mean().item() == pytest.approx(values.mean().item(), abs=1e-15)


def test_group_mean_counts_an_empty_group_as_zero():
    values = torch.tensor([1.0, 2.0, float("inf")], requires_grad=True)
    members = torch.tensor([True, True, False])
    mean = Shard.of(3).group_mean(values, members)
    mean.backward()
    assert mean.item() == 1.5
    assert values.grad.tolist() == [0.5, 0.5, 0.0]  # nothing of what is not a member
    assert Shard.of(3).group_mean(values, torch.zeros(3, dtype=torch.bool)).item() == 0.0


def test_collectives_are_the_identity():
    values = torch.rand(3, requires_grad=True)
    assert Shard.of(3).gather(values) is values
    assert average_over_ranks(values) is values
    assert sum_over_ranks(values) is values
    broadcast_buffers(nn.BatchNorm1d(3))


def test_the_objective_is_not_wrapped():
    def objective(net, x):
        return net(x)

    assert data_parallel(nn.Linear(2, 2), objective) is objective
