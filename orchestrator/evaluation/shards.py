"""An evaluation in shards: what one measures, and where its outcome is kept.

A shard is one attack on one chunk of images. Its outcome depends on nothing else, so that any
number of processes may share the shards, a lost one is measured again alone, and an evaluation
that was killed goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from morel_core.attacks import Attack, Transfer
from morel_core.config import DataConfig
from morel_core.data import Dataset, Pool
from morel_core.evaluation import CLEAN, ChunkOutcome, model_hash, package_versions
from orchestrator import storage

FORMAT = 1  # of a shard's file
NONE: dict[str, Any] = {"attack": "none"}
Split = Literal["test", "holdout"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything that a process needs to measure any shard of an evaluation."""

    net: nn.Module
    attacks: dict[str, Attack]
    data: DataConfig
    split: Split
    images: str
    """Digest of the split's images, labels and order: every process must see the same."""
    num_images: int
    """The first so many of the split."""
    chunk_size: int
    seed: int
    device: str
    model: str
    """Hash of the network."""

    @property
    def num_chunks(self) -> int:
        """Chunks; the last one may be short."""
        return -(-self.num_images // self.chunk_size)

    def indices(self, chunk: int) -> Tensor:
        """(b,) int64: the images of a chunk, counted in the split."""
        start = chunk * self.chunk_size
        return torch.arange(start, min(start + self.chunk_size, self.num_images))


@dataclass(frozen=True)
class Shard:
    """One attack, or ``clean``, on one chunk."""

    attack: str
    chunk: int


def split_of(data: Dataset, split: Split) -> Pool:
    """The images of ``split``."""
    return data.test if split == "test" else data.holdout


class ShardStore:
    """Finished shards of an evaluation as small JSON files; safe against a kill at any moment.

    A file is found again by what it measured: network, attack with all parameters, images, seed and
    kind of device.

    Args:
        folder: local path or URI.
        work: the evaluation.
    """

    def __init__(self, folder: str, work: Work) -> None:
        self.folder = folder
        self.work = work
        self.attacks = {name: identity(attack) for name, attack in work.attacks.items()}

    def load(self, shard: Shard) -> ChunkOutcome | None:
        """The outcome of a shard, or None if it is still to be measured."""
        text = storage.read_text(self.path(shard))
        if text is None:
            return None
        try:
            content = json.loads(text)
            correct = _from_bits(content["correct"])
            if content["key"] != self.key(shard) or len(correct) != len(
                self.work.indices(shard.chunk)
            ):
                return None
            stages = {name: _from_bits(bits) for name, bits in content["stages"].items()}
            return ChunkOutcome(correct=correct, seconds=content["seconds"], stages=stages)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # not ours, or damaged: measured again and overwritten

    def save(self, shard: Shard, outcome: ChunkOutcome) -> None:
        """Make the outcome durable."""
        content = {
            "key": self.key(shard),
            "attack": shard.attack,
            "chunk": shard.chunk,
            "correct": to_bits(outcome.correct),
            "stages": {name: to_bits(stage) for name, stage in outcome.stages.items()},
            "seconds": outcome.seconds,
        }
        storage.write(self.path(shard), json.dumps(content).encode())

    def identity(self) -> str:
        """Hash of all that decides the outcomes of all shards."""
        names = (CLEAN, *self.work.attacks)
        chunks = range(self.work.num_chunks)
        return fingerprint([self.key(Shard(name, chunk)) for name in names for chunk in chunks])

    def path(self, shard: Shard) -> str:
        """Where the outcome of a shard lies."""
        key = self.key(shard)[:16]
        return f"{self.folder}/shards/{file_name(shard.attack)}-{shard.chunk:05d}-{key}.json"

    def key(self, shard: Shard) -> str:
        """Hash of all that decides a shard's outcome."""
        work = self.work
        attack = NONE if shard.attack == CLEAN else self.attacks[shard.attack]
        return fingerprint(
            {
                "format": FORMAT,
                "model": work.model,
                "attack": attack,
                "images": work.images,
                "split": work.split,
                "indices": work.indices(shard.chunk).tolist(),
                "chunk": shard.chunk,
                "seed": work.seed,
                "device": work.device.partition(":")[0],
                "versions": package_versions([attack]),
            }
        )


def identity(attack: Attack) -> dict[str, Any]:
    """What tells an attack from others: its parameters and, if it has one, its source network."""
    source = {"source_hash": model_hash(attack.source)} if isinstance(attack, Transfer) else {}
    return {**attack.describe(), **source}


def file_name(text: str) -> str:
    """``text`` without what a file's or a metric's name must not hold."""
    return re.sub(r"[^\w.-]", "_", text)


def fingerprint(content: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def to_bits(flags: Tensor) -> str:
    """(N,) bool as a string of 0 and 1."""
    return "".join("1" if flag else "0" for flag in flags.tolist())


def _from_bits(bits: str) -> Tensor:
    if set(bits) - {"0", "1"}:
        raise ValueError(f"{bits!r}: not a string of 0 and 1")
    return torch.tensor([bit == "1" for bit in bits], dtype=torch.bool)
