"""What all tests share."""

from __future__ import annotations

import os

import pytest

# One thread a process, as on a worker with one CPU; set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What needs no Ray comes first: those tests assert that nothing started one, and the session's own
# Ray lives until the end.
ORDER = ("unit", "parity", "integration", "fault")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((i for i, d in enumerate(ORDER) if d in item.path.parts), 0))
