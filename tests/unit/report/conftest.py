"""One search in MLflow for all tests of this folder; nothing here trains."""

import pytest
from synthetic import HOSTILE, Made

from orchestrator.report.data import Recorded
from orchestrator.report.reading import load


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Ten trials; a warning on each that a browser would run if it were not escaped."""
    made = Made(tmp_path_factory.mktemp("report"))
    made.search(10, tags={"morel.warnings": f"strange: {HOSTILE}"})
    return made


@pytest.fixture(scope="session")
def recorded(made: Made) -> Recorded:
    return load(made.uri, made.experiment)
