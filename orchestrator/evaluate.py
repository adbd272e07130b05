"""Robust evaluation of a target: which attacks, on which images, and what came out.

    evaluation = evaluate_model(module, config, ["pgd50", "square"], num_images=1000, workers=4)
    evaluation.result["pgd50_linf_8-255"].accuracy

`orchestrator.evaluation` divides the work into shards and has the runners that do them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from morel_core.attacks import PGD, Attack, AutoAttack, AutoAttackPart, Transfer
from morel_core.attacks.catalogue import Preset, at_radii, make_attacks, preset
from morel_core.config import AttackConfig
from morel_core.data import load_data
from morel_core.errors import ConfigError, MorelError
from morel_core.evaluation import (
    CLEAN,
    ChunkOutcome,
    EvaluationResult,
    Finding,
    Outcome,
    model_hash,
    package_versions,
    suspicious,
)
from morel_core.evaluation.measure import outcome_of
from orchestrator import storage
from orchestrator.config import RunConfig
from orchestrator.driver.lease import held
from orchestrator.evaluation import outcomes
from orchestrator.evaluation.outcomes import Evaluation
from orchestrator.evaluation.runners import Job, Place, Runner, runner
from orchestrator.evaluation.shards import Shard, ShardStore, Split, Work, file_name, split_of
from orchestrator.evaluation.targets import Target, module_target

DEFAULT_ATTACKS = ("pgd20",)
OWN_RADIUS = ("standard", "paper")  # presets that are the same in whatever ball
PROBED_IMAGES = 128


@dataclass(frozen=True, kw_only=True)
class Request(Place):
    """What to measure, on which images, and where."""

    attacks: Sequence[str] | Mapping[str, Attack] = ()
    """Names of the catalogue, or attacks by name. Default: pgd20, or the preset's alone."""
    preset: Preset | None = None
    """A set of attacks: quick, paper or standard."""
    eps: Sequence[float] = ()
    """Radii to sweep; default: that of ``evaluation.attack``. Steps grow in proportion."""
    transfer_from: Target | None = None
    """Also try the images that each PGD among the attacks makes on this one."""
    split: Split = "test"
    num_images: int | None = None
    """The first so many; default: all."""
    seed: int | None = None
    """Default: ``evaluation.seed``."""
    checks: bool = True
    """Look for signs that the numbers deceive."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far an attack has come."""

    attack: str
    done: int
    """Images."""
    total: int
    standing: int
    """Of those done, right under this attack."""
    restored: int
    """Of those done, measured by an earlier command."""
    seconds: float
    """Spent on the others, added up over the workers."""
    seconds_left: float | None
    """Until all are done; None before the first."""


class View(Protocol):
    """Who is told."""

    def say(self, line: str) -> None:
        """What happens once."""
        ...

    def update(self, status: Status) -> None:
        """An attack begins, or a shard of it is done."""
        ...


class Unseen:
    """Nobody is."""

    def say(self, line: str) -> None:
        """See `View`."""

    def update(self, status: Status) -> None:
        """See `View`."""


def evaluate_target(target: Target, request: Request, view: View | None = None) -> Evaluation:
    """Measure a target; its run in MLflow, if it has one, gets the numbers too.

    Finished shards are kept in ``target.folder`` as they come: the same request, repeated after a
    kill, measures only what is missing. On CPUs the number of workers changes no outcome, given as
    many threads to each process.

    Raises:
        MorelError: an unknown attack or device, weights that do not fit, more images than there
            are, or workers, GPUs or a storage that are not there.
    """
    storage.check_writable(target.config.storage_path)
    seconds = target.config.cluster.lease_s
    with held(target.lease, seconds, covers=target.folder):
        return _evaluate(target, request, view or Unseen())


def _evaluate(target: Target, request: Request, view: View) -> Evaluation:
    """`evaluate_target`, under the lease of the folder that keeps its shards."""
    config = target.config
    attacks = choose_attacks(request, config.evaluation.attack)
    request.check(config)
    data = load_data(config.data, request.device_here)
    source = split_of(data, request.split)
    check_images(request, len(source))
    net = target.load(data.shape, data.num_classes)
    if request.transfer_from is not None:
        maker = request.transfer_from.load(data.shape, data.num_classes)
        attacks |= transfers(attacks, maker, request.transfer_from.name)
    work = Work(
        net=net,
        attacks=attacks,
        data=config.data,
        split=request.split,
        images=source.digest().hex(),
        num_images=request.num_images or len(source),
        chunk_size=config.evaluation.batch_size,
        seed=config.evaluation.seed if request.seed is None else request.seed,
        device=request.device_there,
        model=model_hash(net),
    )
    store = ShardStore(target.folder, work)
    view.say(f"{target.name}: {work.num_images} images of {request.split}")
    if request.workers > 1:
        view.say(f"{request.workers} workers; starting Ray")
    with runner(work, source, request, config) as run:
        chunks = measure(work, store, run, view, max(1, request.workers))
        # A part's numbers never stand where those of the whole split do.
        part = "" if work.num_images == len(source) else f"_first{work.num_images}"
        result = collect(work, chunks, request.split + part)
        findings = find_doubts(work, run, result) if request.checks else None
    evaluation = Evaluation(
        target=target,
        result=result,
        findings=findings,
        labels=source.labels[: work.num_images].cpu(),
        identity=store.identity(),
    )
    outcomes.write(evaluation)
    if target.run_id is not None:
        why_not = outcomes.record(evaluation)
        if why_not:
            view.say(f"kept, but not recorded in MLflow: {why_not}")
    return evaluation


def evaluate_model(
    module: nn.Module,
    config: RunConfig,
    attacks: Sequence[str] | Mapping[str, Attack] = DEFAULT_ATTACKS,
    *,
    name: str = "model",
    view: View | None = None,
    **request: Any,
) -> Evaluation:
    """As `evaluate_target`, for a module from code.

    Args:
        module: maps images in [0, 1] to logits. With workers it travels pickled: its class must be
            importable on every node.
        config: its ``data``, ``evaluation`` and ``storage_path`` count.
        attacks: names of the catalogue, or attacks by name. What one's ``describe`` says has to
            tell it from all others: it is how its finished shards are found again.
        name: for the record.
        view: told of the progress.
        request: further fields of `Request`.
    """
    target = module_target(name, module, config)
    return evaluate_target(target, Request(attacks=attacks, **request), view)


# --- what is asked -------------------------------------------------------------------------------


def choose_attacks(request: Request, ball: AttackConfig) -> dict[str, Attack]:
    """The attacks asked for, in each ball asked for; raises `MorelError`."""
    if isinstance(request.attacks, Mapping):
        return dict(request.attacks)  # with whatever seeds they have
    if request.eps and request.preset in OWN_RADIUS:
        raise MorelError(
            f"--eps with --preset {request.preset}, whose radius is its own: name --attacks instead"
        )
    names = request.attacks or (() if request.preset else DEFAULT_ATTACKS)
    chosen: dict[str, Attack] = {}
    try:
        balls = at_radii(ball, request.eps) if request.eps else [ball]
    except ConfigError as error:
        raise MorelError(f"--eps {error.value:g}: {error.allowed}") from None
    for each in balls:
        if request.preset is not None:
            chosen |= preset(request.preset, each)
        chosen |= make_attacks(names, each)
    return {name: seeded(attack, request.seed) for name, attack in chosen.items()}


def seeded(attack: Attack, seed: int | None) -> Attack:
    """``attack`` with ``seed`` if it draws for itself, as AutoAttack's package does."""
    if seed is not None and isinstance(attack, AutoAttack | AutoAttackPart):
        return replace(attack, seed=seed)
    return attack


def transfers(attacks: Mapping[str, Attack], source: nn.Module, name: str) -> dict[str, Attack]:
    """What each PGD of ``attacks`` makes on ``source``, as attacks of their own."""
    made = [
        Transfer(attack=attack, source=source, source_name=file_name(Path(name).name))
        for attack in attacks.values()
        if isinstance(attack, PGD)
    ]
    if not made:
        raise MorelError("--transfer-from: PGD makes the images: add pgd20 to --attacks")
    return {attack.name: attack for attack in made}


def check_images(request: Request, there: int) -> None:
    """Raise `MorelError` if more images are asked for than are ``there``."""
    asked = request.num_images
    if asked is not None and not 1 <= asked <= there:
        raise MorelError(f"--num-images {asked}: 1 to {there} are in {request.split}")


# --- measuring -----------------------------------------------------------------------------------


def measure(
    work: Work, store: ShardStore, run: Runner, view: View, parallel: int
) -> dict[Shard, ChunkOutcome]:
    """Every shard's outcome: from the store where it is, else measured and stored at once."""
    done: dict[Shard, ChunkOutcome] = {}
    # Clean first: only what is right then is attacked.
    for stage in ([CLEAN], list(work.attacks)):
        shards = [Shard(name, chunk) for name in stage for chunk in range(work.num_chunks)]
        stored = {shard: outcome for shard in shards if (outcome := store.load(shard)) is not None}
        done |= stored
        for name in stage:
            view.update(status(work, name, done, stored, parallel))
        missing = [shard for shard in shards if shard not in stored]
        for shard, outcome in run.shards(jobs(missing, done)):
            store.save(shard, outcome)
            done[shard] = outcome
            view.update(status(work, shard.attack, done, stored, parallel))
    return done


def jobs(shards: Sequence[Shard], done: Mapping[Shard, ChunkOutcome]) -> Iterator[Job]:
    """The shards, each with the clean outcome of its chunk unless it is that."""
    for shard in shards:
        if shard.attack == CLEAN:
            yield shard, None
        else:
            yield shard, done[Shard(CLEAN, shard.chunk)].correct


def status(
    work: Work,
    attack: str,
    done: Mapping[Shard, ChunkOutcome],
    stored: Mapping[Shard, ChunkOutcome],
    parallel: int,
) -> Status:
    """How far ``attack`` has come."""
    its = [shard for shard in done if shard.attack == attack]
    fresh = [shard for shard in its if shard not in stored]
    images = sum(len(done[shard].correct) for shard in its)
    measured = sum(len(done[shard].correct) for shard in fresh)
    seconds = sum(done[shard].seconds for shard in fresh)
    left = seconds / measured * (work.num_images - images) / parallel if measured else None
    return Status(
        attack=attack,
        done=images,
        total=work.num_images,
        standing=sum(int(done[shard].correct.sum()) for shard in its),
        restored=images - measured,
        seconds=seconds,
        seconds_left=left,
    )


def collect(work: Work, chunks: Mapping[Shard, ChunkOutcome], split: str) -> EvaluationResult:
    """The shards of each attack put together."""
    found: dict[str, Outcome] = {}
    for name, attack in {CLEAN: None, **work.attacks}.items():
        parts = [chunks[Shard(name, chunk)] for chunk in range(work.num_chunks)]
        found[name] = outcome_of(name, attack, parts, work.seed)
    return EvaluationResult(
        outcomes=found,
        split=split,
        indices=torch.arange(work.num_images),
        model_hash=work.model,
        device=work.device,
        versions=package_versions(outcome.attack for outcome in found.values()),
    )


def find_doubts(work: Work, run: Runner, result: EvaluationResult) -> list[Finding]:
    """What speaks against the numbers: of the network's gradients, and of the outcomes."""
    strongest = max(work.attacks.values(), key=lambda attack: attack.eps)
    return [*run.probe(PROBED_IMAGES, strongest.eps, strongest.norm), *suspicious(result)]
