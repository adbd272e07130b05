"""Measuring: one chunk of images under one attack, and the loop over chunks and attacks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from morel_core.attacks import PGD, Attack, attack_mode
from morel_core.attacks.ball import outside
from morel_core.distributed import rank, sum_over_ranks, world_size
from morel_core.errors import MorelError
from morel_core.evaluation.outcome import CLEAN, EvaluationResult, Outcome
from morel_core.evaluation.provenance import model_hash, package_versions
from morel_core.precision import full_precision
from morel_core.seeding import generator


@runtime_checkable
class Ensemble(Protocol):
    """An attack made of attacks, each for the images that those before it left standing."""

    @property
    def members(self) -> Sequence[Attack]:
        """In the order in which they are run."""
        ...


@dataclass(frozen=True, kw_only=True)
class ChunkOutcome:
    """How one attack went on one chunk of b images."""

    correct: Tensor
    """(b,) bool on the CPU: still right."""
    seconds: float
    stages: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Of an attack with members: member → (b,) bool on the CPU, who still stands after it."""


def as_images(x: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]; float images as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


@torch.no_grad()
def correct_predictions(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: whether ``net``, in eval mode, gets them right."""
    return net(x).argmax(1) == y


def measure_chunk(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Attack | None,
    *,
    seed: int,
    chunk: int,
    clean: Tensor | None = None,
) -> ChunkOutcome:
    """One chunk under one attack: the unit in which an evaluation is divided over processes.

    The outcome depends on the arguments alone, not on what was measured before or elsewhere. Only
    images that are right when clean are attacked. Computed in the type of the weights, whatever
    training used: autocast and TF32 are off.

    Args:
        net: maps images in [0, 1] to logits; left in the mode it came in.
        images: (b, C, H, W), uint8 or float in [0, 1].
        labels: (b,) int64.
        attack: None measures clean accuracy.
        seed: of the noise; an image's noise follows from (seed, chunk, restart, row).
        chunk: number of this chunk in the evaluation.
        clean: (b,) bool, which images are right when clean; measured here if None.

    Raises:
        MorelError: the attack left its ball or [0, 1].
    """
    started = time.perf_counter()
    x, stages = as_images(images), dict[str, Tensor]()
    with attack_mode(net), full_precision(x.device):
        if attack is None or clean is None:
            standing = correct_predictions(net, x, labels)
        else:
            standing = clean.to(x.device)
        if isinstance(attack, Ensemble):
            for member in attack.members:
                standing = _survivors(net, x, labels, member, standing, seed, chunk)
                stages[member.name] = standing.cpu()
        elif attack is not None:
            standing = _survivors(net, x, labels, attack, standing, seed, chunk)
    correct = standing.cpu()  # waits for the device
    return ChunkOutcome(correct=correct, seconds=time.perf_counter() - started, stages=stages)


def _survivors(
    net: nn.Module, x: Tensor, y: Tensor, attack: Attack, standing: Tensor, seed: int, chunk: int
) -> Tensor:
    """(b,) bool: which of those ``standing`` are right after ``attack`` too."""
    rows = standing.nonzero()[:, 0]
    if len(rows) == 0:
        return standing
    images, labels = x[rows], y[rows]
    if isinstance(attack, PGD):
        images = evaluation_layout(net, images)
    x_adv = attack(net, images, labels, noise=_noise(attack, x, rows, seed, chunk))
    excess = outside(x_adv, images, attack.eps, attack.norm)
    if excess:
        raise MorelError(
            f"attack {attack.name} left its {attack.norm} ball of {attack.eps:g} or [0, 1] "
            f"by {excess:g}: its numbers would mean nothing"
        )
    after = standing.clone()
    after[rows] = correct_predictions(net, x_adv, labels)
    return after


def evaluation_layout(net: nn.Module, x: Tensor) -> Tensor:
    """``x`` (B, C, H, W) in the memory layout in which PGD measures ``net``.

    On CPUs channels-last, in which convolutions take a fifth less time; as it came where a network
    reshapes by ``view`` what has to be contiguous for that.
    """
    if x.device.type != "cpu" or x.dim() != 4:
        return x
    laid_out = x.contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            net(laid_out[:1])
    except RuntimeError:
        return x
    return laid_out


def _noise(attack: Attack, x: Tensor, rows: Tensor, seed: int, chunk: int) -> Tensor | None:
    """What ``attack`` takes for ``x[rows]``: of noise that is drawn for the whole chunk."""
    noise: list[Tensor] = []
    for restart in range(attack.draws):
        # The first has no number in its seed: its noise is that of an attack without restarts.
        draws = generator(x.device, seed, chunk, *([restart] if restart else []))
        noise.append(torch.randn(x.shape, generator=draws, device=x.device)[rows].to(x.dtype))
    if not noise:
        return None
    return noise[0] if len(noise) == 1 else torch.stack(noise)


def evaluate(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 256,
    seed: int = 0,
    split: str = "test",
    indices: Tensor | None = None,
) -> EvaluationResult:
    """Accuracy on clean images and under each attack: `measure_chunk` over chunks and attacks.

    Images are taken in fixed chunks of ``batch_size``. Under a process group each rank takes every
    W-th chunk and all get the whole result.

    Args:
        net: maps images in [0, 1] to logits; left in the mode it came in.
        x: (N, C, H, W), uint8 or float in [0, 1].
        y: (N,) int64.
        attacks: name → attack.
        batch_size: images in a chunk. It decides which noise an image gets.
        seed: of the noise.
        split: what ``x`` is, for the record.
        indices: (N,) int64, which images of the split; default: its first N.

    Raises:
        MorelError: no images, or an attack left its ball or [0, 1].
    """
    if len(x) == 0 or len(x) != len(y):
        raise MorelError(f"evaluate: {len(x)} images and {len(y)} labels: need as many, at least 1")
    clean = _measure(net, x, y, None, None, batch_size, seed)
    outcomes = {CLEAN: outcome_of(CLEAN, None, [clean], seed)}
    for name, attack in attacks.items():
        chunks = [_measure(net, x, y, attack, clean.correct, batch_size, seed)]
        outcomes[name] = outcome_of(name, attack, chunks, seed)
    return EvaluationResult(
        outcomes=outcomes,
        split=split,
        indices=torch.arange(len(x)) if indices is None else indices.cpu(),
        model_hash=model_hash(net),
        device=str(x.device),
        versions=package_versions(outcome.attack for outcome in outcomes.values()),
    )


def outcome_of(
    name: str, attack: Attack | None, chunks: Sequence[ChunkOutcome], seed: int
) -> Outcome:
    """The outcome of all chunks, given in their order."""
    return Outcome(
        name=name,
        attack={"attack": "none"} if attack is None else attack.describe(),
        norm=None if attack is None else attack.norm,
        eps=0.0 if attack is None else attack.eps,
        white_box=attack is not None and attack.white_box,
        correct=torch.cat([chunk.correct for chunk in chunks]),
        stages={
            stage: torch.cat([chunk.stages[stage] for chunk in chunks])
            for stage in chunks[0].stages
        },
        seed=seed,
        seconds=sum(chunk.seconds for chunk in chunks),
    )


def _measure(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None,
    clean: Tensor | None,
    batch_size: int,
    seed: int,
) -> ChunkOutcome:
    """All images, over all ranks' chunks; the seconds are this rank's."""
    started = time.perf_counter()
    members = attack.members if isinstance(attack, Ensemble) else ()
    names = [member.name for member in members]
    table = torch.zeros(1 + len(names), len(x), dtype=torch.int32)
    for chunk, start in enumerate(range(0, len(x), batch_size)):
        if chunk % world_size() != rank():
            continue
        rows = slice(start, start + batch_size)
        outcome = measure_chunk(
            net,
            x[rows],
            y[rows],
            attack,
            seed=seed,
            chunk=chunk,
            clean=None if clean is None else clean[rows],
        )
        table[:, rows] = torch.stack([outcome.correct, *outcome.stages.values()]).int()
    correct, *stages = sum_over_ranks(table.to(x.device)).bool().cpu()
    return ChunkOutcome(
        correct=correct,
        seconds=time.perf_counter() - started,
        stages=dict(zip(names, stages, strict=True)),
    )
