"""What a name stands for: the first run of a name writes it down, later ones must agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.config import flatten

FILE = "definition.json"


def check_identity(folder: str, definition: Mapping[str, Any], *, may_change: set[str]) -> None:
    """Note what the run in ``folder`` is, or compare with what was noted.

    Args:
        folder: the run's own folder (path or URI); made if missing.
        definition: nested plain values.
        may_change: dotted keys, or first parts of them, in which a resumed run may differ.

    Raises:
        MorelError: the folder belongs to a run that differs elsewhere.
    """
    path = f"{folder}/{FILE}"
    before = storage.read_text(path)
    now = flatten(json.loads(json.dumps(definition, default=str)))
    if before is not None:
        differ = [
            f"{key} = {now.get(key)!r} (there: {then!r})"
            for key, then in json.loads(before).items()
            if now.get(key) != then and not {key, key.partition(".")[0]} & may_change
        ]
        if differ:
            raise MorelError(
                f"name: {folder} holds another run, which differs in {'; '.join(differ[:3])}: give "
                "this one a name of its own (name=…), or repeat that one's settings to resume it"
            )
        return
    storage.write(path, json.dumps(now, indent=2).encode())
