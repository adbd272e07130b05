"""What fault tests share: see `clusters`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clusters import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head; the module adds its nodes with `add_node`."""
    there = Cluster()
    try:
        yield there
    finally:
        there.stop()
