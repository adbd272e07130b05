"""What runs inside Ray's workers: `morel_core.Trainer`, and reports of plain numbers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
from ray import train
from ray.train.torch import TorchConfig

from morel_core import Trainer
from morel_core.distributed import world_size
from orchestrator.config import RunConfig
from orchestrator.driver.control import is_paused
from orchestrator.driver.lease import Fence
from orchestrator.settings.building import build
from orchestrator.training.recovery import checkpoint_to_start_from
from orchestrator.training.reports import circumstances, reports, up_to
from orchestrator.training.staging import Staged
from orchestrator.training.twins import Twin, take_over


def set_threads(cpus: float) -> None:
    """Use as many threads as CPUs were given; more would fight with other trials."""
    torch.set_num_threads(max(1, int(cpus)))


def config_from(values: Mapping[str, Any]) -> RunConfig:
    """The `RunConfig` that travelled as plain values."""
    return build(RunConfig, values)


def train_loop(loop_config: dict[str, Any]) -> None:
    """One rank of a Ray Train run: train, report after each measured epoch, save now and then.

    Args:
        loop_config: ``config``, the run's plain values; ``milestones``, epochs to save at;
            ``staged``, its data set; ``fence``, of the driver's lease, asked before each save;
            ``twin``, a trial to take over where there is no checkpoint;
            for a stretch of a longer run ``stretch``, a `population_trial.Stretch` of
            `orchestrator.search`.
    """
    config, milestones = config_from(loop_config["config"]), loop_config["milestones"]
    stretch: dict[str, Any] = loop_config.get("stretch", {})
    staged: Staged = loop_config["staged"]
    twin: Twin | None = loop_config.get("twin")
    fence: Fence | None = loop_config.get("fence")
    set_threads(config.scaling.cpus_per_worker)
    from ray.train.torch import get_device

    devices = get_device()
    device = devices[0] if isinstance(devices, list) else devices
    trainer = Trainer(config, data=staged.take(config.data, device), device=device)
    staged.check(config.data, trainer.data)
    start, damaged = checkpoint_to_start_from(stretch)
    again: list[dict[str, float]] = []
    if start is not None:
        with start.as_directory() as folder:
            trainer.load(folder)
    else:
        again = take_over(trainer, twin)
    if stretch:  # what was trained before this process was lost, but not reported
        again = [metrics for metrics in trainer.history if metrics["epoch"] > stretch["after"]]
    elif trainer.done and not again:
        again = trainer.history[-1:]  # a killed driver may not have heard of the end
    # Nor of the epochs before the checkpoint: whoever records them drops what is recorded.
    untold = list(trainer.history) if start is not None and not stretch else []
    is_first = train.get_context().get_world_rank() == 0
    saved = time.monotonic()
    for report in up_to(stretch.get("last"), reports(trainer, again)):
        if config.scaling.elastic:
            for metrics in report["epochs"]:  # the trainer's own: its checkpoints keep it
                metrics.setdefault("workers", float(world_size()))
        report |= circumstances(trainer, twin, damaged)
        due = train.get_preemption_info() is not None  # every rank asks: it waits for all
        due |= trainer.done or report["epoch"] in milestones
        report["epochs"] = [*untold, *report["epochs"]]
        untold = []
        due |= time.monotonic() - saved >= config.checkpoint.every_seconds
        due |= is_first and fence is not None and is_paused(fence.folder)
        due &= report["epoch"] == trainer.epoch  # else it is told again, and trained further
        validated = config.evaluation.asynchronous and trainer.is_measured and not trainer.diverged
        if not (is_first and (due or validated)):
            train.report(report)
            continue
        if fence is not None:
            fence.check()
        with tempfile.TemporaryDirectory(prefix="morel-checkpoint-") as folder:
            trainer.save(folder)
            task = train.ValidationTaskConfig(fn_kwargs={"epoch": report["epoch"]})
            train.report(
                report,
                checkpoint=train.Checkpoint.from_directory(folder),
                validation=task if validated else False,
            )
        saved = time.monotonic()


def torch_config(config: RunConfig) -> TorchConfig:
    """Ray's settings of the process group: it gives up on a rank that keeps the others waiting."""
    return TorchConfig(timeout_s=max(1, int(config.scaling.hang_timeout_s)))


def scaling_config(config: RunConfig) -> train.ScalingConfig:
    """Ray's form of ``config.scaling``."""
    scaling = config.scaling
    resources = {"CPU": float(scaling.cpus_per_worker)}
    if scaling.gpus_per_worker:
        resources["GPU"] = scaling.gpus_per_worker
    asked = scaling.num_workers
    return train.ScalingConfig(
        num_workers=(asked[0], asked[1]) if isinstance(asked, list) else asked,
        # To grow is to begin anew from the last checkpoint: worth as much as one is.
        elastic_resize_monitor_interval_s=max(1.0, config.checkpoint.every_seconds),
        use_gpu=scaling.gpus_per_worker > 0,
        resources_per_worker=resources,
    )
