"""Which code a number comes from: the sources of `morel_core`, and torch's version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import torch

import morel_core

SHOWN_FILES = 5


@lru_cache(maxsize=1)
def code_parts() -> Mapping[str, str]:
    """File of `morel_core` → the start of its SHA-256, and "torch" → its version without build.

    Read once in a process: what a running search trains with does not change under it.
    """
    root = Path(morel_core.__file__).parent
    parts = {
        path.relative_to(root.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(root.rglob("*.py"))
    }
    return MappingProxyType(parts | {"torch": torch.__version__.partition("+")[0]})


def code_hash() -> str:
    """One hash of `code_parts`, 16 hexadecimal digits: equal where runs can be twins."""
    parts = json.dumps(dict(code_parts()), sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def code_changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between two `code_parts`, in a few words; empty if nothing does."""
    changes = [
        f"{name} {_change(before.get(name), now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    more = len(changes) - SHOWN_FILES
    changes.sort(key=lambda change: not change.startswith("torch "))
    return ", ".join(changes[:SHOWN_FILES]) + (f" and {more} more" if more > 0 else "")


def _change(before: str | None, now: str | None) -> str:
    if before is None:
        return "is new"
    if now is None:
        return "is gone"
    versions = "." in before or "." in now
    return f"{before} is now {now}" if versions else "has changed"
