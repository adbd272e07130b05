"""What a number was measured on and with: the network's hash, the images' indices, versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn


def model_hash(net: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of parameters and buffers, in hex.

    The same on every device and in every process; how the network computes with them is not in it.
    """
    digest = hashlib.sha256()
    tensors = chain(
        net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False)
    )
    for name, tensor in sorted(tensors, key=lambda entry: entry[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(whole.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def package_versions(attacks: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Versions of torch, and of ``pyautoattack`` where an attack's description names it."""
    versions = {"torch": str(torch.__version__)}
    if any(_names_autoattack(attack) for attack in attacks):
        versions["pyautoattack"] = version("pyautoattack")
    return versions


def _names_autoattack(attack: Mapping[str, Any]) -> bool:
    """Also inside another attack's description, as a transferred one's is."""
    inner = (cast(Mapping[str, Any], v) for v in attack.values() if isinstance(v, Mapping))
    return str(attack.get("attack")).startswith("autoattack") or any(map(_names_autoattack, inner))


def to_ranges(indices: Sequence[int]) -> list[list[int]]:
    """Indices in their order as runs [start, stop): 5, 6, 7, 2 is [[5, 8], [2, 3]]."""
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] += 1
        else:
            ranges.append([index, index + 1])
    return ranges


def from_ranges(ranges: Iterable[Sequence[int]]) -> Tensor:
    """(N,) int64: what `to_ranges` was given."""
    return torch.tensor([i for start, stop in ranges for i in range(start, stop)])
