"""From a trial's workers to its Tune actor: what they report goes through a queue.

Ray Train's controller imports this with each trial, so it imports little itself.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train import UserCallback
from ray.util.queue import Queue

END = "end"


class Reports(UserCallback):
    """Puts (``number``, report, handle of the controller) into ``queue``.

    The report is the first worker's, with the checkpoint's path if there is one; ``number`` tells
    the trials apart that share the queue.
    """

    def __init__(self, queue: Queue, number: int) -> None:
        self.queue, self.number = queue, number

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """All workers have reported. This runs in the controller's process."""
        report = dict(metrics[0])
        if checkpoint:
            report["checkpoint_path"] = checkpoint.path
        self.queue.put((self.number, report, ray.get_runtime_context().current_actor))
