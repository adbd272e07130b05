"""Files and texts of a run, gathered in one folder to be logged at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from morel_core.errors import MorelError
from orchestrator.tracking.logged_model import GONE, fetch


def gather(folder: Path, artifacts: Mapping[str, str], texts: Mapping[str, str]) -> list[str]:
    """Put a run's files into ``folder``; returns those that are not there any more.

    Raises `MorelError` for an artifact path that leads out of it.
    """
    missing: list[str] = []
    for name, text in texts.items():
        _target(folder, name).write_text(text, encoding="utf-8")
    for name, source in artifacts.items():
        target = _target(folder, name)
        try:
            fetch(source, target)
        except GONE:
            missing.append(name)
    return missing


def _target(folder: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise MorelError(f"artifact {name!r}: must be a relative path inside the run")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
