"""A trial of several workers: Ray Train inside a Tune actor, which is reused from trial to trial.

Ray Train runs in a thread of the actor. Its controller, a process of its own, puts what the workers
report into a queue, from where Tune takes it step by step.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.tune.result import DONE, RESULT_DUPLICATE
from ray.util.queue import Queue

from orchestrator.cluster import address_passed_on, on_this_node, watched_for_hanging
from orchestrator.config import RunConfig, to_dict
from orchestrator.driver.lease import Fence
from orchestrator.messages.failures import failure_reason, repeats
from orchestrator.search.attempt import failed, run_of
from orchestrator.search.reports import END, Reports
from orchestrator.search.seals import check_checkpoint
from orchestrator.tracking.records import own_end
from orchestrator.training.recovery import drop_torn_snapshot
from orchestrator.training.retries import CHANGES
from orchestrator.training.staging import Staged
from orchestrator.training.twins import Twins, whole
from orchestrator.training.worker import config_from, scaling_config, torch_config, train_loop


class MultiWorkerTrial(tune.Trainable):
    """Trains by `train_loop` on the workers of a trial, which are its own.

    What Tune saves at a trial's end or pause is a word only: the workers save for themselves, in a
    folder that is named after the trial, and a trial that is run again finds it there.

    A trial is done with its last report. Its workers and its controller then end by themselves,
    while the controller of the next trial starts.
    """

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        config: dict[str, Any],
        base: dict[str, Any],
        milestones: list[int],
        staged: Staged,
        twins: Twins | None = None,
        fence: Fence | None = None,
    ) -> None:
        """Start the workers of the first trial: the search's base config with its overrides."""
        self.base, self.twins = config_from(base), twins
        self.how: dict[str, Any] = {"milestones": milestones, "staged": staged, "fence": fence}
        self.queue = Queue(actor_options=on_this_node())
        self.number, self.errors = 0, dict[int, Exception]()
        self.process = ExitStack()
        self.process.enter_context(address_passed_on())
        self.process.enter_context(watched_for_hanging(self.base.scaling))
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        self.number += 1
        self.changed = bool(config.get(CHANGES))
        self.controller: Any = None
        self.running = True
        self.thread = threading.Thread(
            target=self._fit, args=(config, self.trial_id, self.number), daemon=True
        )
        self.thread.start()

    def _fit(self, config: Mapping[str, Any], trial: str, number: int) -> None:
        try:
            run = run_of(self.base, config)
            twin = whole(self.twins.find(run)) if self.twins is not None else None
            reports = Reports(self.queue, number)
            _workers(run, trial, {**self.how, "twin": twin}, reports).fit()
        except Exception as error:
            self.errors[number] = error
        self.queue.put((number, END, None))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial into this process."""
        self._end()
        self._begin(new_config)  # Tune's wrapper of `setup` would bring all parameters again
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next report."""
        report = self._take()
        if report is not None:
            if own_end(report):
                self.running, self.controller = False, None
            return {**report, DONE: not self.running}
        error = self.errors.get(self.number)
        if error is None:  # it had ended before, and Tune has heard its last report
            return {DONE: True, RESULT_DUPLICATE: True}
        if not repeats(failure_reason(error), changed=self.changed):
            raise error
        return {**failed(error), DONE: True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Tune saves where a trial ends or pauses: its workers are to be free at once."""
        self._end()
        Path(checkpoint_dir, "of_workers").write_text("The workers save for themselves.\n")

    def restore(self, checkpoint_path: Any) -> None:
        """Go on from what Tune names: its result of a save. Raises `MorelError` at a pickle."""
        check_checkpoint(checkpoint_path.checkpoint)
        super().restore(checkpoint_path)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """The workers have found theirs."""

    def cleanup(self) -> None:
        """Before the first report there is no handle: Ray ends what belongs to this process."""
        if self.controller is not None:
            self._end()
        if not self.running:
            self.thread.join()
        self.process.close()

    def _take(self) -> dict[str, Any] | None:
        """The next report of this trial; None once Ray Train has ended."""
        number, report, controller = self.queue.get()
        while number != self.number:  # an earlier one was still ending
            number, report, controller = self.queue.get()
        if report == END:
            self.running, self.controller = False, None
            return None
        self.controller = controller
        return report

    def _end(self) -> None:
        """End Ray Train, if it has not ended by itself, and forget what it still reports."""
        if self.running and self.controller is None:
            self._take()
        if self.controller is not None:
            self.controller.abort.remote()
        while self.running:
            self._take()


def _workers(run: RunConfig, trial: str, how: dict[str, Any], reports: Reports) -> TorchTrainer:
    """Ray Train for the workers of a trial; ``how`` is the rest of their `train_loop`'s config."""
    name, folder = f"workers_{trial}", f"{run.storage_path}/{run.name}"
    drop_torn_snapshot(f"{folder}/{name}")
    return TorchTrainer(
        train_loop,
        train_loop_config={"config": to_dict(run), **how},
        torch_config=torch_config(run),
        scaling_config=scaling_config(run),
        run_config=train.RunConfig(
            name=name,  # tied to the trial: a restored one finds its checkpoints
            storage_path=folder,
            callbacks=[reports],
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
            failure_config=train.FailureConfig(controller_failure_limit=3),
        ),
    )
