"""Robust evaluation of a finished run or a checkpoint on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from morel_core import EvaluationResult, MorelError, evaluate
from morel_core.attacks import make_attacks
from morel_core.checkpoint import MANIFEST, load_network, load_progress
from morel_core.data import ImageSource, load_data
from morel_core.models import MorelNet, build_net
from orchestrator import records, storage
from orchestrator.compare import RunRecord, load_runs
from orchestrator.config import RunConfig, build, tracking_uri, with_overrides
from orchestrator.tracking.events import Status

Split = Literal["test", "holdout"]


@dataclass(frozen=True)
class Target:
    """A network to evaluate, and the run it belongs to, if it was named by one."""

    config: RunConfig
    folder: Path
    run_id: str | None
    stop_reason: str = ""
    status: Status = "FINISHED"
    """How that run ended: evaluating it again does not change these two."""


def find_target(name: str, tracking: RunConfig, overrides: Mapping[str, Any]) -> Target:
    """A checkpoint folder, or a recorded run by its name or id.

    Args:
        name: path of a folder with a manifest, our run id, or MLflow's run id.
        tracking: whose MLflow is asked for runs.
        overrides: for the run's config, as ``{"evaluation.attack.eps": 0.1}``.

    Raises:
        MorelError: nothing of that name, or it has no checkpoint.
    """
    folder, run = Path(name).expanduser(), None
    if not (folder / MANIFEST).is_file():
        run = find_run(name, tracking)
        location = run.tags.get("morel.checkpoint")
        if not location:
            raise MorelError(f"run {name!r} has no checkpoint: it ended before its first one")
        folder = storage.local_copy(location)
    config = with_overrides(build(RunConfig, load_progress(folder)["config"]), overrides)
    if run is None:
        return Target(config, folder, None)
    ended = run.status in get_args(Status)
    return Target(
        config,
        folder,
        run.run_id,
        run.tags.get("morel.stop_reason", ""),
        cast(Status, run.status) if ended else "FINISHED",
    )


def find_run(name: str, tracking: RunConfig) -> RunRecord:
    """The newest recorded run of that name or id; of a search, its winner."""
    runs = load_runs(tracking_uri(tracking), tracking.tracking.experiment)
    for run in sorted(runs, key=lambda run: -run.started):
        if name in (run.run_id, run.mlflow_id, run.name):
            winner = run.tags.get("morel.winner_run")
            return find_run(winner, tracking) if winner else run
    known = ", ".join(run.run_id for run in runs[:5])
    raise MorelError(
        f"{name!r} is neither a checkpoint folder nor a run of experiment "
        f"{tracking.tracking.experiment!r}; runs there: {known or 'none'}"
    )


def load_best(target: Target, shape: tuple[int, int, int], num_classes: int) -> MorelNet:
    """The best network of the target's checkpoint."""
    net = build_net(target.config.model, num_classes=num_classes, shape=shape, seed=None)
    net.load_state_dict(load_network(target.folder))
    return net.eval()


def evaluate_target(
    target: Target,
    attack_names: Sequence[str],
    *,
    split: Split = "test",
    num_images: int | None = None,
    device: str = "cpu",
    on_attack: Callable[[str], None] | None = None,
) -> EvaluationResult:
    """Measure a target on ``split``; its run in MLflow gets the numbers too.

    Args:
        target: from `find_target`.
        attack_names: see `make_attacks`.
        split: "test" or "holdout".
        num_images: only the first so many.
        device: where.
        on_attack: told each attack's name before all start.

    Raises:
        MorelError: an unknown attack or device, or more images than there are.
    """
    config = target.config
    check_device(device)
    attacks = make_attacks(attack_names, config.evaluation.attack)
    data = load_data(config.data, device)
    source: ImageSource = data.test if split == "test" else data.holdout
    if num_images is not None and not 1 <= num_images <= len(source):
        raise MorelError(f"--num-images {num_images}: 1 to {len(source)} are in {split}")
    indices = torch.arange(num_images or len(source))
    net = load_best(target, data.shape, data.num_classes).to(device)
    if on_attack is not None:
        for name in attacks:
            on_attack(name)
    result = evaluate(
        net,
        source.fetch(indices).to(device),
        source.labels[indices].to(device),
        attacks,
        batch_size=config.evaluation.batch_size,
        seed=config.evaluation.seed,
        # A part's numbers never stand where those of the whole split do.
        split=split if num_images in (None, len(source)) else f"{split}_first{num_images}",
    )
    if target.run_id is not None:
        record_evaluation(target, result)
    return result


def check_device(device: str) -> None:
    """Raise `MorelError` unless this machine has ``device``."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda", *gpus] if gpus else [])]
    if device not in here:
        raise MorelError(f"--device {device}: this machine has {', '.join(here)}")


def record_evaluation(target: Target, result: EvaluationResult) -> None:
    """Add an evaluation's numbers and per-image outcomes to its run."""
    assert target.run_id is not None
    search = target.run_id.partition("/")[0]
    run = with_overrides(target.config, {"name": search})
    recorder = records.open_recorder(run)
    attacks = "-".join(name for name in result if name != "clean") or "clean"
    try:
        recorder.finish(
            target.run_id,
            status=target.status,
            stop_reason=target.stop_reason,
            metrics=records.test_metrics(result.record()),
            texts={f"evaluation/{result.split}-{attacks}.json": result.to_json()},
        )
    finally:
        recorder.close()
