"""From a training run's workers to the driver: what is reported goes through a queue.

At one end Ray Train's callback, in the controller's process, and the validation tasks; at the other
a thread of the driver.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train import UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.util.queue import Queue

from orchestrator.cluster import on_this_node
from orchestrator.config import RunConfig
from orchestrator.tracking import Recorder, records
from orchestrator.training.recovery import DAMAGED

OnEpoch = Callable[[Mapping[str, Any]], None]
END = "end"
CONTROLLER, VALIDATED, FAILED = "controller", "validated", "failed"
RETRY_S = 5.0

_logger = logging.getLogger(__name__)


class Relay(UserCallback):
    """Puts the first worker's report, with the checkpoint's path, into ``queue``."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """All workers have reported."""
        # An exception here would end the run: losing a line of its record is better.
        try:
            path = checkpoint.path if checkpoint else None
            self.queue.put({**metrics[0], "checkpoint_path": path})
        except Exception as error:
            print(f"report not relayed: {error}")


class Introduction(ControllerCallback):
    """Puts the controller's own handle, which Ray Train keeps to itself, into ``queue``."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_controller_start(self, train_run_context: Any) -> None:
        """Before any worker is asked for."""
        self.queue.put({CONTROLLER: ray.get_runtime_context().current_actor})


class Listener:
    """Takes what arrives into the journal and onto the screen, until `close`.

    What the journal does not take, as its storage is away, is tried again until then: training goes
    on meanwhile. What cannot be shown ends the showing, and nothing else.

    Attributes:
        queue: for the other end.
        last: the newest report; None before the first.
        failures: of validations, by epoch.
        saved: unix seconds at which the newest checkpoint was heard of.
        error: why the newest report is not recorded; None if it is.
    """

    def __init__(
        self, config: RunConfig, recorder: Recorder, run_id: str, on_epoch: OnEpoch | None
    ) -> None:
        self.queue = Queue(actor_options=on_this_node())
        self.last: dict[str, Any] | None = None
        self.failures: dict[int, str] = {}
        self._said: dict[str, str] = {}
        self.saved = 0.0
        self.error: Exception | None = None
        self._controller: Any = None
        self._ending = False
        self._given_up = threading.Event()
        self._config = config
        self._recorder = recorder
        self._run_id = run_id
        self._on_epoch = on_epoch
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def end_workers(self) -> None:
        """Ask Ray Train's controller, as soon as it is known, to end its workers and itself."""
        self._ending = True
        if self._controller is not None:
            self._controller.abort.remote()

    def close(self) -> None:
        """Nothing more will come: take in what is still on its way, as far as that is possible."""
        self.queue.put(END)
        self._thread.join(timeout=records.DELIVERY_S)
        self._given_up.set()

    def _listen(self) -> None:
        while (report := self.queue.get()) != END:
            while not self._is_taken(report):
                if self._given_up.wait(RETRY_S):
                    return

    def _is_taken(self, report: Mapping[str, Any]) -> bool:
        """Whether a report could be recorded; ``error`` says why not."""
        try:
            self._take(report)
        except Exception as error:
            if self.error is None:
                _logger.warning("%s (it is tried again)", error)
            self.error = error
        else:
            self.error = None
        return self.error is None

    def _take(self, report: Mapping[str, Any]) -> None:
        if CONTROLLER in report:
            self._controller = report[CONTROLLER]
            if self._ending:
                self.end_workers()
        elif VALIDATED in report:
            self._epoch(report[VALIDATED], part="validation")
        elif FAILED in report:
            self._not_measured(**report[FAILED])
        else:
            self._say(str(report.get(DAMAGED, "")))
            for metrics in report["epochs"]:
                if "workers" in metrics:
                    self._say(self._workers(int(metrics["workers"])))
                self._epoch(metrics)
            self._say(self._about_batchnorm(report))
            self.last = dict(report)
            if report["checkpoint_path"]:
                self.saved = time.time()

    def _epoch(self, metrics: Mapping[str, Any], part: str = "") -> None:
        attack = records.measured_with(self._config, metrics)
        recorded = records.epoch_metrics(metrics, attack)
        if self._recorder.epoch(self._run_id, int(metrics["epoch"]), recorded, part=part):
            self._show(metrics)

    def _say(self, line: str) -> None:
        """A line about the run, once."""
        if line and line != self._said.get(line[:9]):
            self._said[line[:9]] = line
            self._show({"retry": line})

    def _workers(self, count: int) -> str:
        return f"trained by {count} worker(s), {self._config.training.batch_size} images a step"

    def _about_batchnorm(self, report: Mapping[str, Any]) -> str:
        if "batchnorm_workers" not in report:
            return ""
        return (
            "BatchNorm takes its statistics of each worker's part of the batch, and the number of "
            "workers has changed: the numbers are not those of a run with one number of workers"
        )

    def _not_measured(self, epoch: int, reason: str) -> None:
        self.failures[epoch] = reason
        self._show({"epoch": epoch, "not_measured": reason})

    def _show(self, metrics: Mapping[str, Any]) -> None:
        if self._on_epoch is None:
            return
        try:
            self._on_epoch(metrics)
        except Exception:
            _logger.exception("epochs cannot be shown any longer; the run goes on")
            self._on_epoch = None
