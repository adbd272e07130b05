"""A trial of several workers under population-based training: one Ray Train run an exchange.

With Ray Train inside a Tune function Tune sees no checkpoint of the workers, and would never
exploit one. So each stretch from exchange to exchange is a Ray Train run of its own, which ends by
itself; what Tune saves, and moves between trials, is a file that points to its last checkpoint.
"""

from __future__ import annotations

import json
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.cluster import address_passed_on, on_this_node, watched_for_hanging
from orchestrator.config import RunConfig, to_dict
from orchestrator.driver.lease import Fence
from orchestrator.messages.failures import failure_reason, repeats
from orchestrator.search.attempt import failed, run_of
from orchestrator.search.population import workers_name
from orchestrator.training.recovery import drop_torn_snapshot
from orchestrator.training.relay import END, Relay
from orchestrator.training.retries import CHANGES
from orchestrator.training.staging import Staged
from orchestrator.training.worker import config_from, scaling_config, torch_config, train_loop

POINTER = "pointer.json"


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Part of a run."""

    after: int = 0
    """It goes on after this epoch …"""
    checkpoint: str | None = None
    """… from here (path or URI), which may be a donor's."""
    last: int | None = None
    """The last epoch of it; None: to the run's end."""


def population_trial(
    config: dict[str, Any],
    base: dict[str, Any],
    milestones: list[int],
    staged: Staged,
    fence: Fence | None = None,
) -> None:
    """Train to the next exchange, report, and be paused; or to the end.

    Args:
        config: of the trial, by Tune.
        base: plain `RunConfig` of the search.
        milestones: epochs at which networks are exchanged.
        staged: the data set.
        fence: of the search.
    """
    try:
        run = run_of(config_from(base), config)
        stretch = next_stretch(tune.get_checkpoint(), milestones)
        loop_config = {
            "config": to_dict(run),
            "milestones": milestones,
            "staged": staged,
            "stretch": asdict(stretch),
            "fence": fence,
        }
        name = workers_name(str(tune.get_context().get_trial_id()), stretch.after)
        last = _train(run, name, loop_config)
    except Exception as error:
        if not repeats(failure_reason(error), changed=bool(config.get(CHANGES))):
            raise
        tune.report(failed(error))
        return
    # Only now: Tune pauses a trial at an exchange, which ends this process.
    with tempfile.TemporaryDirectory(prefix="morel-pointer-") as folder:
        path = storage.uri(run.storage_path, last["checkpoint_path"])
        pointer = {"epoch": last["epoch"], "checkpoint": path}
        Path(folder, POINTER).write_text(json.dumps(pointer))
        tune.report(last, checkpoint=tune.Checkpoint.from_directory(folder))


def _train(run: RunConfig, name: str, loop_config: dict[str, Any]) -> dict[str, Any]:
    """Have the workers train a stretch, and report all of it but the last, which is returned."""
    queue = Queue(actor_options=on_this_node())
    failures: list[Exception] = []

    def fit() -> None:
        try:
            _workers(run, name, loop_config, queue).fit()
        except Exception as error:
            failures.append(error)
        queue.put(END)

    thread = threading.Thread(target=fit, daemon=True)
    last: dict[str, Any] | None = None
    with address_passed_on(), watched_for_hanging(run.scaling):
        thread.start()
        while (report := queue.get()) != END:
            if last is not None:
                tune.report(last)
            last = report
        thread.join()
    queue.shutdown()
    if failures:
        raise failures[0]
    if last is None:
        raise MorelError(f"{name}: the workers reported nothing")
    return last


def next_stretch(checkpoint: tune.Checkpoint | None, milestones: list[int]) -> Stretch:
    """From what a Tune checkpoint points to, to the next exchange."""
    if checkpoint is None:
        return Stretch(last=milestones[0])
    with checkpoint.as_directory() as folder:
        pointer = json.loads(Path(folder, POINTER).read_text())
    after = int(pointer["epoch"])
    last = next((epoch for epoch in milestones if epoch > after), None)
    return Stretch(after=after, checkpoint=pointer["checkpoint"], last=last)


def _workers(run: RunConfig, name: str, loop_config: dict[str, Any], queue: Queue) -> TorchTrainer:
    """Ray Train for the workers, whose reports go into ``queue``."""
    folder = f"{run.storage_path}/{run.name}"
    drop_torn_snapshot(f"{folder}/{name}")
    return TorchTrainer(
        train_loop,
        train_loop_config=loop_config,
        torch_config=torch_config(run),
        scaling_config=scaling_config(run),
        run_config=train.RunConfig(
            name=name,
            storage_path=folder,
            callbacks=[Relay(queue)],
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            failure_config=train.FailureConfig(controller_failure_limit=3),
        ),
    )
