"""The searches of a campaign, as whoever sees its storage finds them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from orchestrator import storage
from orchestrator.config import RunConfig
from orchestrator.driver import lease
from orchestrator.driver.lease import Holder
from orchestrator.search import status
from orchestrator.search.status_view import span, state_line
from orchestrator.tracking.events import check_run_id

REGISTRATION = "fixed_beforehand.json"


def look(name: str, config: RunConfig) -> dict[str, Any] | None:
    """A campaign and the status of each of its searches; None if the storage holds no campaign.

    A search that was not begun has its ``name`` alone.
    """
    check_run_id(name)
    folder = f"{config.storage_path}/{name}"
    text = storage.read_text(f"{folder}/{REGISTRATION}")
    if text is None:
        return None
    holds = lease.holder(folder)
    return {
        "name": name,
        "kind": "campaign",
        "folder": folder,
        "holder": None if holds is None else dataclasses.asdict(holds),
        "searches": [
            status.read(f"{config.storage_path}/{search}") or {"name": search}
            for search in _names(name, json.loads(text)["fixed"])
        ],
    }


def _names(campaign: str, fixed: Mapping[str, Any]) -> list[str]:
    """Of its searches, in their order: all methods are tuned before the first replicate."""
    methods = [f"{campaign}-{entry.partition(':')[0]}" for entry in fixed["methods"]]
    tuned = methods if fixed["tuning"]["parameters"] else []
    return [*tuned, *(f"{method}-seeds" for method in methods)]


def lines(found: Mapping[str, Any]) -> list[str]:
    """A campaign that was looked at, in sentences: one of its driver, one of each search."""
    holder = found["holder"]
    driver = f"driver on {Holder(**holder)}" if holder else "no driver is at work"
    return [f"{found['name']}: a campaign; {driver}", *map(_line, found["searches"])]


def _line(search: Mapping[str, Any]) -> str:
    if "state" not in search:
        return f"{search['name']}: not begun"
    quiet = status.silence(search)
    heard = "" if quiet is None else f"; no driver has been heard of for {span(quiet)}"
    return state_line(search) + heard


def named(found: Mapping[str, Any]) -> str:
    """Its searches with their states, as errors name them."""
    return ", ".join(f"{s['name']} ({s.get('state', 'not begun')})" for s in found["searches"])
