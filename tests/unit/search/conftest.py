"""Search files for the tests of this folder."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from search_files import ALPHA, HEAD

from orchestrator.search import space as search_space

compose_once = functools.cache(search_space.compose)


@pytest.fixture(autouse=True)
def _recipes_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs are frozen, so these tests can share them; composing one is most of their time."""
    monkeypatch.setattr(search_space, "compose", compose_once)


@pytest.fixture(scope="session")
def search_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that ``load`` writes."""
    return tmp_path_factory.mktemp("search") / "mine.yaml"


@pytest.fixture(scope="session")
def load(search_file: Path) -> Callable[..., search_space.SearchConfig]:
    """Load a search from YAML text with overrides: ``load(text, "key=value", head="")``."""

    @functools.cache  # searches are frozen, too
    def from_text(
        text: str = ALPHA, *overrides: str, head: str = HEAD
    ) -> search_space.SearchConfig:
        search_file.write_text(head + text)
        return search_space.load_search(str(search_file), overrides)

    return from_text
