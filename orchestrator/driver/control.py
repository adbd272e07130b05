"""What any machine that sees a run's storage asks of its driver: one small file a request."""

from __future__ import annotations

import json
import logging
import re
import socket
import time

from orchestrator import storage

PAUSE = "pause.json"
GRACE_S = 60.0
"""How long a pause waits for what runs to report and be saved."""
_logger = logging.getLogger(__name__)
_STOP = re.compile(r"stop-(\d+)\.json")


def ask_pause(folder: str) -> None:
    """Ask the driver of what is in ``folder`` to end; its command goes on another time."""
    _ask(folder, PAUSE)


def ask_stop(folder: str, number: int) -> None:
    """Ask the driver to end trial ``number``, counted from 1, for good."""
    _ask(folder, f"stop-{number}.json")


def pause_asked(names: list[str]) -> bool:
    """Whether `requests` hold one to pause."""
    return PAUSE in names


def is_paused(folder: str) -> bool:
    """Whether a pause is asked for; no, as long as the storage is away."""
    try:
        return pause_asked(requests(folder))
    except OSError as error:
        _logger.warning("the requests in %s cannot be read: %s", folder, error)
        return False


def stops_asked(names: list[str]) -> set[int]:
    """Numbers of the trials that `requests` want stopped."""
    return {int(match[1]) for name in names if (match := _STOP.fullmatch(name))}


def requests(folder: str) -> list[str]:
    """Names of all requests; raises OSError where the storage is away."""
    return storage.names(f"{folder}/control", patient=False)


def forget_pause(folder: str) -> None:
    """It was heard, or nobody was there to hear it."""
    try:
        storage.delete(f"{folder}/control/{PAUSE}")
    except OSError as error:
        _logger.warning("the request to pause in %s stays there: %s", folder, error)


def _ask(folder: str, name: str) -> None:
    content = {"time": time.time(), "host": socket.gethostname()}
    storage.write(f"{folder}/control/{name}", json.dumps(content).encode())
