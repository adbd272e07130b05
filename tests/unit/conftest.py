"""Runs and searches for all unit tests; nothing here starts Ray."""

from dataclasses import replace
from pathlib import Path

import pytest
from fake_tune import SEARCH
from tiny_evaluation import TINY

from morel_core import Trainer
from orchestrator.config import RunConfig
from orchestrator.search.space import SearchConfig, load_search
from orchestrator.settings.building import build
from orchestrator.tracking import Journal, MemoryTracker, Recorder


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> SearchConfig:
    """The search of `fake_tune.SEARCH`, loaded once."""
    path = tmp_path_factory.mktemp("search") / "fake.yaml"
    path.write_text(SEARCH)
    return load_search(str(path), ["name=hunt", "storage_path=/nowhere"])


@pytest.fixture
def search(loaded: SearchConfig, tmp_path: Path) -> SearchConfig:
    """The search, stored where the test may write."""
    return replace(loaded, base=replace(loaded.base, storage_path=str(tmp_path)))


@pytest.fixture
def tracker() -> MemoryTracker:
    return MemoryTracker()


@pytest.fixture
def recorder(tmp_path: Path, tracker: MemoryTracker):
    recorder = Recorder(Journal(str(tmp_path / "journal")), tracker)
    yield recorder
    recorder.close()


@pytest.fixture(scope="session")
def tiny_trainer() -> Trainer:
    """Two epochs of `tiny_evaluation.TINY`."""
    trainer = Trainer(build(RunConfig, TINY | {"storage_path": "/nowhere"}))
    trainer.fit()
    return trainer


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_trainer.save(folder)
    return folder


@pytest.fixture
def tiny_config(tmp_path: Path) -> RunConfig:
    """`tiny_evaluation.TINY`, stored where the test may write."""
    return build(RunConfig, TINY | {"storage_path": str(tmp_path)})


@pytest.fixture
def marker(tmp_path):
    """What the bait would leave behind; it must not be there at the end."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.fixture
def bare_environment(monkeypatch):
    """Nothing of it says where anything lies."""
    for name in ("MLFLOW_TRACKING_URI", "MOREL_DATA_ROOT", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
