"""What of a finished run's or search's storage nobody needs any more, and its removal.

A checkpoint holds the newest and the best network of its trial. Kept are those of the winner, the
front, the verified and the tested trials and of those that are asked for; of every other trial that
has ended all go, and of the kept ones those that are not the recorded one. Records, evaluations and
exported models stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileType

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.config import RunConfig, absolute_storage, check_name
from orchestrator.driver.lease import held
from orchestrator.provenance.identity import FILE
from orchestrator.tracking import Journal

NUMBER = "morel.number"
CHECKPOINT = re.compile(r"checkpoint_[\d_.-]+")
"""Folders of Tune and of Ray Train; the file ``checkpoint_manager_…`` beside them is none."""


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """A folder that may go."""

    path: str
    size: int
    """Bytes."""
    why: str


@dataclass
class _Run:
    """A run as its journal has it: its newest tags."""

    run_id: str
    number: int | None
    tags: dict[str, str]
    ended: bool = False

    @property
    def trial(self) -> str:
        """The last part of its id: Tune's, unless a kill gave it another one since."""
        return self.run_id.rpartition("/")[2]


def clean(folder: str, keep: Sequence[int], *, delete: bool, seconds: float = 30.0) -> list[Doomed]:
    """What may go from the run's or search's ``folder``, and is gone if ``delete``.

    Args:
        folder: of one finished run or search, a local path or a URI.
        keep: numbers of trials to keep, beside those that are kept anyway.
        delete: do it.
        seconds: see `orchestrator.driver.lease.held`.

    Raises:
        MorelError: it is no such folder, a link, unfinished, or a driver is at work.
    """
    _check_folder(folder)
    with held(folder, seconds):
        doomed = sorted(_doomed(folder, keep), key=lambda found: found.path)
        for found in doomed:
            _check_inside(folder, found.path)
        for found in doomed if delete else []:
            storage.remove(found.path)
            if storage.names(found.path):
                raise MorelError(f"{found.path}: cannot be deleted: make the storage writable")
    return doomed


def folder_of(name: str, config: RunConfig) -> str:
    """The folder of a name in ``storage_path``, or of a path or URI as it is."""
    if "/" in name:
        return absolute_storage(name.rstrip("/"))
    check_name("name", name)
    return f"{config.storage_path}/{name}"


def _check_folder(folder: str) -> None:
    if storage.read_text(f"{folder}/{FILE}") is None:
        raise MorelError(f"{folder}: no run or search: nothing there is deleted")
    if not storage.is_remote(folder) and Path(folder).is_symlink():
        raise MorelError(f"{folder}: a link: name the folder itself, by storage_path=…")


def _check_inside(folder: str, path: str) -> None:
    """Raise `MorelError` if ``path`` leads out of ``folder``."""
    if storage.is_remote(folder):
        return
    if Path(path).resolve() != Path(folder).resolve() / Path(path).relative_to(folder):
        raise MorelError(f"{path}: leads out of {folder} by a link: nothing is deleted")


def _doomed(folder: str, keep: Sequence[int]) -> Iterator[Doomed]:
    runs = _runs(folder)
    whole = next(iter(runs.values()), None)
    if whole is None or whole.tags.get("morel.state") != "finished":
        state = "empty" if whole is None else whole.tags.get("morel.state", "unfinished")
        raise MorelError(
            f"{folder}: is {state}: only what has finished is cleaned, as the rest goes on from "
            "its checkpoints"
        )
    if "morel.search" not in whole.tags:
        recorded = _recorded(whole, folder)
        if _is_there(folder, recorded):
            yield from _but(folder, folder, recorded, "older than the recorded checkpoint")
        return
    trials = {run.run_id: run for run in runs.values() if run.number is not None}
    unknown = sorted(set(keep) - {run.number for run in trials.values()})
    if unknown:
        raise MorelError(f"--keep {unknown[0]}: there is no trial of that number")
    needed = _needed(folder, whole, trials)
    for run in trials.values():
        if not run.ended:
            continue
        recorded = _recorded(run, folder)
        places = {f"trial_{run.trial}", *_first(recorded)}
        places |= {
            name for name in storage.names(folder) if f"{name}_".startswith(f"workers_{run.trial}_")
        }
        kept = run.run_id in needed or run.number in keep
        if kept and not _is_there(folder, recorded):
            continue
        for place in sorted(places):
            why = f"trial {run.number} " + ("has a newer one" if kept else "won nothing")
            yield from _but(f"{folder}/{place}", folder, recorded if kept else "", why)


def _needed(folder: str, whole: _Run, trials: dict[str, _Run]) -> set[str]:
    """Ids of the trials whose networks are worth something."""
    content: Any = json.loads(storage.read_text(f"{folder}/front.json") or "{}")
    front = {point["run_id"] for point in content.get("points", [])}
    marked = {
        run_id
        for run_id, run in trials.items()
        if {"morel.verified.attacks", "morel.tested"} & run.tags.keys()
        or run.tags.get("morel.winner") == "true"
    }
    return {whole.tags.get("morel.winner_run", ""), *marked, *front}


def _but(place: str, folder: str, recorded: str, why: str) -> Iterator[Doomed]:
    """Checkpoints in ``place`` but for the ``recorded`` one, which is relative to ``folder``."""
    for name in storage.names(place):
        path = f"{place}/{name}"
        if CHECKPOINT.fullmatch(name) and path != f"{folder}/{recorded}":
            yield Doomed(path=path, size=_size(path), why=why)


def _recorded(run: _Run, folder: str) -> str:
    """The recorded checkpoint inside ``folder``; empty if there is none."""
    name = folder.rpartition("/")[2]
    return run.tags.get("morel.checkpoint", "").rpartition(f"/{name}/")[2]


def _is_there(folder: str, recorded: str) -> bool:
    return bool(recorded) and bool(storage.names(f"{folder}/{recorded}"))


def _first(recorded: str) -> set[str]:
    first, sign, _ = recorded.partition("/")
    return {first} if sign and first != ".." else set()


def _runs(folder: str) -> dict[str, _Run]:
    """Every run of the journal, in the order in which they began."""
    runs: dict[str, _Run] = {}
    for event in Journal(f"{folder}/journal").events():
        run = runs.setdefault(event.run_id, _Run(event.run_id, None, {}))
        if event.kind in ("start", "epoch", "progress"):  # it goes on, and with it its search
            for going_on in (run, next(iter(runs.values()))):
                going_on.ended = False
                going_on.tags.pop("morel.state", None)
        if event.kind in ("start", "final"):
            run.tags |= event.payload["tags"]
        if event.kind == "start" and NUMBER in run.tags:
            run.number = int(run.tags[NUMBER])
        if event.kind == "final":
            run.ended = run.tags.get("morel.state") not in ("killed", None)
            tested = any(key.startswith("test.") for key in event.payload["metrics"])
            run.tags |= {"morel.tested": "true"} if tested else {}
    return runs


def _size(path: str) -> int:
    system, inside = storage.open_filesystem(path)
    found = system.get_file_info(FileSelector(inside, recursive=True, allow_not_found=True))
    return sum(info.size for info in found if info.type == FileType.File)
