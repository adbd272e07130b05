"""Files at a local path or a pyarrow URI (s3://, gs://), alike."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from morel_core.errors import MorelError

PRIVATE = 0o700  # Tune's pickled state lies here: nobody else may write it


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URI of an object store."""
    return "://" in path


def uri(storage_path: str, inside: str) -> str:
    """A path that Ray gives without its scheme, with the scheme of ``storage_path``."""
    if not is_remote(storage_path) or is_remote(inside):
        return inside
    return f"{storage_path.partition('://')[0]}://{inside}"


def check_writable(path: str) -> None:
    """Raise `MorelError` unless ``path`` can be written; a local folder is made."""
    if is_remote(path):
        return  # Ray checks a remote path with a marker file before a run starts
    try:
        Path(path).mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise MorelError(
            f"storage_path = {path!r}: cannot be written ({error.strerror}): "
            "choose another folder with storage_path=/some/folder"
        ) from None


def write(path: str, content: bytes) -> None:
    """Write a file, and the folders above it; it is there whole or not at all."""
    if is_remote(path):  # an object appears when its stream is closed
        system, inside = _open(path)
        with system.open_output_stream(inside) as stream:
            stream.write(content)
        return
    target = Path(path)
    target.parent.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    beside = target.with_name(f".{os.getpid()}-{target.name}")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(target)


def read_text(path: str) -> str | None:
    """The text of a file, or None if there is none."""
    system, inside = _open(path)
    try:
        with system.open_input_stream(inside) as stream:
            return stream.read().decode()
    except FileNotFoundError:
        return None


def names(folder: str) -> list[str]:
    """Names of the files and folders in ``folder``, sorted; none where there is no such folder."""
    from pyarrow.fs import FileSelector

    system, inside = _open(folder)
    found = system.get_file_info(FileSelector(inside, allow_not_found=True))
    return sorted(info.base_name for info in found)


def delete(path: str) -> None:
    """Delete a file, if it is there."""
    system, inside = _open(path)
    with contextlib.suppress(FileNotFoundError):
        system.delete_file(inside)


def remove(folder: str) -> None:
    """Remove a folder and what is in it; one that is not there, or cannot be removed, is let be."""
    system, inside = _open(folder)
    with contextlib.suppress(OSError):
        system.delete_dir(inside)


def local_copy(location: str) -> Path:
    """A local folder with the content of ``location``; a local path as it is."""
    if not is_remote(location):
        return Path(location)
    from pyarrow.fs import copy_files

    folder = Path(tempfile.mkdtemp(prefix="morel-copy-"))
    copy_files(location, folder.as_uri())
    return folder


def _open(path: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(path if is_remote(path) else Path(path).absolute().as_uri())
