"""Who drives a run: a lease in its folder, kept up by a heartbeat and fenced by a number.

``<folder>/lease/<number>.json`` belongs to one driver. It is created by whoever takes the lease,
under the number after the highest one there, and then rewritten by that driver alone; so taking
it over needs nothing but a file that only one can create. Who finds a higher number than its own
has lost the lease, however long it slept: `orchestrator.storage` asks before each write into the
folder, workers ask before they save, and the journal's events carry the number.

Clocks of different machines are never compared: a lease has run out when its file was seen
unchanged for as long as it lasts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.driver.ending import interrupt_main

BEATS = 3
"""Heartbeats in the time that a lease lasts."""
POLL_S = 0.5
KEPT = 2
"""Leases of earlier drivers that are kept, for people to look at."""

_logger = logging.getLogger(__name__)


class LeaseHeldError(MorelError):
    """Another driver is at work."""


class LeaseLostError(MorelError):
    """This driver was silent for too long, and another one has taken over."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who has a lease, as its file says."""

    host: str
    machine: str
    """What tells machines, and containers that cannot see each other's processes, apart."""
    pid: int
    began: float | None
    """When that process began, by a clock of its machine: process ids are used again."""
    since: float
    heard: float
    """Unix seconds of the holder's clock: its newest heartbeat."""
    seconds: float
    """How long the lease lasts without one."""
    nonce: str
    released: bool = False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        quiet = time.time() - self.heard
        return (
            f"{self.host}, process {self.pid}, since {since}, last heartbeat {quiet:.0f} s ago "
            f"(its lease lasts {self.seconds:g} s)"
        )

    @property
    def lives(self) -> bool | None:
        """Whether its process is there; None where that cannot be seen from here."""
        if self.began is None or self.machine != _machine():
            return None
        return _began(self.pid) == self.began

    @property
    def fresh(self) -> bool:
        """Whether its process is there, and was heard of lately by the same clock."""
        return bool(self.lives) and time.time() - self.heard < self.seconds / 2

    @property
    def is_free(self) -> bool:
        """Whether it was given back, or its process is gone."""
        return self.released or self.lives is False


@dataclass(frozen=True)
class Fence:
    """A lease that was taken, for whoever works for its holder in another process."""

    folder: str
    number: int
    nonce: str

    def check(self) -> None:
        """Raise `LeaseLostError` if another driver has the lease by now."""
        newest = max(_numbers(self.folder), default=self.number)
        if newest < self.number:  # deleted by hand: the next driver would find nothing
            return
        found = _read(self.folder, newest)
        if newest > self.number or (found is not None and found.nonce != self.nonce):
            by = f": it is {found}" if found else ""
            raise LeaseLostError(
                f"{self.folder}: another driver has taken over{by}; this one was silent for longer "
                "than its lease (cluster.lease_s) and ends without writing anything more"
            )


def holder(folder: str) -> Holder | None:
    """Who drives the run in ``folder``; None if nobody does, as far as its lease tells."""
    numbers = _numbers(folder)
    found = _read(folder, max(numbers)) if numbers else None
    return None if found is None or found.is_free else found


@contextmanager
def held(folder: str, seconds: float, *, covers: str | None = None) -> Generator[Fence]:
    """Inside, this process is the only driver of the run in ``folder``.

    Args:
        folder: the run's own, a local path or a URI.
        seconds: how long the lease lasts without a heartbeat.
        covers: the folder whose writes it guards; default: ``folder``.

    Raises:
        LeaseHeldError: another driver has it. One that is dead is waited for, until its lease runs
            out; on this machine that is seen at once.
        LeaseLostError: from any write into ``folder`` through `orchestrator.storage`, when this
            process was silent for longer than ``seconds`` and another driver came.
    """
    keeper = _Keeper(folder, seconds)
    keeper.take()
    try:
        try:
            with storage.guarded(covers or folder, keeper):
                keeper.thread.start()
                yield keeper.fence
        finally:
            keeper.release()
    except KeyboardInterrupt:  # of the heartbeat; it may come while a write says the same
        if keeper.lost is not None:
            raise keeper.lost from None
        raise


class _Keeper:
    """Takes, keeps and gives back one lease."""

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        now = time.time()
        self.own = Holder(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            began=_began(os.getpid()),
            since=now,
            heard=now,
            seconds=seconds,
            nonce=uuid.uuid4().hex,
        )
        self.fence = Fence(folder, 0, self.own.nonce)
        self.thread = threading.Thread(target=self._beat, name="morel-lease", daemon=True)
        self._in_main = threading.current_thread() is threading.main_thread()
        self._confirmed = 0.0
        self._ended = threading.Event()
        self.lost: LeaseLostError | None = None

    @property
    def number(self) -> int:
        """See `storage.Guard`."""
        return self.fence.number

    def take(self) -> None:
        """Wait for a dead holder's lease to run out; raises `LeaseHeldError` at a living one's."""
        while True:
            newest = max(_numbers(self.folder), default=0)
            if newest:
                self._wait_out(newest)
            asked = _now()
            self.own = dataclasses.replace(self.own, heard=time.time())
            if self._create(newest + 1):
                break  # else another one was faster: it is a holder like any other
        self.fence = Fence(self.folder, newest + 1, self.own.nonce)
        self._confirmed = asked
        for number in _numbers(self.folder):
            if number <= newest - KEPT:
                storage.delete(_path(self.folder, number))

    def check(self) -> None:
        """Raise `LeaseLostError` if the lease is another's; it is asked for only after a silence.

        Nobody takes over before the lease has run out, and that begins with a heartbeat.
        """
        if self.lost is not None:
            raise self.lost
        if _now() - self._confirmed >= self.seconds / 2:
            self._renew()

    def release(self) -> None:
        """Give it back, so that the next driver need not wait."""
        self._ended.set()
        if self.thread.ident is not None:
            self.thread.join(self.seconds)
        with contextlib.suppress(MorelError, OSError):  # it runs out by itself
            self.fence.check()
            self._write(dataclasses.replace(self.own, heard=time.time(), released=True))

    def _create(self, number: int) -> bool:
        try:
            return storage.create(_path(self.folder, number), _content(self.own))
        except OSError as error:
            raise MorelError(
                f"{self.folder}: no lease can be written ({error}): make the storage writable, or "
                "free space there"
            ) from error

    def _wait_out(self, number: int) -> None:
        """Return when lease ``number`` is free, or has a successor."""
        path, began = _path(self.folder, number), _now()
        first = storage.read_text(path)
        while True:
            text = storage.read_text(path)
            found = _parsed(text)
            if found is not None and found.is_free:
                return
            own = found is not None and found.nonce == self.own.nonce  # of an attempt of ours
            if text != first or (found is not None and found.fresh and not own):
                raise LeaseHeldError(self._refusal(found))
            lasts = max(self.seconds, found.seconds if found else 0.0)
            if _now() - began >= lasts or max(_numbers(self.folder), default=0) != number:
                return
            time.sleep(POLL_S)

    def _refusal(self, found: Holder | None) -> str:
        name = self.folder.rpartition("/")[2]
        return (
            f"{self.folder} is held by another driver on {found or 'another machine'}: wait for it "
            f"or end it (morel stop {name}, or a signal), or take another name (name=…)"
        )

    def _beat(self) -> None:
        while not self._ended.wait(self.seconds / BEATS):
            try:
                self._renew()
            except LeaseLostError:
                if self._in_main:  # it may wait for its workers, and write nothing for hours
                    interrupt_main()
                return
            except Exception as error:  # a storage that is away: the next write says so, too
                _logger.warning("the heartbeat of %s: %s", self.folder, error)

    def _renew(self) -> None:
        """Write a heartbeat, between two looks at whose the lease is.

        The second one is for NFS: a client that has written into a folder sees it as it is.
        """
        asked = _now()
        try:
            self.fence.check()
            self._write(dataclasses.replace(self.own, heard=time.time()))
            self.fence.check()
        except LeaseLostError as error:
            self.lost = error
            raise
        self._confirmed = max(self._confirmed, asked)

    def _write(self, content: Holder) -> None:
        storage.write(_path(self.folder, self.number), _content(content), guard=False)


def _content(holder: Holder) -> bytes:
    return json.dumps(dataclasses.asdict(holder), indent=2).encode()


def _path(folder: str, number: int) -> str:
    return f"{folder}/lease/{number:06d}.json"


def _numbers(folder: str) -> list[int]:
    stems = [name.removesuffix(".json") for name in storage.names(f"{folder}/lease")]
    return [int(stem) for stem in stems if stem.isdecimal()]


def _read(folder: str, number: int) -> Holder | None:
    """A lease; None if there is none of that number, or nobody can read it."""
    return _parsed(storage.read_text(_path(folder, number)))


def _parsed(text: str | None) -> Holder | None:
    try:
        return Holder(**json.loads(text or ""))
    except (ValueError, TypeError):
        return None


def _now() -> float:
    """Seconds that go on while this process, or its machine, sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def _machine() -> str:
    """The same for all processes that see each other's ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _began(pid: int) -> float | None:
    """When a process began, in clock ticks since its machine did; None if there is none.

    Or if this is not Linux: then a dead driver's lease runs out, as if it was elsewhere.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else float(rest[18])  # killed, but nobody has asked how it ended
