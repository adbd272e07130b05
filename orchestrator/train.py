"""One distributed training run: Ray Train around `morel_core.Trainer`, recorded in MLflow."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from morel_core.data import load_data
from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.cluster import (
    address_passed_on,
    check_scaling,
    cluster_address,
    local_resources,
    ray_session,
    watched_for_hanging,
)
from orchestrator.config import NOT_SCIENTIFIC, RunConfig, to_dict, with_overrides
from orchestrator.driver import control
from orchestrator.driver.ending import Paused, interruptible
from orchestrator.driver.lease import Fence, held
from orchestrator.messages.failures import failure_reason, out_of_memory, repeats, storage_failed
from orchestrator.notes import train_note
from orchestrator.provenance.identity import check_identity, noted_data
from orchestrator.settings.fits import check_fits
from orchestrator.tracking import Recorder, records
from orchestrator.training.keys import TRAIN_SECONDS
from orchestrator.training.recovery import drop_torn_snapshot
from orchestrator.training.result import TrainResult
from orchestrator.training.retries import in_more_slices, retry_tags
from orchestrator.training.staging import stage

OnEpoch = Callable[[Mapping[str, Any]], None]
# A resumed run may go on elsewhere, with more workers, and for longer.
MAY_CHANGE = {*NOT_SCIENTIFIC, "training.epochs", "data.root", "data.download"}


class Pause:
    """What `morel stop` asks of a run: it ends when its workers have saved once more.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.asked: float | None = None

    def look(self, saved: float) -> None:
        """Raise `Paused` if that was asked for, and the workers have saved since.

        Args:
            saved: unix seconds at which their newest checkpoint was heard of.
        """
        if self.asked is None:
            if control.is_paused(self.folder):
                self.asked = time.time()
        elif saved > self.asked or time.time() - self.asked > control.GRACE_S:
            control.forget_pause(self.folder)
            name = self.folder.rpartition("/")[2]
            raise Paused(f"paused by morel stop; the same command (with name={name}) goes on")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the workers left: before the test set is read."""

    checkpoint: str
    """Location of the last one; of the best one where each was measured by itself."""
    last: dict[str, Any]
    """The newest report."""
    not_measured: str
    """See `TrainResult`."""
    retries: tuple[str, ...] = ()
    """Why the workers began anew from their last checkpoint, of each time."""


class WorkersLost(MorelError):
    """The workers ended after ``epoch``, the last one that was reported; others may go on."""

    def __init__(self, message: str, *, epoch: int) -> None:
        super().__init__(message)
        self.epoch = epoch


class OutOfMemory(WorkersLost):
    """A worker ran out of memory."""


def train(
    config: RunConfig,
    *,
    on_epoch: OnEpoch | None = None,
    on_start: Callable[[str], None] | None = None,
    force_code: bool = False,
    tags: Mapping[str, str] = MappingProxyType({}),
) -> TrainResult:
    """Train ``config`` on its workers; the same name goes on where it stopped.

    Args:
        config: what to train and where.
        on_epoch: sees each epoch's metrics as they arrive.
        on_start: told the run's name when all is checked and Ray is about to start.
        force_code: resume a run that other code began.
        tags: recorded beside the run's own.

    Raises:
        MorelError: data, storage, cluster or MLflow are not as asked; or training failed.
    """
    if config.name is None:
        config = dataclasses.replace(config, name=records.train_name(config))
    storage.check_writable(config.storage_path)
    if cluster_address(config) is None:
        _check_resources(config, *local_resources())
    with held(f"{config.storage_path}/{config.name}", config.cluster.lease_s) as fence:
        control.forget_pause(fence.folder)  # asked of an earlier driver
        return _train(config, fence, on_epoch, on_start, force_code, tags)


def _train(
    config: RunConfig,
    fence: Fence,
    on_epoch: OnEpoch | None,
    on_start: Callable[[str], None] | None,
    force_code: bool,
    tags: Mapping[str, str],
) -> TrainResult:
    """`train`, under the run's lease."""
    data = load_data(config.data)
    check_fits(config, data)
    identity = partial(
        check_identity,
        f"{config.storage_path}/{config.name}",
        {**to_dict(config), **noted_data(data)},
        may_change=MAY_CHANGE,
        force_code=force_code,
    )
    identity(begins=False)
    recorder = records.open_recorder(config)
    run_id = str(config.name)
    if on_start is not None:
        on_start(run_id)
    try:
        with (
            ray_session(config, dashboard=False) as there,
            records.ended_record(recorder, run_id, code_changes=identity()),
        ):
            recorder.start_run(
                run_id,
                name=run_id,
                params=records.params(config),
                config=to_dict(config),
                tags={**records.run_tags(config, "train"), **tags},
                dataset=records.dataset_record(config, data),
            )
            _check_resources(config, *there)
            staged = stage(config.data, data)
            del data  # from here on it lies in Ray's object store
            given = {"staged": staged, "fence": fence}
            result = _fit(config, given, recorder, run_id, on_epoch)
            recorder.flush(records.DELIVERY_S)
    finally:
        pending = recorder.close()
    return dataclasses.replace(result, recorded=pending == 0)


def _check_resources(config: RunConfig, cpus: float, gpus: float) -> None:
    """Raise `ConfigError` unless the workers fit, and what measures beside them."""
    check_scaling(config.scaling, cpus, gpus)
    if config.evaluation.asynchronous:
        check_scaling(config.scaling, cpus, gpus, beside="evaluation.asynchronous")


def _fit(
    config: RunConfig,
    given: Mapping[str, Any],
    recorder: Recorder,
    run_id: str,
    on_epoch: OnEpoch | None,
) -> TrainResult:
    """Run the workers to their end, measure the best network on the test set, record both.

    Args:
        config: of the run.
        given: ``staged`` and ``fence`` of the workers' `orchestrator.training.worker.train_loop`.
        recorder: of the run.
        run_id: its id.
        on_epoch: see `train`.
    """
    import ray
    from ray.train import Checkpoint

    from orchestrator.training import measuring

    own = config
    config, trained = _run_to_the_end(config, given, recorder, run_id, on_epoch)
    last = trained.last
    metrics = records.best_metrics(last, records.measured_with(config, last, "best_"))
    metrics |= {
        "train.seconds": float(last.get(TRAIN_SECONDS, 0.0)),
        "train.images_per_second": float(last.get("images_per_second", 0.0)),
    }
    exported: records.Exported | None = None
    if "best_epoch" in last:
        asked = config.scaling
        task = ray.remote(num_cpus=asked.cpus_per_worker, num_gpus=asked.gpus_per_worker)(
            measuring.measure_final
        )
        final = ray.get(task.remote(to_dict(config), Checkpoint(trained.checkpoint)))
        exported = records.store_export(f"{config.storage_path}/{config.name}", final)
        metrics |= exported.metrics
    diverged = bool(last.get("diverged"))
    reason, device = records.own_end(last), str(last.get("device", "unknown"))
    recorder.finish(
        run_id,
        status="FAILED" if diverged else "FINISHED",
        stop_reason=reason,
        metrics=metrics,
        tags={
            "morel.state": "diverged" if diverged else "finished",
            "morel.diverged": str(diverged).lower(),
            "morel.device": device,
            "morel.checkpoint": trained.checkpoint,
            **({"morel.not_measured": trained.not_measured} if trained.not_measured else {}),
            **retry_tags(trained.retries, own, last),
        },
        texts={"evaluation/test.json": exported.evaluation} if exported else {},
        note=train_note(config, metrics, stop_reason=reason, device=device),
        model=exported.model if exported else None,
    )
    return TrainResult(
        config=config,
        epochs=int(last.get("epoch", 0)),
        seconds=metrics["train.seconds"],
        stop_reason=reason,
        metrics=metrics,
        checkpoint=trained.checkpoint,
        diverged=diverged,
        not_measured=trained.not_measured,
        recorded=True,
    )


def _run_to_the_end(
    config: RunConfig,
    given: Mapping[str, Any],
    recorder: Recorder,
    run_id: str,
    on_epoch: OnEpoch | None,
) -> tuple[RunConfig, Trained]:
    """The workers' run, begun anew from its last checkpoint where they were lost; and its config.

    Out of memory, it goes on once, in twice the micro-batches. Otherwise ``scaling.max_failures``
    counts losses since the last epoch that was reported.
    """
    own, failures, reached = config, 0, 0
    pause = Pause(f"{config.storage_path}/{config.name}")
    retries: list[str] = []
    while True:
        try:
            trained = _run_workers(config, given, recorder, run_id, on_epoch, pause)
            return config, dataclasses.replace(trained, retries=tuple(retries))
        except OutOfMemory as error:
            if config is not own:
                raise
            changes, how = in_more_slices(config)
            if not changes:
                raise MorelError(f"{error}; it cannot go on in micro-batches: {how}") from error
            config = with_overrides(config, changes)
            retries.append(f"out of memory after epoch {error.epoch}; goes on {how}")
        except WorkersLost as error:
            failures = 1 if error.epoch > reached else failures + 1
            reached = max(reached, error.epoch)
            if failures > config.scaling.max_failures:
                raise
            retries.append(f"{error} (after epoch {reached}); goes on from its last checkpoint")
        if on_epoch is not None:
            on_epoch({"retry": retries[-1]})


def _run_workers(
    config: RunConfig,
    given: Mapping[str, Any],
    recorder: Recorder,
    run_id: str,
    on_epoch: OnEpoch | None,
    pause: Pause,
) -> Trained:
    """Ray Train from the last checkpoint, if there is one, to the end."""
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    from orchestrator.training import asynchronous, worker
    from orchestrator.training.relay import Introduction, Listener, Relay
    from orchestrator.training.reports import SCORE

    listener = Listener(config, recorder, run_id, on_epoch)
    callbacks: list[Any] = [Introduction(listener.queue), Relay(listener.queue)]
    beside = config.evaluation.asynchronous
    drop_torn_snapshot(f"{config.storage_path}/{config.name}")
    trainer = TorchTrainer(
        worker.train_loop,
        torch_config=worker.torch_config(config),
        train_loop_config={"config": to_dict(config), "milestones": [], **given},
        scaling_config=worker.scaling_config(config),
        run_config=ray_train.RunConfig(
            name=config.name,
            storage_path=config.storage_path,
            callbacks=callbacks,
            checkpoint_config=ray_train.CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute=SCORE if beside else None
            ),
            # Nodes that were preempted are replaced without end; see `_run_to_the_end` for others.
            failure_config=ray_train.FailureConfig(controller_failure_limit=3),
        ),
        validation_config=asynchronous.validation_config(config, listener.queue)
        if beside
        else None,
    )
    try:
        with address_passed_on(), watched_for_hanging(config.scaling):
            result = interruptible(
                trainer.fit, lambda: pause.look(listener.saved), listener.end_workers
            )
    except Exception as error:
        reason = failure_reason(error)
        said = f"run {run_id!r} failed: {reason}"
        epoch = int((listener.last or {}).get("epoch", 0))
        if out_of_memory(reason):
            raise OutOfMemory(said, epoch=epoch) from error
        if storage_failed(reason):
            raise MorelError(
                f"{said}; what was saved before is whole: make room in storage_path = "
                f"{config.storage_path!r}, and the same command goes on from there"
            ) from error
        if repeats(reason):
            raise MorelError(said) from error
        raise WorkersLost(said, epoch=epoch) from error
    finally:
        listener.close()
    if listener.error is not None:
        raise MorelError(
            f"run {run_id!r} is trained, but its last epochs are not recorded: {listener.error}; "
            "the same command records them from its checkpoint"
        ) from listener.error
    if result.checkpoint is None:
        raise MorelError(f"run {run_id!r} ended without a checkpoint")
    last, checkpoint = listener.last or dict(result.metrics or {}), result.checkpoint
    best = asynchronous.best_validated(result) if beside else None
    if best is not None:
        checkpoint, metrics = best
        last |= asynchronous.best_metrics(metrics)
    failures = [f"epoch {epoch}: {why}" for epoch, why in sorted(listener.failures.items())]
    return Trained(
        checkpoint=storage.uri(config.storage_path, checkpoint.path),
        last=last,
        not_measured="; ".join(failures),
    )
