"""Who measures the shards of an evaluation: this process, or Ray tasks on any number of nodes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from morel_core.attacks import AutoAttack, AutoAttackPart, Transfer, autoattack_checks
from morel_core.config import Norm
from morel_core.data import Pool, load_data
from morel_core.errors import MorelError
from morel_core.evaluation import CLEAN, ChunkOutcome, Finding, as_images, examine, measure_chunk
from orchestrator.cluster import cluster_address, local_resources, ray_session
from orchestrator.config import RunConfig
from orchestrator.evaluation.shards import Shard, Work, split_of
from orchestrator.messages.failures import failure_reason

if TYPE_CHECKING:
    from ray import ObjectRef

RETRIES = 3  # of a shard whose process or node was lost

Job = tuple[Shard, Tensor | None]
"""A shard, and which of its images are right when clean."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an evaluation runs."""

    workers: int = 0
    """Ray tasks at a time; 0 or 1: this process alone, without Ray."""
    gpus_per_worker: float | None = None
    """Default: 1 with ``device`` cuda, else 0."""
    device: str = "cpu"

    @property
    def gpus_each(self) -> float:
        """GPUs of one worker."""
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        return 1.0 if self.device.startswith("cuda") else 0.0

    @property
    def device_there(self) -> str:
        """Where shards are measured."""
        if self.workers <= 1 and self.device != "cpu":
            return self.device
        return "cuda" if self.gpus_each > 0 else "cpu"

    @property
    def device_here(self) -> str:
        """Where this process keeps the images."""
        return self.device_there if self.workers <= 1 else "cpu"

    def check(self, config: RunConfig) -> None:
        """Raise `MorelError` unless the device and the workers can be had."""
        if self.workers < 0:
            raise MorelError(f"--workers {self.workers}: 0 (this process) or more")
        if self.gpus_each < 0:
            raise MorelError(f"--gpus-per-worker {self.gpus_each:g}: 0 or more")
        if self.workers <= 1:
            check_device(self.device_here)
            return
        if self.device not in ("cpu", "cuda"):
            raise MorelError(
                f"--device {self.device}: with --workers cpu or cuda; which GPU, Ray decides"
            )
        if self.device == "cuda" and self.gpus_each == 0:
            raise MorelError(
                "--gpus-per-worker 0: --device cuda needs some: leave it out for 1, or name a part "
                "of one, as in 0.5"
            )
        if cluster_address(config) is None:
            self.check_gpus(local_resources()[1])

    def check_gpus(self, there: float) -> None:
        """Raise `MorelError` if the workers ask for more GPUs than are ``there``."""
        each, workers = self.gpus_each, self.workers
        if workers * each > there:
            raise MorelError(
                f"--gpus-per-worker {each:g}: {workers} workers × {each:g} = {workers * each:g} "
                f"GPUs, but {there:g} are there: ask for fewer, or give a larger cluster with "
                "cluster.address"
            )


def check_device(device: str) -> None:
    """Raise `MorelError` unless this machine has ``device``."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda", *gpus] if gpus else [])]
    if device not in here:
        raise MorelError(f"--device {device}: this machine has {', '.join(here)}")


@contextmanager
def runner(work: Work, source: Pool, place: Place, config: RunConfig) -> Generator[Runner]:
    """Who computes, for the time inside.

    Args:
        work: what is measured.
        source: its images, for this process.
        place: where; raises `MorelError` if it lacks the GPUs.
        config: ``cluster`` and ``scaling.cpus_per_worker`` count.
    """
    if place.workers <= 1:
        yield InProcess(work, source)
        return
    with ray_session(config, dashboard=False) as (cpus, gpus):
        place.check_gpus(gpus)
        each = float(config.scaling.cpus_per_worker)
        if cluster_address(config) is None:  # more workers than a machine has CPUs share them
            each = min(each, cpus / place.workers)
        yield OnRay(work, workers=place.workers, cpus=each, gpus=place.gpus_each)


# --- computing ------------------------------------------------------------------------------------


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
