"""What all tests share."""

from __future__ import annotations

import os

import pytest

# One thread a process, as on a worker with one CPU; set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `pytest -n`: what shares the session's Ray stays in one process and starts first.

    It is the longest part by far. Every other file is a group of its own.
    """
    for item in items:
        group = "ray" if needs_ray(item) else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: not needs_ray(item))


def needs_ray(item: pytest.Item) -> bool:
    """Whether a test uses the session's Ray."""
    return "local_ray" in getattr(item, "fixturenames", ())
