"""Files that make a run, or a whole search, again elsewhere: no address leaves with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config import NOT_SCIENTIFIC, NOT_SCIENTIFIC_DATA
from orchestrator.report.aims import planned_trials
from orchestrator.report.data import Recorded

PLACE = tuple(key for key in NOT_SCIENTIFIC if key != "scaling")
"""Sections that say where the run was, which a reader's run is not."""
OWN = ("name", "source", "parent", "tags")
"""What a recorded search has beside the keys of a search file."""
SEARCH, RECIPE = "search.yaml", "recipe.yaml"


def run_file(config: Mapping[str, Any]) -> str:
    """A run's configuration as a recipe."""
    kept = {key: value for key, value in config.items() if key not in PLACE}
    if isinstance(kept.get("data"), dict):
        kept["data"] = {k: v for k, v in kept["data"].items() if k not in NOT_SCIENTIFIC_DATA}
    return _yaml(kept)


def search_files(recorded: Recorded) -> dict[str, str]:
    """File → content: the search, and the run that its trials change with all overrides in it.

    Empty where no search was recorded.
    """
    search, base = recorded.definition.get("search"), recorded.definition.get("base")
    if not search or not base:
        return {}
    kept = {key: value for key, value in search.items() if key not in OWN}
    kept |= {"recipe": RECIPE, "overrides": {}, "num_trials": planned_trials(recorded)}
    recipe = {key: value for key, value in base.items() if key != "scaling"}  # search's resources
    return {SEARCH: _yaml(kept), RECIPE: run_file(recipe)}


def _yaml(content: Mapping[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(content))) if content else ""
