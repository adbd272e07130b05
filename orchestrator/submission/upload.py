"""What Ray uploads of a folder: all but what ignore files and Ray itself leave out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from morel_core.errors import MorelError

LIMIT_MB = 50.0
"""More than so much is no source: data, checkpoints or an environment lie in the folder."""
PACKAGES = ("orchestrator", "morel_core", "recipes", "search_spaces")
SHOWN = 3

_quiet = logging.getLogger(__name__)  # Ray tells of each ignore file


@dataclass(frozen=True, kw_only=True)
class Upload:
    """The files of a working directory that go to the cluster."""

    folder: Path
    files: dict[str, int]
    """Path within the folder → bytes."""

    @property
    def megabytes(self) -> float:
        """Before Ray packs them."""
        return sum(self.files.values()) / 1e6

    def check(self) -> None:
        """Raise `MorelError` if these are more than sources."""
        if self.megabytes > LIMIT_MB:
            largest = sorted(self.files, key=lambda name: -self.files[name])[:SHOWN]
            shown = ", ".join(f"{name} ({self.files[name] / 1e6:.1f} MB)" for name in largest)
            raise MorelError(
                f"--working-dir {self.folder}: {self.megabytes:.0f} MB would be uploaded, at most "
                f"{LIMIT_MB:g}; largest: {shown}: name in .rayignore what the cluster does not need"
            )

    def __str__(self) -> str:
        return f"{len(self.files)} files, {self.megabytes:.1f} MB"


def upload_of(folder: Path) -> Upload:
    """What would be uploaded of ``folder``, found by Ray's own walk over it; nothing is sent.

    Raises:
        MorelError: it is no checkout of ours.
    """
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env import packaging

    folder = folder.absolute()
    if not folder.is_dir():
        raise MorelError(f"--working-dir {folder}: there is no such folder")
    lacking = [name for name in PACKAGES if not (folder / name).is_dir()]
    if lacking:
        raise MorelError(
            f"--working-dir {folder}: holds no {', '.join(lacking)}: give the checkout of this "
            "project, whose code the cluster runs"
        )
    files: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size

    left = packaging._get_excludes(folder, get_runtime_env_default_excludes())  # pyright: ignore[reportPrivateUsage]
    packaging._dir_travel(folder, [left], note, include_gitignore=True, logger=_quiet)  # pyright: ignore[reportPrivateUsage]
    return Upload(folder=folder, files=files)
