"""An evaluation in shards: what one measures, where its outcome is kept, and who computes it.

A shard is one attack on one chunk of images. Its outcome depends on nothing else, so that any
number of processes may share the shards, a lost one is measured again alone, and an evaluation
that was killed goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from morel_core.attacks import Attack, AutoAttack, AutoAttackPart, Transfer, autoattack_checks
from morel_core.config import DataConfig, Norm
from morel_core.data import Dataset, Pool, load_data
from morel_core.errors import MorelError
from morel_core.evaluation import (
    CLEAN,
    ChunkOutcome,
    Finding,
    as_images,
    examine,
    measure_chunk,
    model_hash,
    package_versions,
)
from orchestrator import storage
from orchestrator.failures import failure_reason

if TYPE_CHECKING:
    from ray import ObjectRef

FORMAT = 1  # of a shard's file
NONE: dict[str, Any] = {"attack": "none"}
RETRIES = 3  # of a shard whose process or node was lost
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


Job = tuple[Shard, Tensor | None]
"""A shard, and which of its images are right when clean."""


# --- measuring -----------------------------------------------------------------------------------


def split_of(data: Dataset, split: Split) -> Pool:
    """The images of ``split``."""
    return data.test if split == "test" else data.holdout


class Measurer:
    """Network, attacks and images of an evaluation, loaded once in a process."""

    def __init__(self, work: Work, source: Pool | None = None) -> None:
        self.work = work
        self.source = source or split_of(load_data(work.data, work.device), work.split)
        if self.source.digest().hex() != work.images:
            raise MorelError(
                f"data.name = {work.data.name!r}: this node's images are not the driver's: check "
                "data.root (or MOREL_DATA_ROOT) there"
            )
        self.net = work.net.to(work.device)
        for attack in work.attacks.values():
            if isinstance(attack, Transfer):
                attack.source.to(work.device)

    def measure(self, shard: Shard, clean: Tensor | None) -> ChunkOutcome:
        """The outcome of one shard."""
        indices = self.work.indices(shard.chunk)
        return measure_chunk(
            self.net,
            self.source.fetch(indices),
            self.source.labels[indices],
            None if shard.attack == CLEAN else self.work.attacks[shard.attack],
            seed=self.work.seed,
            chunk=shard.chunk,
            clean=clean,
        )

    def probe(self, num_images: int, eps: float, norm: Norm) -> list[Finding]:
        """What the network gives reason to doubt, on the first images: see `examine`.

        With AutoAttack among the attacks, also what its package warns of.
        """
        indices = torch.arange(min(num_images, self.work.num_images))
        x, y = self.source.fetch(indices), self.source.labels[indices]
        seed = self.work.seed
        findings = examine(
            self.net, x, y, eps=eps, norm=norm, seed=seed, batch_size=self.work.chunk_size
        )
        if any(isinstance(a, AutoAttack | AutoAttackPart) for a in self.work.attacks.values()):
            said = autoattack_checks(self.net, as_images(x), y, eps=eps, norm=norm, seed=seed)
            findings += [Finding("autoattack", message, {}) for message in said]
        return findings


class Runner(Protocol):
    """Who computes."""

    def shards(self, jobs: Iterable[Job]) -> Iterator[tuple[Shard, ChunkOutcome]]:
        """Their outcomes, in the order in which they are done."""
        ...

    def probe(self, num_images: int, eps: float, norm: Norm) -> list[Finding]:
        """See `Measurer.probe`."""
        ...


class InProcess:
    """Shard by shard in this process, which has the images ``source`` already."""

    def __init__(self, work: Work, source: Pool) -> None:
        self.measurer = Measurer(work, source)

    def shards(self, jobs: Iterable[Job]) -> Iterator[tuple[Shard, ChunkOutcome]]:
        """See `Runner`."""
        for shard, clean in jobs:
            yield shard, self.measurer.measure(shard, clean)

    def probe(self, num_images: int, eps: float, norm: Norm) -> list[Finding]:
        """See `Runner`."""
        return self.measurer.probe(num_images, eps, norm)


class OnRay:
    """At most ``workers`` shards at a time, each a Ray task with ``cpus`` and ``gpus``.

    A task whose process or node is lost is repeated elsewhere, up to `RETRIES` times. Network and
    attacks travel once to each node, through Ray's object store.
    """

    def __init__(self, work: Work, *, workers: int, cpus: float, gpus: float) -> None:
        import ray

        self.workers = workers
        self.work = ray.put(work)
        self.threads = max(1, int(cpus))
        self.task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(in_worker)

    def shards(self, jobs: Iterable[Job]) -> Iterator[tuple[Shard, ChunkOutcome]]:
        """See `Runner`."""
        import ray

        jobs = iter(jobs)
        running: dict[Any, Shard] = {}
        while True:
            for shard, clean in islice(jobs, self.workers - len(running)):
                running[self._start("measure", shard, clean)] = shard
            if not running:
                return
            (done, *_), _ = ray.wait(list(running))
            shard = running.pop(done)
            yield shard, _result(done, f"chunk {shard.chunk} under {shard.attack}")

    def probe(self, num_images: int, eps: float, norm: Norm) -> list[Finding]:
        """See `Runner`."""
        return _result(self._start("probe", num_images, eps, norm), "the examination of the model")

    def _start(self, method: str, *arguments: Any) -> Any:
        # Inside a list the reference is handed over as it is, not what it refers to.
        return self.task.remote([self.work], self.threads, method, *arguments)


def in_worker(work: list[ObjectRef[Work]], threads: int, method: str, *arguments: Any) -> Any:
    """A method of `Measurer` in a Ray worker's process, which keeps it for the next task."""
    torch.set_num_threads(threads)
    return getattr(_measurer(work[0]), method)(*arguments)


@lru_cache(maxsize=1)
def _measurer(work: ObjectRef[Work]) -> Measurer:
    import ray

    return Measurer(ray.get(work))


def _result(reference: Any, what: str) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, MorelError):
            raise error.cause from None
        raise
    except RayError as error:
        raise MorelError(
            f"{what} was lost {RETRIES + 1} times ({failure_reason(error)}): the same command goes "
            "on with what is missing"
        ) from error


# --- keeping -------------------------------------------------------------------------------------


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
    """``text`` with what a file's name should not hold replaced."""
    return re.sub(r"[^\w.+-]", "_", text)


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
