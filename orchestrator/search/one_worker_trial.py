"""A trial of one worker: its trainer in a Tune actor, without Ray Train around it."""

from __future__ import annotations

import time
from typing import Any

from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from morel_core import MorelError, Trainer
from morel_core.data import Dataset
from orchestrator.config import RunConfig
from orchestrator.driver.lease import Fence
from orchestrator.messages.failures import failure_reason, repeats
from orchestrator.search.attempt import failed, run_of
from orchestrator.search.seals import check_checkpoint
from orchestrator.training.recovery import draining, newest_whole
from orchestrator.training.reports import circumstances, reports
from orchestrator.training.retries import CHANGES
from orchestrator.training.staging import Staged, same_images
from orchestrator.training.twins import Twins, take_over, whole
from orchestrator.training.worker import config_from, set_threads


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
