"""`morel reproduce` and `morel fork` of a run that was really trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import recorded

from orchestrator.cli import main

SMALL = [
    "training.epochs=2",
    "data.holdout=60",
    "data.train_size=160",
    "data.test_size=60",
    "model.width=4",
    "attack.num_steps=1",
    "evaluation.attack.num_steps=2",
]


@pytest.fixture(scope="module")
def original(local_ray: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage of a run called "once"."""
    storage = tmp_path_factory.mktemp("reproduce")
    assert main(["train", "digits", f"storage_path={storage}", "name=once", *SMALL]) == 0
    return storage


def test_a_run_comes_out_the_same_to_the_last_bit(
    original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["reproduce", "once", f"storage_path={original}", "name=twice", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["differences"] == done["unequal"] == []
    assert done["compared"] > 20
    assert "equal to the last bit" in done["verdict"]
    again = recorded.one(original, "twice")
    assert again.data.tags["morel.reproduces"] == "once"


def test_differences_are_told_before_anything_starts(
    original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "orchestrator.tracking.records.environment_tags", lambda: {"morel.commit": "another"}
    )
    assert main(["reproduce", "once", "--check", f"storage_path={original}"]) == 3
    said = capsys.readouterr().err
    assert "differs here: commit: " in said
    assert "now another" in said
    assert main(["reproduce", "once", f"storage_path={original}", "optimizer.lr=0.5"]) == 2
    assert "see morel fork" in capsys.readouterr().err
    names = [run.data.tags["morel.run_id"] for run in recorded.runs(original, "")]
    assert not [name for name in names if name.startswith("once-")]


def test_a_fork_differs_in_what_was_asked_alone(original: Path) -> None:
    change = ["objective.alpha=0.5", "training.epochs=1"]
    assert main(["fork", "once", f"storage_path={original}", "name=other", *change]) == 0
    before, fork = recorded.one(original, "once"), recorded.one(original, "other")
    assert fork.data.tags["morel.forked_from"] == "once"
    different = {
        key for key, value in fork.data.params.items() if before.data.params.get(key) != value
    }
    assert different == {"objective.alpha", "training.epochs", "name"}
