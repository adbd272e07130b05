"""What these tests share: one real Ray for the whole session, and stores of MLflow's."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from servers import free_port, kill_group, start_mlflow

from orchestrator.cluster import CONTROL, RAY_ENVIRONMENT, on_loopback
from orchestrator.tracking import MlflowTracker


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


@pytest.fixture(scope="session", params=["sqlite", "server"])
def uri(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a store of MLflow's without Ray: SQLite, and a real ``mlflow server``."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        yield f"sqlite:///{folder}/mlflow.db"
        return
    port = free_port()
    server = start_mlflow(folder, port)
    yield f"http://127.0.0.1:{port}"
    kill_group(server)


@pytest.fixture
def experiment(request: Any) -> str:
    """Each test has its own."""
    return request.node.name


@pytest.fixture
def connect(uri: str, experiment: str) -> Callable[[], MlflowTracker]:
    """Opens that experiment."""
    return lambda: MlflowTracker.connect(uri, experiment)


@pytest.fixture
def client(uri: str, connect: Callable[[], MlflowTracker]) -> MlflowClient:
    connect()  # initialises a fresh database
    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def runs_of(client: MlflowClient, experiment: str) -> Callable[[], Any]:
    """Finds the runs of that experiment by our ids, and how many MLflow has."""

    def find() -> Any:
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id])
        return {run.data.tags["morel.run_id"]: run for run in runs}, len(runs)

    return find
