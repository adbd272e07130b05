"""The front of a search while it runs: a table and a picture in its folder, and numbers in MLflow.

A thread does all of it, and pauses long enough to be at work a small part of the time: the driver
only notes that a trial has ended.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from orchestrator import storage
from orchestrator.compare import pareto
from orchestrator.search import front_picture
from orchestrator.search.selection import accuracies, eligible, front, verified_summary
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import Trial
from orchestrator.tracking import Recorder, records

FILES = ("front.json", "front.png")
PAUSE_S = 10.0
"""Between two updates at least …"""
SHARE = 0.05
"""… and so long that updating takes no larger share of the time."""
ENDS = ("", "_low", "_high")

_logger = logging.getLogger(__name__)


class FrontRecord:
    """Keeps a search's front up to date, in its folder and in MLflow.

    Recorded are the metrics ``front.hypervolume`` (of both accuracies in [0, 1], above 0) and
    ``front.size``, whose steps are the number of trials that have ended, and `FILES`.
    """

    def __init__(self, search: SearchConfig, recorder: Recorder) -> None:
        self._search = search
        self._recorder = recorder
        self._ended: dict[str, Trial] = {}
        self._changed = threading.Condition()
        self._news = False
        self._closing = False

    def add(self, trial: Trial) -> None:
        """A trial has ended; once more, if it was tried again."""
        with self._changed:
            self._ended[trial.run_id] = trial
            self._news = True
            self._changed.notify_all()

    @contextmanager
    def kept_up(self) -> Generator[None]:
        """Inside, what `add` was told is recorded soon; at the exit all of it is."""
        thread = threading.Thread(target=self._follow, name="morel-front", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            thread.join()

    def finish(self, winner: Trial | None) -> dict[str, str]:
        """Record the front after verification; returns the files, by artifact path."""
        return self._update(list(self._ended.values()), winner)

    def _follow(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self._closing)
                if not self._news:
                    return
                self._news = False
                trials = list(self._ended.values())
            started = time.monotonic()
            try:
                self._update(trials, None)
            except Exception as error:  # a search is not lost for its picture
                _logger.warning("the search's front is not up to date: %s", error)
            pause = max(PAUSE_S, (time.monotonic() - started) / SHARE)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=pause)

    def _update(self, trials: Sequence[Trial], winner: Trial | None) -> dict[str, str]:
        """Write the files, if there is anything to show, and record them with the numbers."""
        files = self._write(trials, winner) if eligible(self._search, trials) else {}
        points = [accuracies(trial) for trial in front(self._search, trials)]
        self._recorder.progress(
            str(self._search.base.name),
            len(trials),
            {"front.hypervolume": pareto.hypervolume(points), "front.size": float(len(points))},
            files,
        )
        return files

    def _write(self, trials: Sequence[Trial], winner: Trial | None) -> dict[str, str]:
        base = self._search.base
        table, picture = (f"{base.storage_path}/{base.name}/{name}" for name in FILES)
        text = json.dumps(front_table(self._search, trials, winner), indent=2)
        storage.write(table, text.encode())
        storage.write(picture, front_picture.draw(self._search, trials, winner))
        return dict(zip(FILES, (table, picture), strict=True))


def front_table(
    search: SearchConfig, trials: Sequence[Trial], winner: Trial | None
) -> dict[str, Any]:
    """The front as ``front.json`` holds it: what was measured how, and a row for each trial.

    Accuracies are fractions with their 95 % intervals, of the trial's best epoch.
    """
    members, evaluation = front(search, trials), search.base.evaluation
    return {
        "search": search.base.name,
        "trials_ended": len(trials),
        "split": "holdout",
        "attack": records.evaluation_label(search.base),
        "seed": evaluation.seed,
        "constraints": search.objective.constraints,
        "hypervolume": pareto.hypervolume([accuracies(trial) for trial in members]),
        "points": [_row(search, trial, winner) for trial in members],
    }


def _row(search: SearchConfig, trial: Trial, winner: Trial | None) -> dict[str, Any]:
    base, last = search.base, trial.last
    keys = [key + end for key in records.ACCURACIES for end in ENDS]
    return {
        "trial": trial.number,
        "run_id": trial.run_id,
        "label": trial.label,
        "baseline": trial.baseline,
        "winner": winner is not None and trial.run_id == winner.run_id,
        "params": trial.params,
        "epoch": int(last["best_epoch"]),
        "attack": records.measured_with(base, last, "best_"),
        "rung": trial.rung or None,
        "images": int(
            last.get("best_num_images") or base.evaluation.num_images or base.data.holdout
        ),
        **{key: last.get(f"best_{key}") for key in keys},
        "verified": verified_summary(trial, winner),
    }
