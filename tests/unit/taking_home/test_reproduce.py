"""What `morel reproduce` says of differences, without training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from morel_core.errors import MorelError
from orchestrator.config import compose
from orchestrator.taking_home import reproduce
from orchestrator.taking_home.reproduce import (
    Difference,
    Plan,
    Reproduction,
    environment_differences,
)

PLAN = cast(Plan, None)
RESULT = cast(Any, None)


def outcome(*unequal: Difference) -> str:
    return Reproduction(plan=PLAN, result=RESULT, compared=12, unequal=list(unequal)).verdict


def test_the_verdict_tells_losses_from_accuracies() -> None:
    loss = Difference("loss.total of epoch 3", "1.25", "1.26")
    accuracy = Difference("holdout.clean of epoch 4", "0.5", "0.475")
    assert "all 12 numbers are equal to the last bit" in outcome()
    assert outcome(loss).startswith("the same accuracies; 1 of 12 numbers")
    assert "accuracies by up to 2.50 points" in outcome(loss, accuracy)
    assert "loss.total of epoch 3: 1.25, now 1.26" in outcome(loss, accuracy)


def test_versions_that_came_went_and_changed() -> None:
    then = {"morel.commit": "a", "morel.version.torch": "2.14.1", "morel.seed": "1"}
    now = {"morel.commit": "a", "morel.version.torch": "2.15.0", "morel.version.ray": "2.60"}
    assert [str(found) for found in environment_differences(then, now)] == [
        "torch: 2.14.1, now 2.15.0",
        "ray: none, now 2.60",
    ]


def test_a_run_that_went_on_for_longer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it recorded first is its config: what is repeated is its first part."""
    config = compose("digits", ["training.epochs=2", "name=first"])
    run = SimpleNamespace(run_id="first", kind="train", tags={}, dataset=None, epochs=4)
    monkeypatch.setattr(reproduce, "find_run", lambda name, tracking: run)
    monkeypatch.setattr(reproduce, "recorded_config", lambda run, uri: config)
    monkeypatch.setattr(reproduce, "environment_differences", lambda then, now: [])
    plan = reproduce.plan_reproduction("first", config, {})
    assert [str(found) for found in plan.differences] == ["training.epochs: 2, then on to 4, now 2"]


def test_what_population_based_training_changed_is_no_run_to_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tags = {"morel.pbt.lineage": "epoch 3 from trial 002"}
    run = SimpleNamespace(run_id="pop/t4", kind="trial", tags=tags)
    monkeypatch.setattr(reproduce, "find_run", lambda name, tracking: run)
    for again in (reproduce.plan_reproduction, reproduce.fork):
        with pytest.raises(MorelError, match=r"'pop/t4' was .* \(epoch 3 from trial 002\): no"):
            again("pop/t4", compose("digits", []), {})
