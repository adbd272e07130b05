"""Where events end up."""

from __future__ import annotations

from typing import Protocol

from orchestrator.tracking.events import Event


class Tracker(Protocol):
    """A record of runs that events are applied to, one at a time, in order within each run.

    Implementations raise `MorelError` (or ValueError) for an event they will never take, and any
    other exception for a state that may pass, such as a server that is away.
    """

    def apply(self, event: Event) -> bool:
        """Record ``event``; idempotent.

        Returns False, and does nothing, where this event or a later one of its run has been
        applied before, in this process or in another.
        """
        ...

    def reject(self, event: Event, reason: str) -> None:
        """Leave ``event`` out for good, noting why where a reader of the run will see it."""
        ...

    def close(self) -> None:
        """Let go of connections; nothing may be applied afterwards."""
        ...


class MemoryTracker:
    """Keeps what it is given, for tests and notebooks."""

    def __init__(self) -> None:
        self.applied: list[Event] = []
        self.rejected: list[tuple[Event, str]] = []
        self._cursors: dict[str, int] = {}

    def apply(self, event: Event) -> bool:
        """See `Tracker`."""
        if event.seq <= self._cursors.get(event.run_id, -1):
            return False
        self.applied.append(event)
        self._cursors[event.run_id] = event.seq
        return True

    def reject(self, event: Event, reason: str) -> None:
        """See `Tracker`."""
        self.rejected.append((event, reason))
        self._cursors[event.run_id] = event.seq

    def close(self) -> None:
        """See `Tracker`."""


class NullTracker:
    """Records nothing: events stay in the journal, for ``morel sync`` to carry over later."""

    def apply(self, event: Event) -> bool:
        """See `Tracker`."""
        return False

    def reject(self, event: Event, reason: str) -> None:
        """See `Tracker`."""

    def close(self) -> None:
        """See `Tracker`."""
