"""Events survive their way through JSON."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morel_core.errors import ConfigError
from orchestrator.tracking.events import Event, check_run_id

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
)
plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text().filter(lambda k: k != "$float"), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(payload=st.dictionaries(st.sampled_from(["metrics", "tags", "config"]), plain))
def test_an_event_comes_back_equal(payload):
    event = Event("s/t", 3, "epoch", "epoch:3", 12.5, payload)
    assert Event.from_json(event.to_json()) == event


def test_nonfinite_floats_survive_in_strict_json():
    metrics = {"a": math.inf, "b": -math.inf, "c": [math.nan]}
    line = Event("s/t", 0, "epoch", "epoch:1", 0.0, {"metrics": metrics}).to_json()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads(line, parse_constant=refuse)
    back = Event.from_json(line).payload["metrics"]
    assert back["a"] == math.inf
    assert back["b"] == -math.inf
    assert math.isnan(back["c"][0])


@pytest.mark.parametrize("line", ["", "{", "3", "[]", '{"run_id": "a"}', '"text"', b"\xff\xfe"])
def test_anything_else_is_no_event(line):
    with pytest.raises(ValueError):
        Event.from_json(line)


@pytest.mark.parametrize("run_id", ["demo", "demo-2026/trial_00003", "a/b.c/d=1"])
def test_good_run_ids(run_id):
    check_run_id(run_id)


@pytest.mark.parametrize("run_id", ["", "../x", "a/../b", "/a", "a/", "a//b", "it's", "a\nb", ".x"])
def test_run_ids_that_could_leave_their_place_are_refused(run_id):
    with pytest.raises(ConfigError, match="run_id"):
        check_run_id(run_id)
