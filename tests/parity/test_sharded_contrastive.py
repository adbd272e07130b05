"""The contrastive term divided over ranks: the shares against the naive whole, and its memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity_cases import assert_equal_to, bounded, grads, small_net
from torch import Tensor

from benchmarks.measure import peak_bytes
from morel_core import MorelNet, MorelObjective, ObjectiveConfig
from morel_core.distributed import Shard

FEATURES = ("natural", "adversarial", "both")


@dataclass(frozen=True)
class AmongOthers(Shard):
    """A rank whose gather finds the tensor, known beforehand, that its rows are a part of."""

    everyone: tuple[Tensor, ...] = ()

    def gather(self, rows: Tensor) -> Tensor:
        for whole in self.everyone:
            mine = whole[self.first : self.first + len(rows)]
            if mine.shape == rows.shape and torch.allclose(mine, rows):
                return whole
        raise AssertionError("rows that no rank should have to gather")


def contrastive(
    net: MorelNet, z: Tensor, z_adv: Tensor, y: Tensor, features: str, shard: Shard
) -> Tensor:
    objective = MorelObjective(ObjectiveConfig(features=features))
    return objective._contrastive(net, z, z_adv, y, shard)


@pytest.mark.parametrize("features", FEATURES)
@bounded
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    num_classes=st.sampled_from([1, 2, 3, 1000]),
)
def test_the_shares_of_all_ranks_are_the_whole(
    features: str, seed: int, sizes: list[int], num_classes: int
) -> None:
    """One process plays every rank, so that autograd itself sums what the gathers would."""
    total, world = sum(sizes), len(sizes)
    net = small_net(seed=seed % 1000)
    draws = torch.Generator().manual_seed(seed)
    z, z_adv = (
        torch.randn(total, 6, generator=draws, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )
    y = torch.randint(num_classes, (total,), generator=draws)
    attended = [net.attend(rows, y) for rows in (z, z_adv)]
    shares: list[Tensor] = []
    for rank, end in enumerate(accumulate(sizes)):
        mine = slice(end - sizes[rank], end)
        shard = AmongOthers(tuple(sizes), rank, (y, z, z_adv, *attended))
        shares.append(contrastive(net, z[mine], z_adv[mine], y[mine], features, shard))
    ours = torch.stack(shares).sum() / world
    ours.backward()
    actual = {**grads(net), "z": z.grad, "z_adv": z_adv.grad}
    net.zero_grad()
    z.grad = z_adv.grad = None

    sets = {"natural": [z], "adversarial": [z_adv], "both": [z, z_adv]}[features]
    rows = torch.cat([naive.attention(net, chosen, y.tolist()) for chosen in sets])
    twin = naive.contrastive(rows, y.tolist() * len(sets), 0.1)
    twin.backward()
    assert_equal_to(ours, twin)
    for name, gradient in {**grads(net), "z": z.grad, "z_adv": z_adv.grad}.items():
        if gradient is None:
            assert actual[name] is None or not actual[name].any()
        else:
            assert_equal_to(actual[name], gradient)


class Repeated(Shard):
    """A rank whose gather finds the same rows on all others: their size without their number."""

    def gather(self, rows: Tensor) -> Tensor:
        return rows.repeat(len(self.sizes), *[1] * (rows.dim() - 1))


def peak_mib(ranks: int, rows: int, features: str = "natural") -> float:
    """Of the term's forward and backward pass on one of ``ranks`` ranks with ``rows`` rows each."""
    net = small_net(embed_dim=128).float()
    shard = Repeated((rows,) * ranks, rank=ranks // 2)
    draws = torch.Generator().manual_seed(0)
    z, z_adv = (torch.randn(rows, 128, generator=draws).requires_grad_() for _ in range(2))
    y = torch.randint(10, (rows,), generator=draws)

    def call() -> None:
        contrastive(net, z, z_adv, y, features, shard).backward()

    return peak_bytes(call, torch.device("cpu")) / 2**20


def test_memory_at_64_ranks_grows_with_the_ranks_and_not_with_their_square() -> None:
    """One rank's part of 64 × 128 rows needs a few b × B matrices, not one of B × B."""
    ranks, rows = 64, 128
    whole_matrix = (ranks * rows) ** 2 * 4 / 2**20
    at_64, at_32 = peak_mib(ranks, rows), peak_mib(ranks // 2, rows)
    assert at_64 < whole_matrix / 2
    assert at_64 / at_32 == pytest.approx(2, rel=0.15)
    # What the sharding saves, at a size whose whole fits: one process with all of 16 × 128 rows.
    assert peak_mib(1, 16 * rows) > 16 / 2 * peak_mib(16, rows)


def test_one_process_computes_what_it_did() -> None:
    """Bitwise the mean over the rows of one self-attention, as before the anchors were divided."""
    net = small_net(embed_dim=8).float()
    draws = torch.Generator().manual_seed(0)
    z = torch.randn(64, 8, generator=draws)
    y = torch.randint(4, (64,), generator=draws)
    assert net.attention is not None
    assert net.pre_norm is not None
    rows = net.pre_norm(z)
    attended, _ = net.attention(
        rows, rows, rows, attn_mask=y[None] != y[:, None], need_weights=False
    )
    u = torch.nn.functional.normalize(z + attended, dim=1)
    itself = torch.eye(64, dtype=torch.bool)
    log_probs = torch.log_softmax((u @ u.T / 0.1).masked_fill(itself, -math.inf), dim=1)
    positive = (y[:, None] == y[None]) & ~itself
    per_anchor = log_probs.masked_fill(~positive, 0.0).sum(1) / positive.sum(1).clamp(min=1)
    assert torch.equal(contrastive(net, z, z, y, "natural", Shard((64,))), -per_anchor.mean())
