"""How a signal ends a command: what is recorded is closed first, whatever else takes its time.

Ctrl-C, SIGTERM and `ray job stop` are one thing here. The last of them leaves three seconds.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

from morel_core.errors import MorelError

T = TypeVar("T")
POLL_S = 1.0
LEAVE_S = 90.0
"""For work that was told to end, perhaps before it has quite begun."""

_logger = logging.getLogger(__name__)
_open: list[Callable[[], None]] = []


class Paused(KeyboardInterrupt):
    """`morel stop` asked the driver to end."""


@contextmanager
def closed_on_signal(close: Callable[[], None]) -> Generator[None]:
    """Inside, `close_records` calls ``close``, from another thread."""
    _open.append(close)
    try:
        yield
    finally:
        _open.remove(close)


def close_records() -> None:
    """Close all that is open, without waiting for it: whoever calls may hold a lock that it needs.

    What is still reported afterwards is recorded behind it, and closed once more.
    """
    threading.Thread(target=_close, args=(list(_open),), name="morel-ending", daemon=True).start()


def _close(records: list[Callable[[], None]]) -> None:
    for close in records:
        try:
            close()
        except MorelError as error:
            _logger.warning("a record cannot be closed: %s", error)


@contextmanager
def terminable() -> Generator[None]:
    """Inside, SIGTERM does what Ctrl-C does; outside the main thread, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def as_interrupt(number: int, frame: Any) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # ignored, as a shell asks of its background jobs
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, as_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def interrupt_main() -> None:
    """Let the main thread end as by Ctrl-C; from any thread, also where SIGINT is ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            return


def interruptible(work: Callable[[], T], look: Callable[[], None], cancel: Callable[[], None]) -> T:
    """``work()`` in a thread of its own, so that a signal ends the wait for it at once.

    Its thread is waited for, `LEAVE_S` at most: one that is inside Ray while Ray is shut down takes
    the whole process along. A second signal ends that wait, too.

    Args:
        work: what to do.
        look: is called once a second; what it raises ends the wait.
        cancel: called after a signal, when all records are being closed; tells ``work`` to end, and
            waits for nothing. If it cannot, that is logged: it is the signal that ends the command.
    """
    result: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            errors.append(error)
        done.set()

    try:
        threading.Thread(target=run, name="morel-work", daemon=True).start()
        while not done.wait(POLL_S):  # `Thread.join`, interrupted, takes the thread for ended
            look()
    except KeyboardInterrupt:
        close_records()
        if not done.is_set():
            try:
                cancel()
            except Exception as error:
                _logger.warning("what runs cannot be told to end: %s", error)
            done.wait(LEAVE_S)
        raise
    if errors:
        raise errors[0]
    return result[0]
