"""Ray Train's callback, in the controller's process: hands each report to the driver's queue."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback
from ray.util.queue import Queue


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
