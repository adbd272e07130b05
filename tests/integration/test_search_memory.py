"""Trials that run out of memory, and trials whose twins are trained already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hungry
import pytest
import recorded
import yaml

from morel_core.errors import MorelError
from orchestrator.provenance import fingerprint, identity
from orchestrator.search import one_worker_trial
from orchestrator.search.result import SearchResult
from orchestrator.search.space import SearchConfig, load_search
from orchestrator.training import measuring
from orchestrator.tune import tune

SPACE: dict[str, Any] = {
    "recipe": "digits",
    "overrides": {
        "training.epochs": 2,
        "training.batch_size": 64,
        "data.holdout": 60,
        "data.train_size": 320,
        "data.test_size": 60,
        # 5 steps an epoch of 2 passes each: the first epoch passes, the second one fails.
        "model": {"name": "hungry", "width": 4, "embed_dim": 16, "from_pass": 15},
        "attack.num_steps": 2,
        "evaluation.attack.num_steps": 3,
        "checkpoint.every_seconds": 0,
    },
    "scheduler": {"name": "none"},
    "ladder": {"verify": {"top": 2, "attacks": ["fgsm"]}},
    "num_trials": 3,
    "parameters": {"model.holds": {"type": "choice", "values": [16, 32, 64]}},
    "baselines": {
        "paper": {"model.holds": 64},
        "half": {"model.holds": 32},
        "quarter": {"model.holds": 16},
    },
}


@pytest.fixture(scope="module")
def workers_know_the_model() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_worker_trial, "MorelTrial", hungry.Trial)
        patch.setattr(measuring, "measure_verified", hungry.measure_verified)
        patch.setattr(measuring, "measure_final", hungry.measure_final)
        yield patch


def search(storage: Path, folder: Path, name: str, **keys: Any) -> SearchConfig:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(SPACE | keys, sort_keys=False))
    return load_search(str(path), [f"storage_path={storage}", f"name={name}"])


@pytest.fixture(scope="module")
def result(
    local_ray: Any, workers_know_the_model: Any, shared_storage: Path, tmp_path_factory: Any
) -> SearchResult:
    return tune(search(shared_storage, tmp_path_factory.mktemp("spaces"), "hungry"))


def test_a_trial_out_of_memory_goes_on_in_micro_batches(
    result: SearchResult, shared_storage: Path
) -> None:
    enough, half, quarter = result.trials
    said = "out of memory after epoch 1; goes on with training.micro_batches = 2"
    assert (enough.state, enough.retries) == ("finished", [])
    assert (half.state, half.retries) == ("finished", [said])
    assert (quarter.state, quarter.retries) == ("failed", [said])
    assert quarter.reason.startswith("OutOfMemoryError: CUDA out of memory")
    assert result.winner is not None
    run = recorded.one(shared_storage, half.run_id)
    assert run.data.tags["morel.retry"] == said
    assert "training.micro_batches = 2, not 1: BatchNorm" in run.data.tags["morel.differs"]
    assert recorded.steps(shared_storage, run, "loss.total") == [1, 2]
    assert "morel.retry" not in recorded.one(shared_storage, enough.run_id).data.tags


def test_a_later_search_takes_over_what_is_trained_and_verified(
    result: SearchResult, workers_know_the_model: Any, shared_storage: Path, tmp_path: Path
) -> None:
    workers_know_the_model.setattr(measuring, "measure_verified", hungry.no_measurement)
    one = {"num_trials": 1, "baselines": {"paper": {"model.holds": 64}}}
    again = tune(search(shared_storage, tmp_path, "again", **one))
    (trial,), old = again.trials, result.trials[0]
    assert (trial.twin, trial.state, trial.reason) == (old.run_id, "finished", old.reason)
    assert trial.verified is not None
    assert old.verified is not None
    assert trial.verified.document == old.verified.document
    assert again.winner is trial
    runs = [recorded.one(shared_storage, t.run_id) for t in (trial, old)]
    assert runs[0].data.tags["morel.twin"] == old.run_id
    # The seconds that each epoch took: trained anew, they would be others.
    for metric in ("seconds", "loss.total", "holdout.robust.pgd3_linf_0.1"):
        new, before = (recorded.history(shared_storage, run, metric) for run in runs)
        assert new == before
        assert len(new) == 2
    assert trial.seconds == pytest.approx(old.seconds)  # of the same network …
    assert trial.held < old.held  # … which cost nothing this time


def test_what_other_code_has_trained_is_no_twin_of_this(
    workers_know_the_model: Any, local_ray: Any, shared_storage: Path, tmp_path: Path
) -> None:
    changes = {
        "overrides": {**SPACE["overrides"], "model": {**SPACE["overrides"]["model"], "holds": 64}},
        "ladder": {},
        "parameters": {"objective.alpha": {"type": "float", "low": 0.1, "high": 1.0}},
        "baselines": {"paper": {"objective.alpha": 0.5}},
    }
    twins, code = shared_storage / "twins", fingerprint.code_hash()
    with pytest.MonkeyPatch.context() as patch:
        parts = {**fingerprint.code_parts(), "morel_core/step.py": "older"}
        for module in (fingerprint, identity):
            patch.setattr(module, "code_parts", lambda: parts)
        tune(search(shared_storage, tmp_path, "coded", num_trials=1, **changes))
    more = search(shared_storage, tmp_path, "coded", num_trials=2, **changes)
    with pytest.raises(MorelError, match=r"begun under other code: morel_core/step\.py has"):
        tune(more)
    first, second = tune(more, force_code=True).trials
    noted = [(json.loads(path.read_text())["run_id"], path.name) for path in twins.glob("*.json")]
    found = [(run_id, code in name) for run_id, name in noted if run_id.startswith("coded/")]
    assert sorted(found) == sorted([(first.run_id, False), (second.run_id, True)])
