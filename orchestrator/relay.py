"""From a training run's workers to the driver: what is reported goes through a queue.

At one end Ray Train's callback, in the controller's process, and the validation tasks; at the other
a thread of the driver.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray.train import UserCallback
from ray.util.queue import Queue

from orchestrator import records
from orchestrator.cluster import on_this_node
from orchestrator.config import RunConfig
from orchestrator.recovery import DAMAGED
from orchestrator.tracking import Recorder

OnEpoch = Callable[[Mapping[str, Any]], None]
END = "end"
VALIDATED, FAILED = "validated", "failed"


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


class Listener:
    """Takes what arrives into the journal and onto the screen, until `close`.

    Attributes:
        queue: for the other end.
        last: the newest report; None before the first.
        failures: of validations, by epoch.
        saved: unix seconds at which the newest checkpoint was heard of.
    """

    def __init__(
        self, config: RunConfig, recorder: Recorder, run_id: str, on_epoch: OnEpoch | None
    ) -> None:
        self.queue = Queue(actor_options=on_this_node())
        self.last: dict[str, Any] | None = None
        self.failures: dict[int, str] = {}
        self._said: dict[str, str] = {}
        self.saved = 0.0
        self._config = config
        self._recorder = recorder
        self._run_id = run_id
        self._on_epoch = on_epoch
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nothing more will come: take in what is still on its way."""
        self.queue.put(END)
        self._thread.join(timeout=records.DELIVERY_S)

    def _listen(self) -> None:
        while True:
            report = self.queue.get()
            if report == END:
                return
            if VALIDATED in report:
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
                self.last = report
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
        if self._on_epoch is not None:
            self._on_epoch(metrics)
