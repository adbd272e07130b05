"""Search files for the tests of this folder."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from search_files import ALPHA, HEAD

from orchestrator import search_space

compose_once = functools.cache(search_space.compose)


@pytest.fixture(autouse=True)
def _recipes_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs are frozen, so these tests can share them; composing one is most of their time."""
    monkeypatch.setattr(search_space, "compose", compose_once)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., search_space.SearchConfig]:
    """Load a search from YAML text with overrides: ``load(text, "key=value", head="")``."""

    def from_text(
        text: str = ALPHA, *overrides: str, head: str = HEAD
    ) -> search_space.SearchConfig:
        path = tmp_path / "mine.yaml"
        path.write_text(head + text)
        return search_space.load_search(str(path), overrides)

    return from_text
