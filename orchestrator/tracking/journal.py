"""The durable list of everything that is to be recorded, beside the run's storage.

What `Journal.append` has returned is on disk: it survives the process, and a torn write is never
seen. A local journal is one file of JSON lines; an object store, which cannot append, gets one
object for each event.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.storage import open_filesystem, patiently
from orchestrator.tracking.events import Event, Kind, check_run_id

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_logger = logging.getLogger(__name__)

_READERS = 16
"""Objects read at a time: each is a round trip or two to the store."""
_AHEAD = 10 * _READERS
"""Objects asked for before the first of them is needed."""
_SPOILED = b"\0\n"
"""Ends a torn line, which may lack no more than its end: no JSON holds this."""


class Journal:
    """Append-only events of any number of runs. Safe to use from several threads.

    One process writes at a time: it holds the lease of the folder above ``root``. What an earlier
    holder adds all the same, when it wakes up in the middle of a write, does not count: events
    carry the number of the lease, and after one of a later lease those of an earlier are left out.

    Args:
        root: a local folder, a ``file://`` URI of one, or a pyarrow URI (``s3://``, ``gs://``).
            Nothing is created before `begin` or the first append.
        one_object_per_event: keep events as an object store would; default: as ``root`` needs.
    """

    def __init__(self, root: str, *, one_object_per_event: bool | None = None) -> None:
        remote = "://" in root and not root.startswith("file://")
        self.root = root
        self._store: _Store
        if one_object_per_event or (one_object_per_event is None and remote):
            self._store = _ObjectStore(root)
        else:
            self._store = _FileStore(_local_path(root) / "events.jsonl")
        self._lock = threading.Lock()
        self._begun = False
        self._writer = 0
        self._keys: dict[str, set[str]] | None = None
        self._next: dict[str, int] = {}

    def begin(self) -> None:
        """Under a lease: let nothing more of its earlier holders count.

        Whoever goes by what it reads, and then appends, begins before it reads. Raises `MorelError`
        if the storage refuses, or the lease was lost.
        """
        with self._lock:
            self._begin()

    def append(self, run_id: str, kind: Kind, key: str, payload: Mapping[str, Any]) -> Event | None:
        """Make an event durable and return it, or None where ``(run_id, key)`` is there already.

        A resumed run repeats its epochs, and they are dropped here. Raises `MorelError` if the
        storage refuses or the lease was lost, TypeError if ``payload`` holds anything but plain
        values.
        """
        check_run_id(run_id)
        with self._lock:
            self._begin()
            keys = self._known()
            if key in keys.get(run_id, ()):
                return None
            seq = self._next.get(run_id, 0)
            event = Event(run_id, seq, kind, key, time.time(), dict(payload), self._writer)
            line = self._add(event)
            keys.setdefault(run_id, set()).add(key)
            self._next[run_id] = seq + 1
        # Read back, so that the writer sees now what a replay will see.
        return Event.from_json(line)

    def events(self) -> Iterator[Event]:
        """Every event in the order of its append; what a crash has torn is left out."""
        newest = 0
        try:
            for event in self._store.read():
                newest = max(newest, event.writer)
                if event.kind != "lease" and event.writer in (0, newest):
                    yield event
        except OSError as error:
            raise MorelError(
                f"cannot read the run's journal in {self.root}: {error}; check the storage and "
                "its permissions"
            ) from error

    def _begin(self) -> None:
        number = storage.check_guard(self.root)
        if self._begun or not number:
            return
        # Numbers begin anew where somebody has deleted the leases.
        self._writer = max(number, *(event.writer for event in self._store.read()), 0)
        self._add(Event("", 0, "lease", f"lease:{number}", time.time(), {}, self._writer))
        self._begun = True

    def _add(self, event: Event) -> str:
        line = event.to_json()
        try:
            storage.check_guard(self.root)
            self._store.append(line.encode(), event.writer)
        except OSError as error:
            self._keys = None  # it may be there all the same
            raise MorelError(
                f"cannot write the run's journal in {self.root}: {error}; make the storage "
                "writable (or free space) and start the same command again"
            ) from error
        return line

    def _known(self) -> dict[str, set[str]]:
        if self._keys is None:
            keys: dict[str, set[str]] = {}
            for event in self.events():
                keys.setdefault(event.run_id, set()).add(event.key)
                self._next[event.run_id] = max(self._next.get(event.run_id, 0), event.seq + 1)
            self._keys = keys
        return self._keys


def _local_path(root: str) -> Path:
    return Path(unquote(urlsplit(root).path) if root.startswith("file://") else root)


class _Store(Protocol):
    def append(self, line: bytes, writer: int) -> None:
        """Make the event ``line`` durable after those before it; raises OSError."""
        ...

    def read(self) -> Iterator[Event]:
        """The events in order; raises OSError."""
        ...


class _FileStore:
    """One file, a line for each event, on disk before `append` returns.

    Nothing is ever written over or cut off: whoever does so may be one that was replaced in the
    meantime. A line that a crash or a full disk has torn is spoiled by the next one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._torn = False

    def append(self, line: bytes, writer: int) -> None:
        descriptor = self._opened()
        content = _SPOILED * self._torn + line + b"\n"
        self._torn = True
        written = os.write(descriptor, content)
        if written != len(content):
            raise OSError(f"only {written} of {len(content)} bytes were written")
        self._torn = False

    def read(self) -> Iterator[Event]:
        if not self._path.exists():
            return
        unreadable: int | None = None
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(_SPOILED) or not line.endswith(b"\n"):
                    continue
                try:
                    event = Event.from_json(line)
                except ValueError:
                    unreadable = unreadable or number
                    continue
                if unreadable:  # not the torn end of a crash: something else wrote here
                    _logger.warning("%s: line %d is unreadable, left out", self._path, unreadable)
                    unreadable = None
                yield event

    def _opened(self) -> int:
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            created = not self._path.exists()
            # A write returns when it is on disk (O_DSYNC): in one call, after which the interpreter
            # waits once, not three times, for its lock beside a busy writer thread.
            # Nor does a line land on another one, whatever its writer believes the file to hold.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC
            self._descriptor = os.open(self._path, flags, 0o644)
            size = os.fstat(self._descriptor).st_size
            self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
            if created:
                _sync_folder(self._path.parent)
        return self._descriptor

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the entry of a new file durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _ObjectStore:
    """A folder of objects, one event each, named by place in the journal and number of the writer.

    So nothing is ever written over by another writer. Of two at one place the later writer's comes
    first.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._opened: tuple[FileSystem, str] | None = None
        self._next: int | None = None

    def append(self, line: bytes, writer: int) -> None:
        filesystem, folder = self._open()
        if self._next is None:
            filesystem.create_dir(folder, recursive=True)
            self._next = 1 + max((_place(path)[0] for path in self._paths()), default=-1)
        name = f"{folder}/{self._next:012d}-{writer:06d}.json"

        def put() -> None:
            storage.check_guard(self._root)
            with filesystem.open_output_stream(name) as stream:
                stream.write(line)

        patiently(put)  # the same object again, if it was there after all
        self._next += 1

    def read(self) -> Iterator[Event]:
        paths = self._paths()
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(paths), _AHEAD):  # somebody may want the first event alone
                some = paths[start : start + _AHEAD]
                for path, content in zip(some, pool.map(self._content, some), strict=True):
                    try:
                        event = Event.from_json(content)
                    except ValueError:
                        _logger.warning("%s is unreadable, left out", path)
                        continue
                    yield event

    def _content(self, path: str) -> bytes:
        with self._open()[0].open_input_stream(path) as stream:
            return stream.read()

    def _paths(self) -> list[str]:
        from pyarrow.fs import FileSelector

        filesystem, folder = self._open()
        found = filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
        paths = [info.path for info in found if info.base_name.endswith(".json")]
        return sorted(paths, key=_place)

    def _open(self) -> tuple[FileSystem, str]:
        if self._opened is None:
            filesystem, path = open_filesystem(self._root)
            self._opened = filesystem, f"{path.rstrip('/')}/events"
        return self._opened


def _place(path: str) -> tuple[int, int]:
    """(place in the journal, negative number of its writer) of an object."""
    place, _, writer = Path(path).stem.partition("-")
    return int(place), -int(writer or 0)
