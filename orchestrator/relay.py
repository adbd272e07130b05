"""From a training run's workers to the driver: what is reported goes through a queue.

At one end Ray Train's callback, in the controller's process, and the validation tasks; at the other
a thread of the driver.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray.train import UserCallback
from ray.util.queue import Queue

from orchestrator import records
from orchestrator.config import RunConfig
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
    """

    def __init__(
        self, config: RunConfig, recorder: Recorder, run_id: str, on_epoch: OnEpoch | None
    ) -> None:
        self.queue = Queue(actor_options={"num_cpus": 0})
        self.last: dict[str, Any] | None = None
        self.failures: dict[int, str] = {}
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
                for metrics in report["epochs"]:
                    self._epoch(metrics)
                self.last = report

    def _epoch(self, metrics: Mapping[str, Any], part: str = "") -> None:
        attack = records.measured_with(self._config, metrics)
        recorded = records.epoch_metrics(metrics, attack)
        self._recorder.epoch(self._run_id, int(metrics["epoch"]), recorded, part=part)
        self._show(metrics)

    def _not_measured(self, epoch: int, reason: str) -> None:
        self.failures[epoch] = reason
        self._show({"epoch": epoch, "not_measured": reason})

    def _show(self, metrics: Mapping[str, Any]) -> None:
        if self._on_epoch is not None:
            self._on_epoch(metrics)
