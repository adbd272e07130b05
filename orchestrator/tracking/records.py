"""From the trainer's numbers to what is recorded: metric names, parameters, tags."""

from __future__ import annotations

import contextlib
import functools
import getpass
import logging
import math
import platform
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.config import RunConfig, flatten, run_key, to_dict, tracking_uri
from orchestrator.driver import ending
from orchestrator.messages.failures import failure_reason
from orchestrator.messages.masking import masked, masked_address
from orchestrator.provenance.revision import revision
from orchestrator.settings.jobs import in_job
from orchestrator.tracking import (
    DatasetPayload,
    Journal,
    LateTracker,
    MlflowTracker,
    ModelPayload,
    Recorder,
)

if TYPE_CHECKING:
    from morel_core.data import Dataset
    from morel_core.ladder import Ladder

_logger = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "ray", "mlflow", "omegaconf", "optuna", "numpy")
SOURCES = {"train": "train", "search": "tune", "trial": "tune", "campaign": "campaign"}
"""Kind of a run → the command that makes it."""
ACCURACIES = ("clean_accuracy", "robust_accuracy")
ENDS = ("", "_low", "_high")
DELIVERY_S = 30.0
"""How long a command waits for MLflow at its end; what is late stays in the journal. The wait comes
before Ray shuts down, which a busy thread can turn into the end of the process."""


def _ladder(config: RunConfig) -> Ladder:
    from morel_core.ladder import Ladder  # needs torch; commands that only look do without

    return Ladder.of(config.evaluation)


def evaluation_label(config: RunConfig) -> str:
    """What the numbers that decide are measured with: the attack of the last rung."""
    return _ladder(config).last.label


def ladder_label(config: RunConfig) -> str:
    """Every rung, as in ``pgd5_linf_0.1_first100, from epoch 4 pgd20_linf_0.1``."""
    first, *later = _ladder(config)
    return ", ".join([first.label, *(f"from epoch {r.epoch} {r.label}" for r in later)])


def measured_with(config: RunConfig, metrics: Mapping[str, Any], prefix: str = "") -> str:
    """The attack behind the accuracies in a trainer's metrics; ``prefix``: "best_" or none."""
    ladder = _ladder(config)
    return ladder.numbered(int(metrics.get(f"{prefix}rung", ladder.last.number))).label


def accuracy_names(prefix: str, attack: str) -> dict[str, str]:
    """Trainer's key → recorded metric, with the attack and its ε in the name.

    The robust one comes first: MLflow shows metrics in the order in which a run has got them, and
    compares runs by the first that they have in common.
    """
    names = {"robust_accuracy": f"{prefix}.robust.{attack}", "clean_accuracy": f"{prefix}.clean"}
    return {key + end: name + end for key, name in names.items() for end in ENDS}


def epoch_metrics(metrics: Mapping[str, float], attack: str) -> dict[str, float]:
    """One epoch's metrics as they are recorded."""
    names = accuracy_names("holdout", attack) | {"num_images": "holdout.images"}
    kept = ("loss.", "gradient_share.", "lr", "seconds", "images_per_second", "guard_", "workers")
    recorded = {name: metrics[key] for key, name in names.items() if key in metrics}
    return recorded | {key: value for key, value in metrics.items() if key.startswith(kept)}


def best_metrics(metrics: Mapping[str, float], attack: str) -> dict[str, float]:
    """The best epoch so far, as it is recorded at the end of a run."""
    names = accuracy_names("best.holdout", attack)
    names |= {"epoch": "best.epoch", "rung": "best.rung", "num_images": "best.holdout.images"}
    return {name: metrics[f"best_{key}"] for key, name in names.items() if f"best_{key}" in metrics}


def accuracies(report: Mapping[str, Any]) -> tuple[float, float]:
    """(clean, robust) accuracy of a report; (0, 0) if the trial diverged."""
    point = (float(report["clean_accuracy"]), float(report["robust_accuracy"]))
    honest = not report.get("diverged") and all(math.isfinite(value) for value in point)
    return point if honest else (0.0, 0.0)


def own_end(report: Mapping[str, Any]) -> str:
    """Why a run came to an end by itself; empty if it had more to train."""
    epoch = int(report.get("epoch", 0))
    if report.get("diverged"):
        step = int(report.get("diverged_step", 0))
        return f"diverged in epoch {epoch}" + (f", at step {step}" if step else "")
    if report.get("catastrophic_overfitting"):
        return f"catastrophic overfitting in epoch {epoch}"
    if report.get("stopped_early"):
        return f"no better since epoch {int(report['best_epoch'])} (training.patience)"
    if epoch >= report.get("num_epochs", float("inf")):
        return f"all {epoch} epochs trained"
    return ""


def test_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """The final numbers on the test set, from an evaluation's record."""
    metrics: dict[str, float] = {}
    for name, outcome in record["outcomes"].items():
        key = f"{record['split']}.{'clean' if name == 'clean' else f'robust.{name}'}"
        metrics |= {key: outcome["accuracy"]}
        metrics |= {f"{key}_low": outcome["low"], f"{key}_high": outcome["high"]}
        metrics[f"{record['split']}.images"] = outcome["num_images"]
    return metrics


def dataset_record(config: RunConfig, data: Dataset) -> DatasetPayload:
    """What MLflow's dataset entry shows."""
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "num_classes": data.num_classes,
        "sizes": {
            "train": len(data.train),
            "holdout": len(data.holdout),
            "test": len(data.test),
        },
        "source": config.data.root or data.name,
    }


@functools.cache
def environment_tags() -> dict[str, str]:
    """Commit and package versions, as they were when this process first asked."""
    tags = {**revision().tags(), "morel.python": platform.python_version()}
    for package in PACKAGES:
        try:
            tags[f"morel.version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return tags


def source_tags(kind: str) -> dict[str, str]:
    """Who ran what of which commit, as MLflow's own columns show it."""
    tags = {
        "mlflow.source.name": f"morel {SOURCES[kind]}",
        "mlflow.source.type": "JOB" if in_job() else "LOCAL",
    }
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container's user has no name
        tags["mlflow.user"] = getpass.getuser()
    commit = environment_tags()["morel.commit"]
    return tags | ({} if commit == "unknown" else {"mlflow.source.git.commit": commit})


def run_tags(config: RunConfig, kind: str) -> dict[str, str]:
    """Tags that every run carries; twins share ``morel.key``."""
    return {
        **source_tags(kind),
        "morel.kind": kind,
        "morel.key": run_key(config),
        "morel.objective": config.objective.accuracy,
        "morel.seed": str(config.seed),
        "morel.attack.evaluation": evaluation_label(config),
        "morel.storage": f"{config.storage_path}/{config.name}",
        **environment_tags(),
    }


def params(config: RunConfig) -> dict[str, Any]:
    """The resolved config, flat."""
    return flatten(to_dict(config))


def new_name(stem: str) -> str:
    """A name for a run that was given none."""
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def train_name(config: RunConfig) -> str:
    """A name for a training run that was given none: ``digits-morel-trades-seed0-…``."""
    method = f"{'morel-' if config.objective.morel else ''}{config.objective.accuracy}"
    return new_name(f"{config.data.name}-{method}-seed{config.seed}")


def open_recorder(config: RunConfig) -> Recorder:
    """The journal of ``config.name`` and its writer to MLflow.

    Raises:
        MorelError: the run begins, and MLflow is out of reach. One that goes on does not wait for
            it: its journal keeps what is to be recorded.
    """
    storage.check_writable(config.storage_path)
    journal = Journal(f"{config.storage_path}/{config.name}/journal")

    def connect() -> MlflowTracker:
        return MlflowTracker.connect(tracking_uri(config), config.tracking.experiment)

    try:
        return Recorder(journal, connect())
    except MorelError as error:
        if next(journal.events(), None) is None:
            raise
        _logger.warning("recording is delayed: %s", masked(str(error)))
        return Recorder(journal, LateTracker(connect))


@contextmanager
def ended_record(recorder: Recorder, run_id: str, *, code_changes: str = "") -> Generator[None]:
    """Inside, an exception that ends the command also ends the run's record, as what it is.

    An interrupted run is KILLED, a failed one FAILED; either goes on when its command is repeated.
    What `check_identity` says of changed code is recorded as soon as the run goes on under it.
    """
    forced = {"morel.code_changes": code_changes} if code_changes else {}
    if forced:
        recorder.finish(
            run_id,
            status="KILLED",
            stop_reason="it goes on under changed code",
            tags=forced,
        )

    def killed(said: str = "") -> None:
        recorder.finish(
            run_id,
            status="KILLED",
            stop_reason=said or "interrupted; the same command resumes it",
            tags={"morel.state": "killed"},
        )

    try:
        with ending.closed_on_signal(killed):
            yield
    except (KeyboardInterrupt, SystemExit) as error:
        killed(str(error) if isinstance(error, KeyboardInterrupt) else "")
        raise
    except Exception as error:
        recorder.finish(
            run_id,
            status="FAILED",
            stop_reason=failure_reason(error),
            tags={"morel.state": "failed"},
        )
        raise


def ui_command(config: RunConfig) -> str:
    """The command that shows the recorded runs in a browser."""
    uri = tracking_uri(config)
    if uri.startswith(("http://", "https://")):
        return f"open {masked_address(uri)}"
    return f"mlflow ui --backend-store-uri '{masked_address(uri)}'"


@dataclass(frozen=True)
class Exported:
    """An exported model in the run's storage, and the evaluation that came with it."""

    metrics: dict[str, float]
    model: ModelPayload
    evaluation: str
    seconds: float = 0.0
    """That the measurement took; 0 in what earlier versions kept."""


def store_export(folder: str, final: Mapping[str, Any]) -> Exported:
    """Put the exported files of `measure_final` into ``folder`` (path or URI)."""
    import torch

    target = f"{folder}/model"
    for name, content in final["files"].items():
        storage.write(f"{target}/{name}", content)
    return Exported(
        metrics=test_metrics(final["record"]),
        model={
            "path": target,
            "name": "model",
            "input_shape": final["shape"],
            "num_classes": final["num_classes"],
            "torch_version": torch.__version__,
        },
        evaluation=final["json"],
        seconds=final["seconds"],
    )
