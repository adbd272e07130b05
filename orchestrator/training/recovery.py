"""Going on after a fault: which checkpoint is whole, and whether this node is about to go."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pyarrow.fs import FileSelector, FileType

from morel_core.errors import MorelError
from orchestrator.storage import delete, names, read_text

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's, in the folder of its run."""
DAMAGED = "damaged"
"""Key of a report: which checkpoints were not whole, and from where training went on instead."""

_logger = logging.getLogger(__name__)


def drop_torn_snapshot(folder: str) -> None:
    """Delete Ray Train's list of a run's checkpoints where Ray Train could not begin with it.

    It is written over itself: a driver that is killed meanwhile leaves half of it, or none. The
    workers find the checkpoints of a run of its own without it; see `checkpoint_to_start_from`.
    """
    text = read_text(f"{folder}/{SNAPSHOT}")
    if text is None:
        return
    try:
        listed = {
            result["checkpoint_dir_name"] for result in json.loads(text)["checkpoint_results"]
        }
        usable = listed <= set(names(folder))
    except (ValueError, TypeError, KeyError):
        usable = False
    if not usable:
        _logger.warning("%s: Ray Train's list of checkpoints is torn; they are looked for", folder)
        delete(f"{folder}/{SNAPSHOT}")


def checkpoint_to_start_from(stretch: Mapping[str, Any]) -> tuple[Any | None, str]:
    """What the workers of Ray Train go on from, as `newest_whole`: the first one looks.

    Args:
        stretch: of a longer run, a `population_trial.Stretch` of `orchestrator.search`: it begins
            with its own ``checkpoint``, or goes on from what Ray Train knows of it. Empty for a run
            of its own, which goes on from the newest in its folder.
    """
    from ray import train
    from ray.train.collective import broadcast_from_rank_zero

    known, storage = train.get_checkpoint(), cast(Any, train.get_context()).get_storage()
    found: Any = None
    if train.get_context().get_world_rank() == 0:
        if stretch:
            first = stretch["checkpoint"]
            start = known or (train.Checkpoint(first) if first else None)
            start, said = newest_whole(start) if start else (None, "")
        else:
            start, said = newest_saved(storage, known)
        found = (start.path if start else None, said)
    path, said = broadcast_from_rank_zero(found)
    return (train.Checkpoint(path, storage.storage_filesystem) if path else None), said


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
    for path in _newest_first(files, asked.rpartition("/")[0]):
        candidate = type(checkpoint)(path, files)
        if path != asked and not _damage(candidate):
            return candidate, wrong and f"{wrong}; went on from {path.rpartition('/')[2]}"
    return None, f"{wrong or f'{asked}: gone'}; none before it is whole: began anew"


def newest_saved(storage: Any, known: Any | None) -> tuple[Any | None, str]:
    """`newest_whole` of a run's folder, whether Ray Train has heard of it or not.

    It hears of a checkpoint when all workers have reported: one that was written because a worker's
    node goes may be there when that worker is not any more.

    Args:
        storage: of Ray Train, the run's.
        known: the checkpoint that Ray Train names; None if none.
    """
    from ray.train import Checkpoint

    files = storage.storage_filesystem
    for path in _newest_first(files, storage.experiment_fs_path):
        if known is not None and path <= known.path:
            break
        candidate = Checkpoint(path, files)
        if not _damage(candidate):
            return candidate, ""
    return newest_whole(known) if known is not None else (None, "")


def _newest_first(files: Any, folder: str) -> list[str]:
    """Paths of a folder's checkpoints; Ray numbers or dates their names."""
    inside = files.get_file_info(FileSelector(folder, allow_not_found=True))
    folders = [info.path for info in inside if info.type == FileType.Directory]
    return sorted((path for path in folders if "/checkpoint_" in path), reverse=True)


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
