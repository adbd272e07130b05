"""Three minutes of searches under random faults; `soak` says which, and what is looked at."""

from __future__ import annotations

import pytest

from tests.fault.soak import ENDS, KILLS, TRIALS, soak


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_nothing_is_lost_and_nothing_doubled() -> None:
    result = soak(minutes=3.0, seed=0)
    print(result)
    assert result["lost"] == []
    assert result["doubled"] == []
    assert result["trials"] >= TRIALS
    assert {*KILLS, *ENDS} & result["faults"].keys()
