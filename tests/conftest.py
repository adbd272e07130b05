"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from servers import free_port, kill_group, start_mlflow

# One thread a process, as on a worker with one CPU; set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real ``mlflow server``: what a cluster of several nodes records into."""
    port = free_port()
    server = start_mlflow(tmp_path_factory.mktemp("mlflow"), port)
    yield f"http://127.0.0.1:{port}"
    kill_group(server)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups when it is its turn
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `pytest -n 2`: tests that share a process, and with it a Ray or what a file prepares.

    The tests of the session's Ray are the longest part by far: they come first, as two groups of
    about the same length, of searches and of all else. Every other file is a group of its own.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: not needs_ray(item))


@pytest.hookimpl(trylast=True)  # after the fixtures that use it
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the session's Ray with its last test: idle, it would take CPU from all that follow."""
    if needs_ray(item) and not needs_ray(nextitem):
        import ray

        ray.shutdown()


def group(item: pytest.Item) -> str:
    """The group's name."""
    if needs_ray(item):
        return "ray searches" if item.path.stem.startswith("test_search") else "ray"
    return item.path.stem


def needs_ray(item: pytest.Item | None) -> bool:
    """Whether a test uses the session's Ray."""
    return "local_ray" in getattr(item, "fixturenames", ())
