"""What a name stands for: the first run of a name writes it down, later ones must agree."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.config import flatten
from orchestrator.provenance.fingerprint import code_changes, code_parts

if TYPE_CHECKING:
    from morel_core.data import Dataset

FILE = "definition.json"
CODE, CHANGES = "code", "code_changes"
DIGEST = 16
"""Characters of a data set's fingerprint that tell it from another."""


def noted_data(data: Dataset) -> dict[str, Any]:
    """What a definition says of the data: with other images the split is another one.

    A resumed run would be measured on held-out images that it was trained on.
    """
    return {"dataset": {"fingerprint": data.fingerprint[:DIGEST]}}


def check_identity(
    folder: str,
    definition: Mapping[str, Any],
    *,
    may_change: set[str],
    may_grow: frozenset[str] = frozenset(),
    force_code: bool = False,
    begins: bool = True,
) -> str:
    """Note what the run in ``folder`` is and which code trains it, or compare with what was noted.

    Args:
        folder: the run's own folder (path or URI); made if missing.
        definition: nested plain values.
        may_change: dotted keys, or first parts of them, in which a resumed run may differ.
        may_grow: dotted keys of numbers that may be larger than noted, and are then noted anew.
        force_code: go on under changed code, and note that.
        begins: it begins now; else nothing is noted.

    Returns:
        The changes of code that were forced so far, one a line; empty if there were none.

    Raises:
        MorelError: the folder belongs to a run that differs elsewhere, or to other code.
    """
    path = f"{folder}/{FILE}"
    text = storage.read_text(path)
    now = flatten(json.loads(json.dumps(definition, default=str)))
    code = dict(code_parts())
    if text is None and not begins:
        return ""
    if text is None:
        storage.write(path, json.dumps({**now, CODE: code}, indent=2).encode())
        return ""
    try:
        noted: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise MorelError(
            f"{path}: what this run is cannot be read ({error}): take another name (name=…), or "
            "move the file away, and the next command notes what it runs"
        ) from None
    before_code: dict[str, str] | None = noted.pop(CODE, None)  # older files have none
    forced: list[str] = noted.pop(CHANGES, [])
    kept = {
        key: max(then, now[key]) if key in may_grow and key in now else then
        for key, then in noted.items()
    }
    _check_settings(folder, kept, now, may_change)
    changed = code_changes(before_code, code) if before_code is not None else ""
    if changed:
        if not force_code:
            raise MorelError(
                f"name: {folder} was begun under other code: {changed}: go back to that code, give "
                "this run a name of its own (name=…), or go on all the same with --force-code, "
                "which is recorded"
            )
        forced.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {changed}")
    if begins and (changed or kept != noted):
        note = {**kept, CODE: code if changed else before_code, CHANGES: forced}
        storage.write(path, json.dumps(note, indent=2).encode())
    return "\n".join(forced)


def _check_settings(
    folder: str, before: Mapping[str, Any], now: Mapping[str, Any], may_change: set[str]
) -> None:
    differ = [
        f"{key} = {now.get(key)!r} (there: {then!r})"
        for key, then in before.items()
        if now.get(key) != then and not {key, key.partition(".")[0]} & may_change
    ]
    if differ:
        raise MorelError(
            f"name: {folder} holds another run, which differs in {'; '.join(differ[:3])}: give "
            "this one a name of its own (name=…), or repeat that one's settings to resume it"
        )
