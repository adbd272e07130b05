"""Check recipes and search spaces without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.config import compose, packaged, read_yaml, run_key
from orchestrator.search_space import load_search


def is_search(name_or_path: str) -> bool:
    """Whether a name or file is a search space: those have ``parameters``."""
    if name_or_path in packaged("search_spaces"):
        return True
    path = Path(name_or_path)
    return path.is_file() and "parameters" in read_yaml(path)


def validate(names: Sequence[str], overrides: Sequence[str] = ()) -> list[dict[str, str]]:
    """Check each name or file; all that come with the project if none is given.

    Returns:
        For each: ``file``, ``kind`` and a one-line ``summary``.

    Raises:
        MorelError, ConfigError: the first thing that is wrong.
    """
    names = names or [*packaged("recipes"), *packaged("search_spaces")]
    return [_check(name, overrides) for name in names]


def _check(name: str, overrides: Sequence[str]) -> dict[str, str]:
    if is_search(name):
        search = load_search(name, overrides)
        varied = ", ".join(search.space.parameters)
        summary = f"search, {search.total_trials} trials of {search.recipe!r} over {varied}"
        return {"file": name, "kind": "search", "summary": summary}
    config = compose(name, overrides)
    summary = (
        f"recipe, {config.model.name} on {config.data.name}, {config.objective.accuracy}, "
        f"{config.training.epochs} epochs, key {run_key(config)}"
    )
    return {"file": name, "kind": "recipe", "summary": summary}
