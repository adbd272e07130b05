"""What a trial's run has in MLflow: its search's run has all, a trial's only what is its own.

A hundred settings that every trial shares would hide the few that differ, and make each query of
the trials read them a thousand times. Versions of packages, which are tags, are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

OF_THE_SEARCH = "search."
"""What begins so is the search's alone; on a trial it is a raw value that no setting shows."""
NAMED = ("data", "model")
"""Sections that have other settings under another name."""

SHARED_TAGS = ("morel.python", "morel.version.")
"""Tags that begin so are left out of a trial's run where its search's has them, too."""

V = TypeVar("V")


def own_params(
    params: Mapping[str, Any], shared: Mapping[str, Any], searched: Collection[str]
) -> dict[str, Any]:
    """What of a trial's ``params`` is recorded on its run.

    Args:
        params: all of them, dotted.
        shared: those of its search's run.
        searched: keys that are always its own, also where the value is the search's.
    """
    renamed = _renamed(params, shared)
    return {
        key: value
        for key, value in params.items()
        if key in searched
        or key not in shared
        or shared[key] != value
        or key.partition(".")[0] in renamed
    }


def all_params(own: Mapping[str, V], shared: Mapping[str, V]) -> dict[str, V]:
    """The inverse of `own_params`; of an older run, which has all of them itself, just these."""
    renamed = _renamed(own, shared)
    kept = {
        key: value
        for key, value in shared.items()
        if not key.startswith(OF_THE_SEARCH) and key.partition(".")[0] not in renamed
    }
    return kept | dict(own)


def own_tags(tags: Mapping[str, str], shared: Mapping[str, str]) -> dict[str, str]:
    """What of a trial's ``tags`` is recorded on its run, whose search's has ``shared``."""
    return {
        key: value
        for key, value in tags.items()
        if not key.startswith(SHARED_TAGS) or shared.get(key) != value
    }


def all_tags(own: Mapping[str, str], shared: Mapping[str, str]) -> dict[str, str]:
    """The inverse of `own_tags`; a trial that has versions of its own lacks none of its search."""
    return {k: v for k, v in shared.items() if k.startswith(SHARED_TAGS)} | dict(own)


def _renamed(params: Mapping[str, Any], shared: Mapping[str, Any]) -> set[str]:
    """Sections of another name than in ``shared``: nothing is shared of these."""
    names = {section: f"{section}.name" for section in NAMED}
    return {s for s, key in names.items() if key in params and params[key] != shared.get(key)}
