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


class Journal:
    """Append-only events of any number of runs. Safe to use from several threads.

    One process writes at a time: it holds the lease of the folder above ``root``. What another one
    adds all the same, when it wakes up after its lease has run out, is dropped.

    Args:
        root: a local folder, a ``file://`` URI of one, or a pyarrow URI (``s3://``, ``gs://``).
            Nothing is created before the first append.
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
        self._keys: dict[str, set[str]] | None = None
        self._next: dict[str, int] = {}

    def append(self, run_id: str, kind: Kind, key: str, payload: Mapping[str, Any]) -> Event | None:
        """Make an event durable and return it, or None where ``(run_id, key)`` is there already.

        A resumed run repeats its epochs, and they are dropped here. Raises `MorelError` if the
        storage refuses, TypeError if ``payload`` holds anything but plain values.
        """
        check_run_id(run_id)
        with self._lock:
            keys = self._known()
            if key in keys.get(run_id, ()):
                return None
            seq = self._next.get(run_id, 0)
            line = Event(run_id, seq, kind, key, time.time(), dict(payload)).to_json()
            storage.check_guard(self.root)
            try:
                self._store.append(line.encode())
            except OSError as error:
                raise MorelError(
                    f"cannot write the run's journal in {self.root}: {error}; make the storage "
                    "writable (or free space) and start the same command again"
                ) from error
            keys.setdefault(run_id, set()).add(key)
            self._next[run_id] = seq + 1
        # Read back, so that the writer sees now what a replay will see.
        return Event.from_json(line)

    def events(self) -> Iterator[Event]:
        """Every event in the order of its append; what a crash has torn is left out."""
        try:
            yield from self._store.read()
        except OSError as error:
            raise MorelError(
                f"cannot read the run's journal in {self.root}: {error}; check the storage and "
                "its permissions"
            ) from error

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
    def append(self, line: bytes) -> None:
        """Make ``line`` durable after those before it; raises OSError."""
        ...

    def read(self) -> Iterator[Event]:
        """The events in order; raises OSError."""
        ...


class _FileStore:
    """One file, a line for each event, on disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._end = 0

    def append(self, line: bytes) -> None:
        descriptor = self._opened()
        if os.fstat(descriptor).st_size > self._end:  # of a driver that lost its lease since
            os.ftruncate(descriptor, self._end)
        try:
            written = os.pwrite(descriptor, line + b"\n", self._end)  # O_APPEND: at the true end
            if written != len(line) + 1:
                raise OSError(f"only {written} of {len(line) + 1} bytes were written")
        except OSError:
            os.ftruncate(descriptor, self._end)
            raise
        self._end += len(line) + 1

    def read(self) -> Iterator[Event]:
        return (event for event, _ in self._scan())

    def _scan(self) -> Iterator[tuple[Event, int]]:
        """Every event with the offset of its end."""
        if not self._path.exists():
            return
        unreadable: int | None = None
        with self._path.open("rb") as file:
            end = 0
            for number, line in enumerate(file, start=1):
                end += len(line)
                if not line.endswith(b"\n"):
                    return
                try:
                    event = Event.from_json(line)
                except ValueError:
                    unreadable = unreadable or number
                    continue
                if unreadable:  # not the torn end of a crash: something else wrote here
                    _logger.warning("%s: line %d is unreadable, left out", self._path, unreadable)
                    unreadable = None
                yield event, end

    def _opened(self) -> int:
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            for _, end in self._scan():
                self._end = end
            created = not self._path.exists()
            # A write returns when it is on disk (O_DSYNC): in one call, after which the interpreter
            # waits once, not three times, for its lock beside a busy writer thread.
            # Nor does a line land on another one, whatever its writer believes the file to hold.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC
            descriptor = os.open(self._path, flags, 0o644)
            os.ftruncate(descriptor, self._end)
            if created:
                _sync_folder(self._path.parent)
            self._descriptor = descriptor
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

    Each process that writes takes the number after the highest one there. Beyond the place at which
    a later writer began nothing of an earlier one counts.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._opened: tuple[FileSystem, str] | None = None
        self._next: int | None = None
        self._writer = 1

    def append(self, line: bytes) -> None:
        filesystem, folder = self._open()
        if self._next is None:
            filesystem.create_dir(folder, recursive=True)
            places = [_place(path) for path in self._paths()]
            self._next = 1 + max((place for place, _ in places), default=-1)
            self._writer = 1 + max((writer for _, writer in places), default=0)
        name = f"{folder}/{self._next:012d}-{self._writer:06d}.json"

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
        kept: list[str] = []
        newest = 0
        # Of two at one place the later writer's counts.
        for path in sorted(paths, key=lambda path: (_place(path)[0], -_place(path)[1])):
            if _place(path)[1] >= newest:
                newest = _place(path)[1]
                kept.append(path)
        return kept

    def _open(self) -> tuple[FileSystem, str]:
        if self._opened is None:
            filesystem, path = open_filesystem(self._root)
            self._opened = filesystem, f"{path.rstrip('/')}/events"
        return self._opened


def _place(path: str) -> tuple[int, int]:
    """(place in the journal, number of its writer) of an object."""
    place, _, writer = Path(path).stem.partition("-")
    return int(place), int(writer or 0)
