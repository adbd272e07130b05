"""One distributed training run: Ray Train around `morel_core.Trainer`, recorded in MLflow."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from morel_core.data import load_data
from morel_core.errors import MorelError
from orchestrator import records, storage
from orchestrator.cluster import (
    check_scaling,
    cluster_address,
    local_resources,
    ray_session,
)
from orchestrator.config import NOT_SCIENTIFIC, RunConfig, to_dict
from orchestrator.failures import failure_reason
from orchestrator.identity import check_identity
from orchestrator.tracking import Recorder
from orchestrator.validate import check_fits

OnEpoch = Callable[[Mapping[str, Any]], None]
END = "end"
# A resumed run may go on elsewhere, with more workers, and for longer.
MAY_CHANGE = {*NOT_SCIENTIFIC, "training.epochs", "data.root", "data.download"}


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    config: RunConfig
    epochs: int
    seconds: float
    stop_reason: str
    metrics: dict[str, float]
    """As recorded in MLflow: best epoch on the held-out split, and the test set."""
    checkpoint: str
    diverged: bool
    recorded: bool
    """False if MLflow lacks something that waits in the journal."""


def train(
    config: RunConfig,
    *,
    on_epoch: OnEpoch | None = None,
    on_start: Callable[[], None] | None = None,
) -> TrainResult:
    """Train ``config`` on its workers; the same name goes on where it stopped.

    Args:
        config: what to train and where.
        on_epoch: sees each epoch's metrics as they arrive.
        on_start: called when all is checked and Ray is about to start.

    Raises:
        MorelError: data, storage, cluster or MLflow are not as asked; or training failed.
    """
    if config.name is None:
        config = dataclasses.replace(config, name=records.new_name("train"))
    storage.check_writable(config.storage_path)
    if cluster_address(config) is None:
        check_scaling(config.scaling, *local_resources())
    data = load_data(config.data)
    check_fits(config, data)
    check_identity(f"{config.storage_path}/{config.name}", to_dict(config), may_change=MAY_CHANGE)
    recorder = records.open_recorder(config)
    run_id = str(config.name)
    if on_start is not None:
        on_start()
    try:
        with (
            ray_session(config, dashboard=False) as there,
            records.ended_record(recorder, run_id),
        ):
            recorder.start_run(
                run_id,
                name=run_id,
                params=records.params(config),
                config=to_dict(config),
                tags=records.run_tags(config, "train"),
                dataset=records.dataset_record(config, data),
            )
            check_scaling(config.scaling, *there)
            result = _fit(config, recorder, run_id, on_epoch)
            recorder.flush(records.DELIVERY_S)
    finally:
        pending = recorder.close()
    return dataclasses.replace(result, recorded=pending == 0)


def _fit(
    config: RunConfig, recorder: Recorder, run_id: str, on_epoch: OnEpoch | None
) -> TrainResult:
    """Run the workers to their end, measure the best network on the test set, record both."""
    import ray
    from ray.train import Checkpoint

    from orchestrator import worker

    started = time.perf_counter()
    checkpoint, last = _run_workers(config, recorder, run_id, on_epoch)
    metrics = records.best_metrics(last, records.measured_with(config, last, "best_"))
    metrics |= {
        "train.seconds": time.perf_counter() - started,
        "train.images_per_second": float(last.get("images_per_second", 0.0)),
    }
    exported: records.Exported | None = None
    if "best_epoch" in last:
        asked = config.scaling
        task = ray.remote(num_cpus=asked.cpus_per_worker, num_gpus=asked.gpus_per_worker)(
            worker.measure_final
        )
        final = ray.get(task.remote(to_dict(config), Checkpoint(checkpoint)))
        exported = records.store_export(f"{config.storage_path}/{config.name}", final)
        metrics |= exported.metrics
    diverged = bool(last.get("diverged"))
    reason = records.own_end(last)
    recorder.finish(
        run_id,
        status="FAILED" if diverged else "FINISHED",
        stop_reason=reason,
        metrics=metrics,
        tags={
            "morel.state": "diverged" if diverged else "finished",
            "morel.diverged": str(diverged).lower(),
            "morel.device": str(last.get("device", "unknown")),
            "morel.checkpoint": checkpoint,
        },
        texts={"evaluation/test.json": exported.evaluation} if exported else {},
        model=exported.model if exported else None,
    )
    return TrainResult(
        config=config,
        epochs=int(last.get("epoch", 0)),
        seconds=metrics["train.seconds"],
        stop_reason=reason,
        metrics=metrics,
        checkpoint=checkpoint,
        diverged=diverged,
        recorded=True,
    )


def _run_workers(
    config: RunConfig, recorder: Recorder, run_id: str, on_epoch: OnEpoch | None
) -> tuple[str, dict[str, Any]]:
    """Ray Train from the last checkpoint, if there is one, to the end.

    Returns:
        The last checkpoint's location, and the newest report.
    """
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    from orchestrator import worker
    from orchestrator.relay import Relay

    queue = Queue(actor_options={"num_cpus": 0})
    seen: list[dict[str, Any]] = []
    listener = threading.Thread(
        target=_listen, args=(queue, config, recorder, run_id, on_epoch, seen), daemon=True
    )
    listener.start()
    trainer = TorchTrainer(
        worker.train_loop,
        train_loop_config={"config": to_dict(config), "milestones": []},
        scaling_config=worker.scaling_config(config),
        run_config=ray_train.RunConfig(
            name=config.name,
            storage_path=config.storage_path,
            callbacks=[Relay(queue)],
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=2),
            failure_config=ray_train.FailureConfig(controller_failure_limit=3),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise MorelError(f"run {run_id!r} failed: {failure_reason(error)}") from error
    finally:
        queue.put(END)
        listener.join(timeout=records.DELIVERY_S)
    if result.checkpoint is None:
        raise MorelError(f"run {run_id!r} ended without a checkpoint")
    last = seen[-1] if seen else dict(result.metrics or {})
    return storage.uri(config.storage_path, result.checkpoint.path), last


def _listen(
    queue: Any,
    config: RunConfig,
    recorder: Recorder,
    run_id: str,
    on_epoch: OnEpoch | None,
    seen: list[dict[str, Any]],
) -> None:
    """Driver's thread: every relayed report into the journal and onto the screen."""
    while True:
        report = queue.get()
        if report == END:
            return
        for metrics in report["epochs"]:
            attack = records.measured_with(config, metrics)
            recorder.epoch(run_id, int(metrics["epoch"]), records.epoch_metrics(metrics, attack))
            if on_epoch is not None:
                on_epoch(metrics)
        seen.append(report)
