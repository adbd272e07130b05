"""From the driver's calls to the journal, and from the journal to the tracker.

Calls return once an event is in the journal and never wait for the tracker: a writer thread
carries events over, in order, for as long as it takes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.tracking.events import (
    DatasetPayload,
    EpochPayload,
    Event,
    FinalPayload,
    ModelPayload,
    ProgressPayload,
    RegisterPayload,
    StartPayload,
    Status,
    ViewPayload,
)
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.tracker import Tracker

_logger = logging.getLogger(__name__)

# What the event itself is to blame for, and another attempt would only repeat.
_REJECTING = (MorelError, ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Rejection:
    """An event that the tracker would not take; it stays in the journal."""

    event: Event
    reason: str


@dataclass
class Past:
    """A run as the journal had it when its recorder was made."""

    parent: str | None = None
    tags: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    """Of its start, like …"""
    params: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    """… these."""
    state: str = ""
    """The tag ``morel.state`` of its end; empty while it goes on."""
    stop_reason: str = ""
    metrics: dict[str, float] = field(default_factory=lambda: dict[str, float]())
    """All that it was finished with, and that was added since."""
    note: str = ""
    """The last one."""
    won: bool = False
    """Its newest tag ``morel.winner``."""

    def add(self, event: Event) -> None:
        """Take in the run's next event."""
        if event.kind == "start":
            self.parent, self.tags = event.payload["parent"], event.payload["tags"]
            self.params = event.payload["params"]
        elif event.kind == "epoch":
            self.state = self.stop_reason = ""
        elif event.kind == "final":
            self.metrics |= event.payload["metrics"]
            self.note = event.payload.get("note") or self.note
            if "morel.winner" in event.payload["tags"]:
                self.won = event.payload["tags"]["morel.winner"] == "true"
            if "morel.state" in event.payload["tags"]:
                self.state = event.payload["tags"]["morel.state"]
                self.stop_reason = event.payload["stop_reason"]


@dataclass
class _End:
    """What the finals of a run say together, since its last step."""

    status: str = ""
    stop_reason: str = ""
    values: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    """Metrics and tags as JSON, in which NaN is NaN: the newest of each name."""
    said: Counter[str] = field(default_factory=lambda: Counter[str]())
    """How often each payload, by digest."""

    def add(self, payload: Mapping[str, Any]) -> None:
        """Take in the next one."""
        self.status, self.stop_reason = payload["status"], payload["stop_reason"]
        self.values |= _values(payload)
        self.said[_digest(payload)] += 1

    def holds(self, payload: Mapping[str, Any]) -> bool:
        """Whether this was said, and nothing of it was replaced since."""
        return (
            self.said[_digest(payload)] > 0
            and (self.status, self.stop_reason) == (payload["status"], payload["stop_reason"])
            and _values(payload).items() <= self.values.items()
        )


class Replay(NamedTuple):
    """What `replay` did, in events."""

    delivered: int
    skipped: int
    """Already there."""
    rejected: int


class Recorder:
    """Records runs durably first and in the tracker as soon as that is possible.

    On construction, everything in the journal that the tracker does not have yet is queued.
    Every method may be called from any thread.

    Args:
        journal: written synchronously; `MorelError` from it is the caller's to see.
        tracker: used by the writer thread alone.
        first_retry_s: pause after a failure, doubled after each further one …
        last_retry_s: … up to this.
    """

    def __init__(
        self,
        journal: Journal,
        tracker: Tracker,
        *,
        first_retry_s: float = 0.5,
        last_retry_s: float = 30.0,
    ) -> None:
        self._journal = journal
        self._tracker = tracker
        self._first_retry_s = first_retry_s
        self._last_retry_s = last_retry_s
        self._changed = threading.Condition()
        self._append_lock = threading.Lock()
        self._queue: deque[Event] = deque()
        self._steps: dict[str, int] = {}
        self._ends: dict[str, _End] = {}
        self._rejected: list[Rejection] = []
        self._last_error: str | None = None
        self._closing = False
        self._stopped = False
        self.past: dict[str, Past] = {}
        """The runs that the journal held on construction, by id."""
        journal.begin()
        for event in journal.events():
            self.past.setdefault(event.run_id, Past()).add(event)
            self._enqueue(event)
        self._writer = threading.Thread(target=self._write, name="morel-recorder", daemon=True)
        self._writer.start()

    @property
    def pending(self) -> int:
        """Events that the tracker does not have yet."""
        with self._changed:
            return len(self._queue)

    @property
    def last_error(self) -> str | None:
        """Why the writer is waiting at present; None while deliveries succeed."""
        with self._changed:
            return self._last_error

    @property
    def rejected(self) -> tuple[Rejection, ...]:
        """What the tracker would not take since construction."""
        with self._changed:
            return tuple(self._rejected)

    def start_run(
        self,
        run_id: str,
        *,
        name: str,
        params: Mapping[str, Any],
        config: Mapping[str, Any],
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        dataset: DatasetPayload | None = None,
    ) -> bool:
        """Record that a run begins; False if it had begun before (it is being resumed)."""
        payload = StartPayload(
            name=name,
            parent=parent,
            params=dict(params),
            tags=dict(tags or {}),
            config=dict(config),
            dataset=dataset,
        )
        return self._append(run_id, "start", "start", payload)

    def epoch(
        self, run_id: str, epoch: int, metrics: Mapping[str, float], *, part: str = ""
    ) -> bool:
        """Record the metrics of an epoch, counted from 1; False if they were recorded before.

        Those that come later than the others are a ``part`` of their own.
        """
        payload = EpochPayload(epoch=epoch, metrics=dict(metrics))
        return self._append(run_id, "epoch", f"epoch:{epoch}{part and f':{part}'}", payload)

    def progress(
        self,
        run_id: str,
        step: int,
        metrics: Mapping[str, float],
        artifacts: Mapping[str, str] | None = None,
    ) -> bool:
        """Record how far a run has come; False if exactly this was recorded before.

        ``artifacts``, path → file, replace those of earlier steps.
        """
        payload = ProgressPayload(step=step, metrics=dict(metrics), artifacts=dict(artifacts or {}))
        return self._append(run_id, "progress", f"progress:{step}:{_digest(payload)}", payload)

    def view(self, run_id: str, payload: ViewPayload) -> bool:
        """Record how the trials of a search are best looked at; False if exactly this was."""
        return self._append(run_id, "view", f"view:{_digest(payload)}", payload)

    def register(self, run_id: str, payload: RegisterPayload) -> bool:
        """Record that the run's logged model is to be a version of a registered model.

        Each call is an event of its own: what a person has deleted since is made again.
        """
        return self._append(run_id, "register", f"register:{uuid.uuid4().hex}", payload)

    def finish(
        self,
        run_id: str,
        *,
        status: Status,
        stop_reason: str,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Mapping[str, str] | None = None,
        texts: Mapping[str, str] | None = None,
        note: str | None = None,
        model: ModelPayload | None = None,
    ) -> bool:
        """Record how a run ended; False if exactly this is recorded, and still holds.

        Calling it again with more (test accuracies of a winner, a model) adds to the run.
        """
        payload = FinalPayload(
            status=status,
            stop_reason=stop_reason,
            metrics=dict(metrics or {}),
            tags=dict(tags or {}),
            artifacts=dict(artifacts or {}),
            texts=dict(texts or {}),
            note=note,
            model=model,
        )
        return self._append(run_id, "final", None, payload)

    def flush(self, timeout_s: float) -> int:
        """Wait until the tracker has everything, at most ``timeout_s``; returns `pending`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue or self._stopped, timeout_s)
            return len(self._queue)

    def close(self, timeout_s: float = 10.0) -> int:
        """Deliver what can be delivered within ``timeout_s`` and stop.

        Returns how many events the tracker still lacks; they stay in the journal, and `replay` or
        the next `Recorder` on it carries them over. Later calls still reach the journal.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.flush(timeout_s)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._writer.join(max(0.1, deadline - time.monotonic()))
        if not self._writer.is_alive():
            self._tracker.close()
        return self.pending

    def _append(
        self,
        run_id: str,
        kind: Any,
        key: str | None,
        payload: Mapping[str, Any],
    ) -> bool:
        with self._append_lock:  # the queue keeps the journal's order
            if key is None:
                # The same end, as long as it holds, is one end; after more epochs it is another.
                end, digest = self._ends.get(run_id, _End()), _digest(payload)
                if end.holds(payload):
                    return False
                again = f":{end.said[digest] + 1}" if end.said[digest] else ""
                key = f"final:{self._steps.get(run_id, 0)}:{digest}{again}"
            event = self._journal.append(run_id, kind, key, payload)
            if event is None:
                return False
            self._enqueue(event)
        return True

    def _enqueue(self, event: Event) -> None:
        if event.kind in ("start", "epoch", "progress"):
            self._steps[event.run_id] = self._steps.get(event.run_id, 0) + 1
            self._ends.pop(event.run_id, None)
        elif event.kind == "final":
            self._ends.setdefault(event.run_id, _End()).add(event.payload)
        with self._changed:
            if not self._stopped:
                self._queue.append(event)
                self._changed.notify_all()

    def _write(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if self._stopped or not self._queue:
                    return
                event = self._queue[0]
            if self._is_replaced():
                return
            try:
                self._tracker.apply(event)
            except _REJECTING as error:
                self._reject(event, error)
            except Exception as error:
                self._pause(failures, error)
                failures += 1
                continue
            failures = 0
            with self._changed:
                self._last_error = None
                self._queue.popleft()
                self._changed.notify_all()

    def _is_replaced(self) -> bool:
        """Whether another driver has the lease by now: it delivers what waits."""
        try:
            storage.check_guard(self._journal.root)
        except MorelError:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            return True
        except OSError:  # the storage is away; the tracker may be there
            pass
        return False

    def _pause(self, failures: int, error: Exception) -> None:
        """Wait before the next attempt; shortened when the recorder is being closed."""
        pause = min(self._first_retry_s * 2 ** min(failures, 30), self._last_retry_s)
        with self._changed:
            self._last_error = _one_line(error)
            if failures == 0:
                _logger.warning(
                    "recording is delayed, %d events wait in the journal: %s",
                    len(self._queue),
                    self._last_error,
                )
            closing = self._closing
            pause = self._first_retry_s if closing else pause
            self._changed.wait_for(lambda: self._stopped or self._closing != closing, timeout=pause)

    def _reject(self, event: Event, error: Exception) -> None:
        reason = _one_line(error)
        _logger.warning("%s of run %s is not recorded: %s", event.key, event.run_id, reason)
        with self._changed:
            self._rejected.append(Rejection(event, reason))
        _note_rejection(self._tracker, event, reason)


def replay(journal: Journal, tracker: Tracker) -> Replay:
    """Carry over everything that ``tracker`` lacks, in order; repeating it changes nothing.

    Raises whatever the tracker raises while it is out of reach; what was delivered stays.
    """
    delivered = skipped = rejected = 0
    for event in journal.events():
        try:
            applied = tracker.apply(event)
        except _REJECTING as error:
            _note_rejection(tracker, event, _one_line(error))
            rejected += 1
            continue
        delivered += applied
        skipped += not applied
    return Replay(delivered, skipped, rejected)


def _digest(payload: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:12]


def _values(final: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in (final["metrics"] | final["tags"]).items()}


def _note_rejection(tracker: Tracker, event: Event, reason: str) -> None:
    try:
        tracker.reject(event, reason)
    except Exception as error:  # the note is a courtesy; it must not stop what comes after
        _logger.warning("the rejection of %s could not be noted: %s", event.key, error)


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
