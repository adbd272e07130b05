"""Going on after a fault: which checkpoint is whole, and whether this node is about to go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileType

from morel_core.errors import MorelError

DAMAGED = "damaged"
"""Key of a report: which checkpoints were not whole, and from where training went on instead."""


def newest_whole(checkpoint: Any) -> tuple[Any | None, str]:
    """``checkpoint``, or the newest whole one beside it where it is gone or damaged.

    Ray writes its state behind the checkpoints: where a driver was killed, it may name one that has
    since made room for newer ones, and the newest may be half uploaded.

    Args:
        checkpoint: of Ray Train or of Tune, in a folder with the run's others.

    Returns:
        The checkpoint, None if none is whole, and what is to be said; empty if the one that was
        asked for is whole or simply gone.
    """
    files, asked = checkpoint.filesystem, checkpoint.path
    there = files.get_file_info(asked).type != FileType.NotFound
    wrong = _damage(checkpoint) if there else ""
    if there and not wrong:
        return checkpoint, ""
    beside = FileSelector(asked.rpartition("/")[0], allow_not_found=True)
    inside = [info for info in files.get_file_info(beside) if info.type == FileType.Directory]
    for path in sorted((i.path for i in inside if "/checkpoint_" in i.path), reverse=True):
        candidate = type(checkpoint)(path, files)
        if path != asked and not _damage(candidate):
            return candidate, wrong and f"{wrong}; went on from {path.rpartition('/')[2]}"
    return None, f"{wrong or f'{asked}: gone'}; none before it is whole: began anew"


def _damage(checkpoint: Any) -> str:
    """What is wrong with a checkpoint; empty if it is whole."""
    from morel_core.checkpoint import verify  # needs torch; who reads `DAMAGED` does not

    try:
        with checkpoint.as_directory() as folder:
            verify(Path(folder))
    except (MorelError, OSError) as error:
        name = checkpoint.path.rpartition("/")[2]
        return f"{name} is damaged ({str(error).rpartition('/')[2]})"
    return ""


def draining() -> bool:
    """Whether Ray was told that this process's node is about to go, as by a cloud's spot notice."""
    import ray
    from ray._private.state import state

    if not ray.is_initialized():  # else the question would start one
        return False
    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()
