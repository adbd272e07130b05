"""Campaign files for the tests of this folder."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from campaign_files import content

from orchestrator.campaign import definition
from orchestrator.search import space as search_space

compose_once = functools.cache(search_space.compose)


@pytest.fixture(autouse=True)
def _recipes_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs are frozen, so these tests can share them; composing one is most of their time."""
    monkeypatch.setattr(search_space, "compose", compose_once)
    monkeypatch.setattr(definition, "compose", compose_once)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., definition.CampaignConfig]:
    """``load("key=value", methods=…)``: the campaign of a file with those sections."""

    def from_keys(*overrides: str, **keys: Any) -> definition.CampaignConfig:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(content(**keys), sort_keys=False))
        return definition.load_campaign(str(path), [f"storage_path={tmp_path}", *overrides])

    return from_keys
