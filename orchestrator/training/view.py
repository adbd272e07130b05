"""What a person sees of a training run: its epochs, its end, and where to look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from orchestrator.config import RunConfig, tracking_uri
from orchestrator.messages.wording import percent, with_interval
from orchestrator.tracking.records import measured_with, ui_command

if TYPE_CHECKING:
    from orchestrator.training.result import TrainResult


def epoch_line(metrics: Mapping[str, Any]) -> str:
    """One epoch of a training run; of one that was measured beside it, the accuracies alone."""
    if "retry" in metrics:
        return str(metrics["retry"])
    line = f"epoch {int(metrics['epoch'])}"
    if "not_measured" in metrics:
        return f"{line}  not measured: {metrics['not_measured']}"
    if "num_epochs" in metrics:
        line += (
            f"/{int(metrics['num_epochs'])}  "
            f"loss {metrics['loss.total']:.4f}  lr {metrics['lr']:.2g}  "
            f"{metrics['images_per_second']:.0f} images/s"
        )
    if "robust_accuracy" in metrics:
        line += (
            f"  clean {percent(metrics['clean_accuracy'])} %"
            f"  robust {with_interval(metrics, 'robust_accuracy')} %"
        )
    return line + ("  DIVERGED" if metrics.get("diverged") else "")


def train_summary(result: TrainResult) -> dict[str, Any]:
    """A finished run, plain."""
    return {
        "name": result.config.name,
        "experiment": result.config.tracking.experiment,
        "tracking_uri": tracking_uri(result.config),
        "epochs": result.epochs,
        "seconds": result.seconds,
        "stop_reason": result.stop_reason,
        "metrics": result.metrics,
        "checkpoint": result.checkpoint,
        "not_measured": result.not_measured or None,
        "recorded": result.recorded,
    }


def print_train(console: Console, result: TrainResult) -> None:
    """The run's numbers, and where to look."""
    attack = measured_with(result.config, result.metrics, "best.")
    held_out = with_interval(result.metrics, f"best.holdout.robust.{attack}")
    console.print(
        f"{result.config.name}: {result.stop_reason} in {result.seconds:.0f} s", markup=False
    )
    if "best.epoch" in result.metrics:
        epoch = int(result.metrics["best.epoch"])
        console.print(f"best epoch {epoch}: held-out robust {held_out} % ({attack})", markup=False)
        console.print(f"test set: {test_line(result.metrics)}", markup=False)
    if result.not_measured:
        console.print(f"not measured: {result.not_measured}", markup=False, soft_wrap=True)
    console.print(f"checkpoint: {result.checkpoint}", markup=False, soft_wrap=True)
    print_where(console, result.config, result.recorded)


def test_line(metrics: Mapping[str, float]) -> str:
    """The test set's numbers in one line."""
    names = [
        key.removeprefix("test.")
        for key in metrics
        if key.startswith("test.") and f"{key}_low" in metrics
    ]
    parts = [
        f"{name.removeprefix('robust.')} {with_interval(metrics, f'test.{name}')} %"
        for name in names
    ]
    return ", ".join(parts) or "not measured"


def print_where(console: Console, config: RunConfig, recorded: bool) -> None:
    """The command that shows the runs in MLflow."""
    if not recorded:
        console.print(
            f"MLflow at {tracking_uri(config)} lacks some events: they wait in "
            f"{config.storage_path}/{config.name}/journal; morel sync {config.name} "
            f"storage_path={config.storage_path} sends them",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"look at the runs: {ui_command(config)}", markup=False, soft_wrap=True)
