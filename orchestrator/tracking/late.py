"""A tracker that need not be there yet."""

from __future__ import annotations

from collections.abc import Callable

from morel_core.errors import MorelError
from orchestrator.tracking.events import Event
from orchestrator.tracking.tracker import Tracker


class LateTracker:
    """Reaches the tracker when the first event comes, or with a later attempt.

    Args:
        connect: makes it; raises `MorelError` while it is out of reach.
    """

    def __init__(self, connect: Callable[[], Tracker]) -> None:
        self._connect = connect
        self._tracker: Tracker | None = None

    def apply(self, event: Event) -> bool:
        """See `Tracker`. Raises ConnectionError while it is out of reach."""
        return self._reached().apply(event)

    def reject(self, event: Event, reason: str) -> None:
        """See `Tracker`."""
        self._reached().reject(event, reason)

    def close(self) -> None:
        """See `Tracker`."""
        if self._tracker is not None:
            self._tracker.close()

    def _reached(self) -> Tracker:
        if self._tracker is None:
            try:
                self._tracker = self._connect()
            except MorelError as error:
                raise ConnectionError(str(error)) from error
        return self._tracker
