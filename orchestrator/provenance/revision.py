"""Which commit the code is of, and how it differs from it; also in a job, which has no ``.git``."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMIT, DIFF = "MOREL_COMMIT", "MOREL_DIFF"
NO_DIFF = "e3b0c44298fc1c14"  # of nothing, as sha256sum prints it


@dataclass(frozen=True, kw_only=True)
class Revision:
    """State of a checkout."""

    commit: str
    """Hash, followed by ``-dirty`` if files differ from it or are new; "unknown" outside git."""
    diff: str
    """Start of the SHA-256 of ``git diff HEAD``, 16 hexadecimal digits; empty without changes.

    It is what ``git diff HEAD | sha256sum | cut -c1-16`` prints."""

    def tags(self) -> dict[str, str]:
        """As recorded."""
        return {"morel.commit": self.commit, **({"morel.diff": self.diff} if self.diff else {})}

    def environment(self) -> dict[str, str]:
        """What `revision` reads again where there is no ``.git``."""
        return {COMMIT: self.commit, DIFF: self.diff}


def revision(folder: Path | None = None, environment: Mapping[str, str] | None = None) -> Revision:
    """The revision of a checkout; of one that was sent without its ``.git``, as it was sent along.

    Args:
        folder: in the checkout; default: the one of this file.
        environment: default: that of the process.
    """
    given = os.environ if environment is None else environment
    if given.get(COMMIT):
        diff = given.get(DIFF, "")
        return Revision(commit=given[COMMIT], diff="" if diff == NO_DIFF else diff)
    here = folder or Path(__file__).parent
    commit = _git(here, "rev-parse", "HEAD").decode().strip()
    if not commit:
        return Revision(commit="unknown", diff="")
    changed = _git(here, "diff", "HEAD")
    dirty = changed or _git(here, "status", "--porcelain").strip()
    return Revision(
        commit=f"{commit}-dirty" if dirty else commit,
        diff=hashlib.sha256(changed).hexdigest()[:16] if changed else "",
    )


def _git(folder: Path, *arguments: str) -> bytes:
    """What git prints; nothing where it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True)
    except OSError:
        return b""
    return done.stdout if done.returncode == 0 else b""
