"""Check recipes and search spaces without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator.campaign.definition import CampaignConfig, load_campaign, plan
from orchestrator.config import compose, run_key
from orchestrator.search.space import load_search
from orchestrator.settings.yaml_files import packaged, read_yaml

if TYPE_CHECKING:
    pass

Kind = Literal["recipe", "search", "campaign"]


def kind_of(name_or_path: str) -> Kind:
    """What a name or file holds: campaigns have ``methods``, searches ``parameters``."""
    path = packaged("search_spaces").get(name_or_path, Path(name_or_path))
    content = read_yaml(path) if path.is_file() else {}
    if "methods" in content:
        return "campaign"
    return "search" if "parameters" in content else "recipe"


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
    kind = kind_of(name)
    if kind == "campaign":
        summary = _campaign_summary(load_campaign(name, overrides))
        return {"file": name, "kind": kind, "summary": summary}
    if kind == "search":
        search = load_search(name, overrides)
        varied = ", ".join(search.space.parameters)
        summary = f"search, {search.total_trials} trials of {search.recipe!r} over {varied}"
        return {"file": name, "kind": kind, "summary": summary}
    config = compose(name, overrides)
    summary = (
        f"recipe, {config.model.name} on {config.data.name}, {config.objective.accuracy}, "
        f"{config.training.epochs} epochs, key {run_key(config)}"
    )
    return {"file": name, "kind": kind, "summary": summary}


def _campaign_summary(campaign: CampaignConfig) -> str:
    trials = plan(campaign)["trials"]
    return (
        f"campaign, {len(campaign.methods)} methods of {campaign.recipe!r}, {trials} trials of "
        f"tuning, {len(campaign.seeds)} seeds each"
    )
