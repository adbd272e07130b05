"""What runs inside Ray's workers: `morel_core.Trainer`, and reports of plain numbers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from ray import train, tune
from ray.train.torch import TorchConfig
from ray.tune.result import SHOULD_CHECKPOINT

from morel_core import MorelError, Trainer
from morel_core.data import Dataset
from morel_core.distributed import world_size
from morel_core.micro_batches import has_batchnorm
from orchestrator.config import RunConfig, with_overrides
from orchestrator.driver.control import is_paused
from orchestrator.driver.lease import Fence
from orchestrator.messages.failures import FAILED, failure_reason, repeats
from orchestrator.search.goal import TRAIN_SECONDS
from orchestrator.search.seals import check_checkpoint
from orchestrator.search.trial import IMPOSSIBLE, TRAINED, TWIN
from orchestrator.search.twins import Twin, Twins, take_over, whole
from orchestrator.settings.building import build
from orchestrator.training.recovery import DAMAGED, checkpoint_to_start_from, draining, newest_whole
from orchestrator.training.retries import CHANGES
from orchestrator.training.staging import Staged, same_images

# Schedulers and searchers need a number from every trial: a diverged one reports the worst.
WORST = {"robust_accuracy": 0.0, "clean_accuracy": 0.0}
# Ray Train keeps the checkpoints of highest score; one that nobody has measured yet has the lowest.
SCORE = "validation_score"
UNVALIDATED = {SCORE: -1.0}


def set_threads(cpus: float) -> None:
    """Use as many threads as CPUs were given; more would fight with other trials."""
    torch.set_num_threads(max(1, int(cpus)))


def reports(trainer: Trainer, again: Sequence[dict[str, float]] = ()) -> Iterator[dict[str, Any]]:
    """The remaining run as reports: the newest metrics, and all ``epochs`` since the last report.

    The epochs ``again``, which are trained but which nobody knows of, are reported first.

    A report comes after each measured epoch, so that every report carries the accuracies; a run
    that diverges ends with the worst ones and ``diverged = 1``. With ``evaluation.asynchronous``
    there are none yet.
    """
    since: list[dict[str, float]] = []
    later = trainer.config.evaluation.asynchronous
    for place, metrics in enumerate(chain(again, trainer.epochs())):
        since.append(metrics)
        ended = trainer.done and place >= len(again) - 1
        if "robust_accuracy" in metrics or ended or (later and trainer.is_measured):
            spent = train_seconds(trainer.history, int(metrics["epoch"]))
            numbers = {**metrics, TRAIN_SECONDS: spent, "epochs": since}
            yield {**(UNVALIDATED if later else WORST), **numbers}
            since = []


def train_seconds(history: Sequence[Mapping[str, float]], last: int) -> float:
    """What epochs up to ``last`` took, with their measurements, whoever trained them and when."""
    keys = ("seconds", "seconds_evaluation")
    return sum(m.get(key, 0.0) for m in history if m["epoch"] <= last for key in keys)


def up_to(last: int | None, reports: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The reports up to that of epoch ``last``; None: all."""
    for report in reports:
        yield report
        if report["epoch"] == last:
            return


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


def circumstances(trainer: Trainer, twin: Twin | None = None, damaged: str = "") -> dict[str, Any]:
    """What a report says beside the numbers: where and how they were made, and by whom."""
    slices = trainer.config.training.micro_batches
    return {
        "device": device_name(trainer.device),
        **elastic(trainer),
        "batchnorm_slices": slices if slices > 1 and has_batchnorm(trainer.net) else 0,
        **({DAMAGED: damaged} if damaged else {}),
        **({TWIN: twin.run_id, TRAINED: trainer.epoch} if twin is not None else {}),
    }


def elastic(trainer: Trainer) -> dict[str, Any]:
    """Of an elastic run: ``workers``, how many trained it and when, and if that shows in BatchNorm.

    ``batchnorm_workers`` is ``workers`` where there were several numbers and the net has BatchNorm.
    """
    counts = [(int(m["epoch"]), int(m["workers"])) for m in trainer.history if "workers" in m]
    changes = [
        f"{count} from epoch {epoch} on"
        for place, (epoch, count) in enumerate(counts)
        if place == 0 or count != counts[place - 1][1]
    ]
    if not changes:
        return {}
    workers = ", ".join(changes)
    shows = len(changes) > 1 and has_batchnorm(trainer.net)
    return {"workers_by_epoch": workers, **({"batchnorm_workers": workers} if shows else {})}


def failed(error: Exception) -> dict[str, Any]:
    """The last report of a trial that another attempt would not help: why, and the worst numbers.

    Raised as an error, Tune would run it once more.
    """
    return {**WORST, "epoch": 0, "epochs": [], FAILED: failure_reason(error)}


def run_of(base: RunConfig, config: Mapping[str, Any]) -> RunConfig:
    """The run of a trial: ``base`` with what Tune's config overrides, and what retries changed.

    Raises `MorelError` where there is no such run.
    """
    if IMPOSSIBLE in config:
        raise MorelError(config[IMPOSSIBLE])
    return with_overrides(base, {**config["overrides"], **config.get(CHANGES, {})})


def device_name(device: Any) -> str:
    """``cpu`` or the GPU's name."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class MorelTrial(tune.Trainable):
    """A one-worker trial inside a Tune actor, which is reused from trial to trial."""

    def setup(
        self,
        config: dict[str, Any],
        base: dict[str, Any] | None = None,
        milestones: list[int] | None = None,
        staged: Staged | None = None,
        twins: Twins | None = None,
        fence: Fence | None = None,
    ) -> None:
        """Build the trainer of this trial: the search's base config with the trial's overrides."""
        if base is not None:
            self.base = config_from(base)
            self.milestones = milestones or []
            self.staged, self.twins, self.fence = staged, twins, fence
            self.data: Dataset | None = None
        self.failure: MorelError | None = None
        self.changed = bool(config.get(CHANGES))
        try:
            self._begin(run_of(self.base, config))
        except MorelError as error:
            self.failure = error

    def _begin(self, run: RunConfig) -> None:
        set_threads(run.scaling.cpus_per_worker)
        device = "cuda" if run.scaling.gpus_per_worker > 0 else "cpu"
        if self.data is None or not same_images(run.data, self.run_config.data):
            self.data = self.staged.take(run.data, device) if self.staged is not None else None
        self.run_config = run
        self.trainer = Trainer(run, data=self.data, device=device)
        if self.staged is not None:
            self.staged.check(run.data, self.trainer.data)
        self.known_epoch: int | None = None
        self.data = self.trainer.data
        self.damaged = ""
        self.twin = whole(self.twins.find(run)) if self.twins is not None else None
        self.reports = reports(self.trainer, take_over(self.trainer, self.twin))
        self.saved = time.monotonic()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial into this process, with the data already loaded."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next measured epoch."""
        try:
            if self.failure is not None:
                raise self.failure
            report = next(self.reports)
        except Exception as error:
            again = not repeats(failure_reason(error), changed=self.changed)
            if again and not isinstance(error, MorelError):
                raise
            return {**failed(error), "done": True}
        done = self.trainer.done and report["epoch"] == self.trainer.epoch
        due = time.monotonic() - self.saved >= self.run_config.checkpoint.every_seconds
        due |= report["epoch"] in self.milestones or done or draining()
        due &= report["epoch"] == self.trainer.epoch  # else it is told again, and trained further
        return {
            **report,
            **circumstances(self.trainer, self.twin, self.damaged),
            "done": done,
            SHOULD_CHECKPOINT: due,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trainer's own checkpoint into Tune's folder."""
        if self.failure is not None:  # Tune saves at the end of every trial
            return
        if self.fence is not None:
            self.fence.check()
        self.trainer.save(checkpoint_dir)
        self.saved = time.monotonic()

    def restore(self, checkpoint_path: Any) -> None:
        """Go on from the checkpoint that Tune names, or from the newest whole one beside it.

        What that one has seen more is reported anew; what it has seen less is trained again.

        Args:
            checkpoint_path: Tune's result of a save: a checkpoint, and the report it followed.
        """
        saved = checkpoint_path
        self.known_epoch = saved.metrics.get("epoch")
        start, self.damaged = newest_whole(saved.checkpoint)
        if start is None:
            return
        try:
            check_checkpoint(start)
        except MorelError as error:
            self.failure = error
            return
        super().restore(type(saved)(start, saved.metrics))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from a checkpoint of this or of a donor trial."""
        if self.failure is not None:
            return
        try:
            self.trainer.load(checkpoint)
        except MorelError as error:
            self.failure = error
            return
        known = self.trainer.epoch if self.known_epoch is None else self.known_epoch
        again = [metrics for metrics in self.trainer.history if metrics["epoch"] > known]
        if not again:  # else it may have been saved while its twin's epochs were told again
            self.twin = None
        if self.trainer.done and not again:  # Tune was not told of the end: it hears it again
            again = self.trainer.history[-1:]
        self.reports = reports(self.trainer, again)


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
