"""Ray Tune's own state of a search: pickled by Tune, sealed here, and refused unless it is ours.

Whoever writes a file of it has code run in the next driver that resumes the search. On a local path
the filesystem says who that is: the search's folder and these files belong to us, and nobody else
may write them. An object store does not: there it is the key in MOREL_STATE_KEY, with which each
file is sealed (HMAC-SHA256). Without a key the seal is a SHA-256, which finds damage and no malice.

A seal stands in its file, so that the two are never of different versions.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pyarrow.fs import FileType

from morel_core.errors import MorelError
from orchestrator import storage

KEY = "MOREL_STATE_KEY"
STATE = "experiment_state-*.json"
"""The trials; the newest such file says where a search stands."""
SEALED = (STATE, "search_gen_state-*.json", "searcher-state-*.pkl")
"""What Tune writes and reads."""
PICKLED = "_dict_checkpoint.pkl"
"""What Tune would unpickle in a checkpoint."""
FOREIGN = ("callback-states-*.pkl", "tuner.pkl")
"""What it would read as well, but never writes here."""
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_JSON = re.compile(rb'\{"morel_seal": "([\w-]+)", ')
_PICKLE = b"morel_seal "
_logger = logging.getLogger(__name__)


def warn_without_key(folder: str) -> None:
    """Say so where nothing but a key could tell who has written the state in ``folder``."""
    if storage.is_remote(folder) and not os.environ.get(KEY):
        _logger.warning(
            "%s: whoever may write there can replace Ray Tune's state, and have code run when the "
            "search is resumed: set %s to a secret text in the environment of its drivers",
            folder,
            KEY,
        )


def seal(folder: str, session: str) -> None:
    """Seal what Tune has just written into its local ``folder``, for this user alone."""
    for pattern in SEALED:
        path = Path(folder, pattern.replace("*", session))
        if not path.exists():
            continue
        content = path.read_bytes()
        mark = _seal(path.name, content)
        if content.startswith(b"{"):  # where JSON may hold pickles
            content = b'{"morel_seal": "' + mark + b'", ' + content[1:]
        else:  # nothing after its end is read of a pickle
            content += _PICKLE + mark
        storage.write(str(path), content, guard=False)
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)


def check(folder: str) -> bool:
    """Whether ``folder``, a local path or a URI, holds a state of Tune's; if so, it is ours.

    Raises:
        MorelError: one of its files is not, or is damaged. Nothing of it has been unpickled.
    """
    if not storage.is_remote(folder):
        for name in _state(folder):
            _check_owner(Path(folder), name)
    return check_copy(folder)


def check_copy(folder: str) -> bool:
    """`check` of what Tune has fetched into a ``folder`` of its own."""
    names = _state(folder)
    for name in names:
        _check_seal(folder, name)
    return any(fnmatch(name, STATE) for name in names)


def check_checkpoint(checkpoint: Any) -> None:
    """Raise `MorelError` at a checkpoint with a pickle that Tune would load: none of ours."""
    path = f"{checkpoint.path}/{PICKLED}"
    if checkpoint.filesystem.get_file_info(path).type != FileType.NotFound:
        raise MorelError(
            f"{path}: a pickled checkpoint, which this project never writes: refused unread; look "
            "who has put it there, and delete it"
        )


def _state(folder: str) -> list[str]:
    """Names of the files that Tune would unpickle."""
    patterns = (*SEALED, *FOREIGN)
    return [n for n in storage.names(folder) if any(fnmatch(n, pattern) for pattern in patterns)]


def _check_seal(folder: str, name: str) -> None:
    content, found = _split(storage.read(f"{folder}/{name}") or b"")
    if any(fnmatch(name, pattern) for pattern in FOREIGN) or not found:
        raise _refused(folder, name, "it carries no seal, so somebody else has written it")
    if hmac.compare_digest(found, _seal(name, content)):
        return
    kind, asked = found.partition(b"-")[0], bool(os.environ.get(KEY))
    if kind == b"hmac" and not asked:
        why = f"it is sealed with a key: set {KEY}"
    elif kind != b"hmac" and asked:
        why = f"it is not sealed with the key in {KEY}"
    else:
        why = "its seal does not fit: it is damaged, or somebody has tampered with it"
        why += f", or {KEY} is another one" if asked else ""
    raise _refused(folder, name, why)


def _check_owner(folder: Path, name: str) -> None:
    with tempfile.TemporaryFile(dir=folder) as probe:  # NFS may know us by another number
        ours = os.fstat(probe.fileno()).st_uid
    above, here = folder.stat(), (folder / name).lstat()
    closed = not above.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    if above.st_uid != ours or above.st_mode & OTHERS_WRITE:
        raise _refused(str(folder), name, "others may write its folder (chmod 700 it)")
    if not stat.S_ISREG(here.st_mode):
        raise _refused(str(folder), name, "it is no plain file")
    if here.st_uid != ours or (here.st_mode & OTHERS_WRITE and not closed):
        raise _refused(str(folder), name, f"others may write it (user {here.st_uid} owns it)")


def _refused(folder: str, name: str, why: str) -> MorelError:
    return MorelError(
        f"{folder}/{name}: this state of Ray Tune's is refused unread: {why}; if it was a crash, "
        "move the newest experiment_state-*, search_gen_state-* and searcher-state-* away to go on "
        "from the ones before (without any, trials are trained anew in their records)"
    )


def _seal(name: str, content: bytes) -> bytes:
    text, key = name.encode() + b"\0" + content, os.environ.get(KEY, "").encode()
    if key:
        return b"hmac-" + hmac.new(key, text, "sha256").hexdigest().encode()
    return b"sha256-" + hashlib.sha256(text).hexdigest().encode()


def _split(content: bytes) -> tuple[bytes, bytes]:
    """What was sealed, and its seal; empty if there is none."""
    if match := _JSON.match(content):
        return b"{" + content[match.end() :], match[1]
    before, _, mark = content.rpartition(_PICKLE)
    return before, mark if before else b""
