"""Random numbers that follow from names, not from what ran before.

Every draw has its own generator, seeded by what it is for (``"order"``, an epoch, a step …), so
that a step can be repeated alone, a run resumed, and a batch divided over workers without changing
a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part, its type and the order.

    The same in every process and version of Python (BLAKE2b, not ``hash``).
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = part.encode() if isinstance(part, str) else str(int(part)).encode()
        kind = b"s" if isinstance(part, str) else b"i"
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(kind + len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A fresh generator on ``device``, seeded with `derive_seed` of ``parts``."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def sliced_randn(
    seed: int,
    sizes: Sequence[int],
    rank: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """This rank's rows of the noise N(0, 1) of a global batch.

    Every rank draws the noise of all rows and keeps its own, so that the ranks' results,
    concatenated, are bitwise the draw of one process. Ranks must be of one kind of device: kinds
    differ in their generators.

    Args:
        seed: of the global batch, `Batch.seed` for instance.
        sizes: rows of every rank.
        rank: whose rows to return.
        shape: of one row.

    Returns:
        ``(sizes[rank], *shape)``, a view of the whole draw.
    """
    whole = torch.randn(
        (sum(sizes), *shape), generator=generator(device, seed), dtype=dtype, device=device
    )
    return whole.narrow(0, sum(sizes[:rank]), sizes[rank])
