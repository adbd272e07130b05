"""A trial of a search by itself."""

import pytest

from orchestrator.search.trial import LONGEST_NAME, Trial, run_name


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("paper", "007 paper"),
        ("k1=0.37 alpha=2e-06", "007 k1=0.37 alpha=2e-06"),
        (" ".join(f"parameter{i}=0.123" for i in range(9)), "parameter3=0.123 +5"),
    ],
)
def test_the_name_of_its_run_is_short(label, name):
    trial = Trial(run_id="hunt/t1", number=7, label=label, params={})
    shown = run_name(trial)
    assert shown.endswith(name)
    assert len(shown) <= LONGEST_NAME + 4
