"""What a search looked for: its objective, its algorithms, its limits and its ranges."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from orchestrator.report.data import Recorded, value_text

METRICS = {
    "robust_accuracy": "robust accuracy",
    "clean_accuracy": "clean accuracy",
    "tradeoff": "clean and robust accuracy together: their Pareto front",
}
LIMITS = {
    "wall_time_s": "{} s of wall time",
    "gpu_hours": "{} GPU-hours",
    "cpu_hours": "{} CPU-hours",
    "target": "enough at {} of the objective",
}


def aims(recorded: Recorded) -> list[tuple[str, str]]:
    """How the search was set up, in words; empty where there was none."""
    search = recorded.definition.get("search", {})
    if not search:
        return []
    rows = [
        ("made better", _objective(recorded)),
        ("kept to", ", ".join(search.get("objective", {}).get("constraints", []))),
        ("searcher", _algorithm(search.get("searcher", {}))),
        ("scheduler", _algorithm(search.get("scheduler", {}))),
        ("verified", _verification(search.get("ladder", {}).get("verify", {}))),
        ("budget", ", ".join([_count(recorded), *_limits(search)])),
    ]
    return [(name, value) for name, value in rows if value]


def ranges(recorded: Recorded) -> list[tuple[str, str]]:
    """Each parameter, and where it was searched."""
    parameters = recorded.definition.get("search", {}).get("parameters", {})
    return [(key, _range(entry)) for key, entry in parameters.items() if isinstance(entry, dict)]


def planned_trials(recorded: Recorded) -> int:
    """``num_trials``: as recorded, or as large as it must have become for its trials."""
    search = recorded.definition.get("search", {})
    return max(int(search.get("num_trials", 0)), -(-len(recorded.trials) // _cells(recorded)))


def _cells(recorded: Recorded) -> int:
    """Trials of each point: one for each combination of grid values."""
    entries = recorded.definition.get("search", {}).get("parameters", {}).values()
    grids = [e for e in entries if isinstance(e, dict) and e.get("type") == "grid"]
    return math.prod(len(grid["values"]) for grid in grids)


def _count(recorded: Recorded) -> str:
    points, cells = planned_trials(recorded), _cells(recorded)
    return f"{points} points, each in {cells} trials" if cells > 1 else f"{points} trials"


def _objective(recorded: Recorded) -> str:
    found = METRICS.get(recorded.metric, recorded.metric)
    attack = recorded.trials[0].attack if recorded.trials else ""
    return f"held-out {found}{f', under {attack}' if attack else ''}, of the best epoch"


def _algorithm(section: Mapping[str, Any]) -> str:
    """``asha (grace period 3, reduction factor 2)``; empty for none."""
    name = section.get("name", "none")
    if name == "none":
        return ""
    options = [
        f"{key.replace('_', ' ')} {value_text(value)}"
        for key, value in section.items()
        if key != "name" and value is not None
    ]
    return f"{name} ({', '.join(options)})" if options else str(name)


def _verification(verify: Mapping[str, Any]) -> str:
    if not verify.get("top"):
        return ""
    count = verify.get("num_images")
    images = f"the first {count} held-out images" if count else "the held-out images"
    return f"the best {verify['top']}, by {', '.join(verify['attacks'])} on {images}"


def _limits(search: Mapping[str, Any]) -> list[str]:
    budget = search.get("budget", {})
    return [text.format(value_text(budget[key])) for key, text in LIMITS.items() if budget.get(key)]


def _range(entry: Mapping[str, Any]) -> str:
    if "expression" in entry:
        return f"= {entry['expression']}"
    if "values" in entry:
        found = ", ".join(
            value if isinstance(value, str) else json.dumps(value) for value in entry["values"]
        )
        text = f"each of {found}" if entry.get("type") == "grid" else f"one of {found}"
    else:
        text = f"{value_text(entry.get('low'))} to {value_text(entry.get('high'))}"
    step, when = entry.get("step"), entry.get("when")
    text += ", logarithmic" if entry.get("log") else ""
    text += f", in steps of {value_text(step)}" if step else ""
    return text + (f", where {_conditions(when)}" if when else "")


def _conditions(when: Mapping[str, Any]) -> str:
    return " and ".join(f"{key} is {value_text(value)}" for key, value in when.items())
