"""Files at a local path or a pyarrow URI (s3://, gs://), alike."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import logging
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from morel_core.errors import MorelError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")
_logger = logging.getLogger(__name__)

STORES = {"s3": "?allow_delayed_open=true", "gs": "?retry_limit_seconds=30"}
"""Schemes of object stores, with pyarrow's options: by default it writes an S3 object in three
requests, one after the other, and tries for a quarter of an hour to reach Google's storage."""
REASON_CHARS = 200
PAUSES_S = (1.0, 5.0, 20.0)
"""Between the attempts of a request to a store; each has some seconds, and attempts of its own."""
PRIVATE = 0o700  # Tune's pickled state lies here: nobody else may write it
SETTLE_S = 2.0
"""How long `create` waits on an object store before it believes what it wrote."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What filesystems say that know no hard links, such as some in user space."""


class Guard(Protocol):
    """Says whether this process may still change a folder."""

    @property
    def number(self) -> int:
        """Of the lease that it goes by, from 1; a later lease has a higher one."""
        ...

    def check(self) -> None:
        """Raise a `MorelError` if not."""
        ...


_guards: list[tuple[str, Guard]] = []


@contextlib.contextmanager
def guarded(folder: str, guard: Guard) -> Generator[None]:
    """Inside, ``guard`` is asked before anything in ``folder`` is changed by this process."""
    entry = (folder, guard)
    _guards.append(entry)
    try:
        yield
    finally:
        _guards.remove(entry)


def check_guard(path: str) -> int:
    """The number of the lease under which ``path`` may be changed; 0: nothing guards it.

    Raises what a guard raises that forbids it.
    """
    number = 0
    for folder, guard in list(_guards):
        if path == folder or path.startswith(f"{folder}/"):
            guard.check()
            number = max(number, guard.number)
    return number


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URI of an object store."""
    return "://" in path


def uri(storage_path: str, inside: str) -> str:
    """A path that Ray gives without its scheme, with the scheme of ``storage_path``."""
    if not is_remote(storage_path) or is_remote(inside):
        return inside
    return f"{storage_path.partition('://')[0]}://{inside}"


def check_writable(path: str) -> None:
    """Raise `MorelError` unless ``path`` can be written; a local folder is made.

    An object store is really written to, and has some seconds to answer.
    """
    if is_remote(path):
        _check_remote(path)
        return
    try:
        _make_private(Path(path))
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise MorelError(
            f"storage_path = {path!r}: cannot be written ({error.strerror}): "
            "choose another folder with storage_path=/some/folder"
        ) from None


def write(path: str, content: bytes, *, guard: bool = True) -> None:
    """Write a file, and the folders above it; it is there whole or not at all.

    Without ``guard`` it is written by whoever decides on that.
    """

    def put() -> None:
        if guard:  # asked again before each attempt: time has passed
            check_guard(path)
        _put(path, content)

    if is_remote(path):
        patiently(put)
        return
    if guard:
        check_guard(path)
    with _beside(Path(path), content) as written:
        written.replace(path)


@contextlib.contextmanager
def _beside(target: Path, content: bytes) -> Generator[Path]:
    """``content`` on disk, under a name of its own beside ``target``."""
    _make_private(target.parent)
    beside = target.with_name(f".{uuid.uuid4().hex}-{target.name}")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def _make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone."""
    for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
        missing.mkdir(mode=PRIVATE, exist_ok=True)
    folder.mkdir(exist_ok=True)  # raises where it is a file


def _put(path: str, content: bytes) -> None:
    """An object appears when its stream is closed."""
    system, inside = open_filesystem(path)
    with system.open_output_stream(inside) as stream:
        stream.write(content)


def patiently(request: Callable[[], T]) -> T:
    """What ``request`` to a store returns, which may fail for half a minute: a search goes on."""
    for pause in PAUSES_S:
        try:
            return request()
        except FileNotFoundError:
            raise
        except OSError as error:
            _logger.warning("%s; tried again in %g s", _reason(str(error)), pause)
            time.sleep(pause)
    return request()


def create(path: str, content: bytes) -> bool:
    """Write a file that is not there yet, whole; False if it is there, or another was faster.

    ``content`` must be unlike that of anybody else. pyarrow can create no object of a store under
    the condition that there is none. There each writes and, after `SETTLE_S`, reads back: the last
    one has it. A write that takes longer to arrive may hit the file of one that has read back
    already; so who was that slow gives up, and who has the file finds out when it reads it again.
    """
    if is_remote(path):
        began = time.monotonic()
        if read_text(path) is not None:
            return False
        write(path, content, guard=False)
        in_time = time.monotonic() - began < SETTLE_S
        time.sleep(SETTLE_S)
        return in_time and read_text(path) == content.decode()
    target = Path(path)
    with _beside(target, content) as written:
        try:
            os.link(written, target)  # atomic, on NFS too, and refused where there is one
        except FileExistsError:
            return target.read_bytes() == content  # NFS may lose the answer, and ask again
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_in_place(target, content)
    return True


def _create_in_place(target: Path, content: bytes) -> bool:
    """`create` where there are no hard links: a reader may find the file half written."""
    try:
        with target.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def read(path: str) -> bytes | None:
    """The content of a file, or None if there is none."""
    system, inside = open_filesystem(path)

    def once() -> bytes:
        with system.open_input_stream(inside) as stream:
            return stream.read()

    try:
        return patiently(once) if is_remote(path) else once()
    except FileNotFoundError:
        return None


def read_text(path: str) -> str | None:
    """The text of a file, or None if there is none; what is no text has marks in its place."""
    content = read(path)
    return None if content is None else content.decode(errors="replace")


def names(folder: str, *, patient: bool = True) -> list[str]:
    """Names of the files and folders in ``folder``, sorted; none where there is no such folder.

    Who is not ``patient`` does not wait for a store that is away.
    """
    from pyarrow.fs import FileSelector

    def once() -> list[str]:
        system, inside = open_filesystem(folder)
        found = system.get_file_info(FileSelector(inside, allow_not_found=True))
        return sorted(info.base_name for info in found)

    return patiently(once) if patient and is_remote(folder) else once()


def delete(path: str) -> None:
    """Delete a file, if it is there."""
    check_guard(path)
    system, inside = open_filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        system.delete_file(inside)


def remove(folder: str) -> None:
    """Remove a folder and what is in it; one that is not there, or cannot be removed, is let be."""
    check_guard(folder)
    system, inside = open_filesystem(folder)
    with contextlib.suppress(OSError):
        system.delete_dir(inside)


def local_copy(location: str) -> Path:
    """A local path as it is; of what lies in a store a copy, which goes with this process."""
    if not is_remote(location):
        return Path(location)
    from pyarrow.fs import LocalFileSystem, copy_files

    folder = Path(tempfile.mkdtemp(prefix="morel-copy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    system, inside = open_filesystem(location)
    here = LocalFileSystem()
    patiently(
        lambda: copy_files(
            inside, str(folder), source_filesystem=system, destination_filesystem=here
        )
    )
    return folder


def open_filesystem(path: str) -> tuple[FileSystem, str]:
    """pyarrow's filesystem for a local path or a URI, and where ``path`` lies in it.

    Raises OSError or ValueError where there is no such filesystem.
    """
    from pyarrow.fs import FileSystem

    scheme, _, inside = path.partition("://")
    if scheme in STORES:
        bucket = inside.partition("/")[0]
        return _store(f"{scheme}://{bucket}{STORES[scheme]}"), inside.rstrip("/")
    return FileSystem.from_uri(path if inside else Path(path).absolute().as_uri())


@functools.cache  # a client keeps connections, and may have asked for its bucket's region
def _store(bucket: str) -> FileSystem:
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(bucket)[0]


def forget_stores() -> None:
    """Read the environment anew when a store is next used."""
    _store.cache_clear()


# --- what is wrong with a store -------------------------------------------------------------------


def _check_remote(path: str) -> None:
    place = f"{path}/.writable-{socket.gethostname()}-{os.getpid()}"
    try:
        _put(place, b"morel")
    except (OSError, ValueError) as error:
        said = str(error)
        raise MorelError(
            f"storage_path = {path!r}: cannot be written ({_reason(said)}): {_advice(said, path)}"
        ) from None
    with contextlib.suppress(OSError):  # whoever may write need not be allowed to delete
        delete(place)


def _reason(said: str) -> str:
    """The end of what pyarrow says: before it stands the request, with keys that are ours."""
    found = re.search(r"AWS Error (\w+) during", said)
    text = said.rpartition("; Details: ")[2] or said
    text = re.sub(r".*?operation: ", "", text, flags=re.DOTALL)
    text = (re.sub(r" \(Request ID:.*?\)", "", text).splitlines() or [""])[0].strip(" .")
    return f"{found[1]}: {text}" if found else text[:REASON_CHARS]


def _advice(said: str, path: str) -> str:
    if path.startswith("gs://"):
        return "GOOGLE_APPLICATION_CREDENTIALS must name the key of somebody who may write there"
    if not path.startswith("s3://"):
        return "write s3://bucket/folder, gs://bucket/folder or a local folder"
    if "NO_SUCH_BUCKET" in said:
        return "make this bucket first, or name another one with storage_path=s3://…"
    if "NETWORK_CONNECTION" in said:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        where = f"it is {endpoint}" if endpoint else "it is not set, which means Amazon's S3"
        return f"AWS_ENDPOINT_URL must be the http(s):// address of an S3 API; {where}"
    return (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role, must be of somebody "
        "who may write there"
    )
