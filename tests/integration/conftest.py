"""One real Ray for the whole test session, with MLflow on SQLite."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import CONTROL, RAY_ENVIRONMENT, on_loopback


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Any]:
    """Two CPUs, as the smallest machine has; the dashboard, without which stopped trials leak."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    here, given = str(Path(__file__).parent), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{here}{os.pathsep}{given}" if given else here  # of the workers
    import ray

    with on_loopback():
        ray.init(
            address="local",
            num_cpus=2,
            resources={CONTROL: 10_000},
            include_dashboard=True,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage path, so that SQLite is initialised once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def cifar_root() -> str:
    """Folder of the real CIFAR-10."""
    root = os.environ.get("MOREL_DATA_ROOT")
    if not root or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("MOREL_DATA_ROOT does not hold CIFAR-10")
    return root
