"""A search whose space offers to mask gradients: an honest trial wins, the other's run says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import recorded
import saturating
import yaml

from orchestrator.cli import main
from orchestrator.search import one_worker_trial
from orchestrator.search.result import SearchResult
from orchestrator.search.space import SearchConfig, load_search
from orchestrator.training import measuring
from orchestrator.tune import tune

CHEAP, FULL = "pgd2_linf_0.1_first40", "pgd5_linf_0.1"
SPACE: dict[str, Any] = {
    "recipe": "digits",
    "overrides": {
        "training.epochs": 3,
        "data.holdout": 60,
        "data.train_size": 640,
        "data.test_size": 60,
        "model": {"name": "saturating", "width": 4, "embed_dim": 16},
        "attack.num_steps": 2,
        "evaluation.attack.num_steps": 5,
    },
    "scheduler": {"name": "none"},
    "num_trials": 2,
    "ladder": {
        "rungs": [{"epoch": 1, "num_steps": 2, "num_images": 40}, {"epoch": 3}],
        "verify": {"top": 1, "attacks": ["apgd-ce", "square200"]},
    },
    "parameters": {"model.scale": {"type": "choice", "values": [1.0, 1.0e6]}},
    "baselines": {"paper": {"model.scale": 1.0}, "masked": {"model.scale": 1.0e6}},
}


@pytest.fixture(scope="module")
def workers_know_the_model() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_worker_trial, "MorelTrial", saturating.Trial)
        patch.setattr(measuring, "measure_verified", saturating.measure_verified)
        patch.setattr(measuring, "measure_final", saturating.measure_final)
        yield patch


@pytest.fixture(scope="module")
def search(shared_storage: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchConfig:
    path = tmp_path_factory.mktemp("spaces") / "verified.yaml"
    path.write_text(yaml.safe_dump(SPACE, sort_keys=False))
    return load_search(str(path), [f"storage_path={shared_storage}", "name=verified"])


@pytest.fixture(scope="module")
def result(local_ray: Any, workers_know_the_model: Any, search: SearchConfig) -> SearchResult:
    return tune(search)


def test_the_honest_trial_wins_though_the_other_has_the_larger_number(result: SearchResult) -> None:
    honest, masked = result.trials
    assert masked.last["best_robust_accuracy"] > honest.last["best_robust_accuracy"]
    assert result.winner is honest
    assert honest.verified is not None
    assert not honest.verified.masking


def test_the_losers_run_says_why(result: SearchResult, shared_storage: Path) -> None:
    honest, masked = (recorded.one(shared_storage, trial.run_id).data for trial in result.trials)
    for evidence in (
        "the cross-entropy's input gradient is zero",  # gradient check
        "square200_linf_0.1 breaks",  # black-box beating white-box
    ):
        assert evidence in masked.tags["morel.masking"]
    assert masked.tags["morel.lost"].startswith("it masks its gradients")
    assert masked.tags["mlflow.note.content"].startswith("Lost: it masks its gradients")
    assert honest.tags["morel.masking"] == "no evidence"
    assert honest.tags["morel.lost"] == ""
    assert (honest.tags["morel.winner"], masked.tags["morel.winner"]) == ("true", "false")
    note = recorded.one(shared_storage, "verified").data.tags["mlflow.note.content"]
    assert note.startswith("Winner: trial 1 (paper), verified robust accuracy ")
    assert "Trial 2 (masked) lost: it masks its gradients" in note


def test_notes_link_to_pages_of_this_mlflow(result: SearchResult, shared_storage: Path) -> None:
    search = recorded.one(shared_storage, "verified")
    note = search.data.tags["mlflow.note.content"]
    pages = f"#/experiments/{search.info.experiment_id}/runs"
    for trial in result.trials:
        assert f"({pages}/{recorded.one(shared_storage, trial.run_id).info.run_id})" in note
    assert f"({pages}?viewStateShareKey=verified&" in note
    winner = recorded.one(shared_storage, result.trials[0].run_id).data.tags["mlflow.note.content"]
    assert winner.startswith("Won the search: verified ")
    assert f"[verified]({pages}/{search.info.run_id})" in winner
    assert "test images" in winner
    experiment = recorded.client(shared_storage).get_experiment(search.info.experiment_id)
    view = json.loads(experiment.tags["mlflow.sharedViewState.verified"])
    assert view["name"] == "verified"


def test_verified_numbers_stand_with_attack_interval_and_count(
    result: SearchResult, shared_storage: Path
) -> None:
    for run_id in (*(trial.run_id for trial in result.trials), "verified"):
        metrics = recorded.one(shared_storage, run_id).data.metrics
        assert metrics["verified.images"] == 60
        for name in ("apgd-ce_linf_0.1", "square200_linf_0.1", "worst_case"):
            low, value, high = (
                metrics[f"verified.robust.{name}{end}"] for end in ("_low", "", "_high")
            )
            assert low <= value <= high


def test_what_verification_took_is_recorded_beside_the_cost_of_training(
    result: SearchResult, shared_storage: Path
) -> None:
    run = recorded.one(shared_storage, "verified").data
    assert run.metrics["cost.verification_seconds"] == pytest.approx(
        sum(trial.verified.seconds for trial in result.trials if trial.verified)
    )
    assert 0 < run.metrics["cost.test_seconds"] < run.metrics["cost.wall_seconds"]
    assert "(besides: " in run.tags["mlflow.note.content"]


def test_each_rungs_numbers_have_their_own_name(result: SearchResult, shared_storage: Path) -> None:
    run = recorded.one(shared_storage, result.trials[0].run_id)
    assert recorded.steps(shared_storage, run, f"holdout.robust.{CHEAP}") == [1, 2]
    assert recorded.steps(shared_storage, run, f"holdout.robust.{FULL}") == [3]
    assert recorded.steps(shared_storage, run, "holdout.images") == [1, 2, 3]
    assert (run.data.metrics["best.rung"], run.data.metrics["best.epoch"]) == (2, 3)
    assert f"best.holdout.robust.{FULL}" in run.data.metrics
    assert f"best.holdout.robust.{CHEAP}" not in run.data.metrics


def test_a_repeated_search_verifies_nothing_again(
    result: SearchResult, search: SearchConfig, workers_know_the_model: Any
) -> None:
    workers_know_the_model.delattr(measuring, "measure_verified")
    again = tune(search)
    assert [t.standing for t in again.trials] == [t.standing for t in result.trials]
    assert again.winner is not None
    assert result.winner is not None
    assert again.winner.run_id == result.winner.run_id


def test_the_verified_winner_is_registered_as_champion(
    result: SearchResult, shared_storage: Path, capsys: Any
) -> None:
    storage = f"storage_path={shared_storage}"
    assert main(["register", "verified", "saturated", storage, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    winner = result.trials[0]
    assert (said["run_id"], said["version"]) == (winner.run_id, "1")
    assert said["champion"] == "yes: there was none"
    client = recorded.client(shared_storage)
    version = client.get_model_version_by_alias("saturated", "champion")
    run = recorded.one(shared_storage, winner.run_id)
    assert version.run_id == run.info.run_id
    verified = run.data.metrics["verified.robust.worst_case"]
    assert float(version.tags["verified_robust_accuracy"]) == verified
    assert f"{100 * verified:.1f} [" in version.description

    masked = result.trials[1].run_id
    assert main(["register", masked, "saturated", storage, "--champion"]) == 2
    assert "not the verified winner of a search" in capsys.readouterr().err


def test_outcomes_per_image_are_kept(result: SearchResult, shared_storage: Path) -> None:
    for trial in result.trials:
        name = trial.run_id.rpartition("/")[2]
        (path,) = (shared_storage / "verified" / "verified").glob(f"{name}-*.json")
        kept = json.loads(path.read_text())
        assert len(kept["evaluation"]["outcomes"]["square200_linf_0.1"]["correct"]) == 60
