"""What a trial's run has of its parameters, and that all of them are found again."""

import pytest

from orchestrator.tracking import all_params, own_params

SEARCH = {"search.seed": 7, "search.num_trials": 3}
BASE = {"seed": 0, "model.name": "digits_cnn", "model.width": 16, "model.norm": "batch", "lr": 0.1}


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, {"lr"}),
        ({"lr": 0.2}, {"lr"}),
        ({"lr": 0.2, "model.width": 8}, {"lr", "model.width"}),
        ({"new": [1, 2]}, {"lr", "new"}),
    ],
)
def test_a_trial_has_what_differs_and_what_is_searched(changes, own):
    params = BASE | changes
    recorded = own_params(params, BASE | SEARCH, {"lr"})
    assert set(recorded) == own
    assert all_params(recorded, BASE | SEARCH) == params


def test_nothing_is_shared_of_another_model():
    other = {"seed": 0, "model.name": "resnet18", "model.width": 16, "lr": 0.1}
    recorded = own_params(other, BASE | SEARCH, {"model.name"})
    assert recorded == {"model.name": "resnet18", "model.width": 16}
    assert all_params(recorded, BASE | SEARCH) == other  # without a norm


def test_a_trial_of_an_older_search_has_everything_itself():
    assert own_params(BASE, SEARCH, {"lr"}) == BASE
    assert all_params(BASE, SEARCH) == BASE


def test_a_raw_value_is_not_taken_for_a_setting_of_the_search():
    recorded = own_params(BASE, BASE | SEARCH, ()) | {"search.seed": 3}
    assert all_params(recorded, BASE | SEARCH) == BASE | {"search.seed": 3}
