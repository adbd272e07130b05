"""A driver's watch over its search: its budget, what others ask of it, and what it says of itself.

A thread of its own reads the requests and writes the status, so that neither waits for the other
end of a slow storage while trials report, and both go on while the driver waits for a measurement.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray.tune.result import SHOULD_CHECKPOINT

from orchestrator import storage
from orchestrator.driver import control, ending
from orchestrator.driver.ending import Paused
from orchestrator.driver.lease import LeaseLostError
from orchestrator.messages.failures import failure_reason
from orchestrator.search import status
from orchestrator.search.budget import Meter
from orchestrator.search.trial import never_began
from orchestrator.search.trials import TrialBook

POLL_S = 1.0
WRITE_S = 2.0
QUIET = 20.0
"""The status is written so seldom that it takes one part in so many of the time, as long as nobody
takes the driver for dead."""

_logger = logging.getLogger(__name__)


class LoopEndedError(Exception):
    """Tune's loop is left."""


class Watch:
    """Belongs to one driver; made before anything starts.

    Args:
        book: the trials.
    """

    def __init__(self, book: TrialBook) -> None:
        self.book = book
        base = book.search.base
        self.folder = f"{base.storage_path}/{base.name}"
        parent = book.search.parent
        self.parent = f"{base.storage_path}/{parent}" if parent else None
        """Of a campaign's search the campaign's folder: it has no ears of its own."""
        earlier = status.read(self.folder) or {}
        book.held_before = _held(earlier)
        self.meter = Meter(book.search, _wall(earlier), book.held_before)
        self.state = "starting"
        self.there: tuple[float, float] | None = None
        self.concurrent = 1
        self.pausing: float | None = None
        """Since when a pause is asked for."""
        self.interrupted = False
        self._stops: set[int] = set()
        self._saved: set[str] = set()
        self._tune_trials: Sequence[Any] = ()
        self._over = 0
        """So many of the first of them need no look any more."""
        self._looked = 0.0
        self._ended = threading.Event()

    # --- Tune's loop, in the driver's main thread -------------------------------------------------

    def turn(self, tune_trials: Sequence[Any]) -> None:
        """Before each turn of Tune's loop."""
        storage.check_guard(self.folder)  # Tune writes of its own
        self._tune_trials = tune_trials
        while self._over < len(tune_trials) and self.book.settled(tune_trials[self._over]):
            self._over += 1
        self.book.adopt(tune_trials[self._over :])
        if self.pausing is None or self.interrupted:
            return
        awaited = [
            trial
            for trial in tune_trials
            if trial.status == "RUNNING" and trial.trial_id not in self._saved
        ]
        if not awaited or time.time() - self.pausing > control.GRACE_S:
            self.interrupt()

    def report(self, tune_trial: Any, report: dict[str, Any]) -> None:
        """A report arrived; while a pause is asked for it comes with a checkpoint.

        One worker is told to save here. Several have seen the request themselves; a save by Tune
        would end them (`MultiWorkerTrial`).
        """
        if self.pausing is not None:
            if self.book.search.resources.workers == 1:
                report[SHOULD_CHECKPOINT] = True
            elif report.get("checkpoint_path"):
                self.saved(tune_trial)
        self.book.result(tune_trial, report)

    def saved(self, tune_trial: Any) -> None:
        """A checkpoint of a trial was written."""
        if self.pausing is not None:
            self._saved.add(tune_trial.trial_id)

    def stops(self, trial_id: str) -> bool:
        """Whether somebody wants this trial to end."""
        if not self._stops:
            return False
        for tune_trial in self._tune_trials:
            if tune_trial.trial_id == trial_id:
                number = int(tune_trial.config["index"]) + 1
                if number in self._stops:
                    self.book.stopped_by_hand.add(self.book.run_id(tune_trial))
                    return True
        return False

    def over(self) -> bool:
        """Whether the budget ends the search; looked at once a second, and then for good."""
        now = time.monotonic()
        if not self.book.cut and now - self._looked >= POLL_S:
            self._looked = now
            self.book.cut = self.meter.over(self.book.trials)
        return bool(self.book.cut)

    def interrupt(self) -> None:
        """End Tune's loop: it saves its state first."""
        self.interrupted = True
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGUSR1)  # Tune's own way to be ended
        else:  # where no signal is heard; what was not saved is done again
            raise LoopEndedError

    @contextmanager
    def tuning(self) -> Generator[None]:
        """Inside, where Tune's loop runs, Ctrl-C and a pause let Tune save its state first.

        Raises KeyboardInterrupt afterwards if there was one; a second Ctrl-C ends at once.
        """
        self.state = "training"
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGINT)

        def on_interrupt(number: int, frame: Any) -> None:
            storage.check_guard(self.folder)  # what has lost its lease saves nothing
            if self.interrupted:
                raise KeyboardInterrupt
            ending.close_records()  # Tune may wait long for its trials' processes
            self.interrupt()

        if main:
            signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield
        except LoopEndedError:
            pass
        finally:
            if main:
                signal.signal(signal.SIGINT, before)
        self.state = "trained"  # a pause that is asked for from now on interrupts
        if self.interrupted or self.pausing is not None:
            raise KeyboardInterrupt

    # --- the whole command ------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Generator[None]:
        """Inside, requests are heard and the status is kept; it says at last how this ended."""
        thread = threading.Thread(target=self._run, name="morel-watch", daemon=True)
        thread.start()
        try:
            yield
            self.state = "finished"
        except KeyboardInterrupt as error:
            self.state = "interrupted" if self.pausing is None else "paused"
            if self.pausing is not None:
                control.forget_pause(self.folder)
                raise Paused(f"paused by morel stop; {self._again()}") from error
            raise
        except BaseException as error:
            self.state = "failed"
            self.book.cut = failure_reason(error)
            raise
        finally:
            self._ended.set()
            thread.join()
            for trial in self.book.trials:
                trial.release()
            try:
                self._write()
            except (OSError, LeaseLostError) as error:
                _logger.warning("the status cannot be written: %s", error)

    def _again(self) -> str:
        """What goes on: without its name ``morel tune`` would begin another search."""
        name = "" if self.parent else f" (with name={self.book.search.base.name})"
        return f"the same command{name} goes on"

    def _run(self) -> None:
        written, pause = 0.0, WRITE_S
        while not self._ended.is_set():
            try:
                self._listen()
                if time.monotonic() - written >= pause:
                    written = time.monotonic()
                    self._write()
                    took = time.monotonic() - written
                    pause = min(max(WRITE_S, QUIET * took), status.STALE_S / 2)
            except Exception as error:  # the search is not to end for it, nor to go unwatched
                _logger.warning("the status or requests of %s: %s", self.folder, error)
            self._ended.wait(POLL_S)

    def _listen(self) -> None:
        if self.pausing is None and self.parent is not None and control.is_paused(self.parent):
            control.ask_pause(self.folder)  # passed on: workers look there
        names = control.requests(self.folder)
        self._stops = control.stops_asked(names)
        if self.pausing is None and control.pause_asked(names):
            self.pausing = time.time()
            if self.state not in ("starting", "training"):  # waiting for a measurement
                ending.interrupt_main()

    def _write(self) -> None:
        book = self.book
        waiting = self._waiting()
        folders = {
            book.run_id(trial): str(trial.relative_logdir)
            for trial in list(self._tune_trials)
            # One that has not been started yet has none; one that never was may have come again.
            if trial.relative_logdir and not never_began(trial)
        }
        content = status.describe(
            book,
            state=self.state,
            cost=self.meter.cost(book.trials),
            held=self.meter.held(book.trials, time.time()),
            there=self.there,
            concurrent=self.concurrent,
            waiting=waiting,
            folders=folders,
        )
        status.write(self.folder, content)

    def _waiting(self) -> dict[str, str]:
        asked = self.book.search.resources
        need = f"waits for {asked.workers * asked.cpus_per_worker} CPU"
        if asked.gpus_per_worker:
            need += f" and {asked.workers * asked.gpus_per_worker:g} GPU"
        why = {"PENDING": need, "PAUSED": "waits for the scheduler"}
        found: dict[str, str] = {}
        for trial in list(self._tune_trials):
            if trial.status in why:
                again = trial.status == "PENDING" and trial.num_failures > 0
                found[self.book.run_id(trial)] = (
                    "waits to be tried again" if again else why[trial.status]
                )
        return found


def _held(earlier: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that trials have cost under earlier drivers, from a status that may be broken."""
    try:
        return {str(key): float(value) for key, value in earlier.get("held_seconds", {}).items()}
    except (TypeError, AttributeError, ValueError):
        return {}


def _wall(earlier: Mapping[str, Any]) -> float:
    try:
        return float(earlier.get("cost", {}).get("wall_seconds", 0.0))
    except (TypeError, AttributeError, ValueError):
        return 0.0
