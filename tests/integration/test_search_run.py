"""`morel tune` for real: reused actors, multi-worker trials, failures, resume."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import recorded
import yaml

from orchestrator.cli import main
from orchestrator.search.milestones import milestones
from orchestrator.search.result import SearchResult
from orchestrator.search.space import SearchConfig, load_search
from orchestrator.tune import tune

SMALL = {
    "data.holdout": 60,
    "data.train_size": 320,
    "data.test_size": 60,
    "model.width": 4,
    "attack.num_steps": 2,
    "evaluation.attack.num_steps": 3,
}


def space(folder: Path, name: str, **keys: Any) -> str:
    """A search file; ``keys`` replace the defaults here."""
    content: dict[str, Any] = {
        "recipe": "digits",
        "overrides": SMALL | {"training.epochs": 2},
        "scheduler": {"name": "none"},
        "num_trials": 1,
        "parameters": {"objective.alpha": {"type": "float", "low": 1e-6, "high": 1, "log": True}},
        "baselines": {"paper": {"objective.alpha": 1e-5}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | keys, sort_keys=False))
    return str(path)


def search(storage: Path, file: str, name: str, *overrides: str) -> SearchConfig:
    return load_search(file, [f"storage_path={storage}", f"name={name}", *overrides])


@pytest.fixture(scope="module")
def asha(local_ray: Any, shared_storage: Path, tmp_path_factory: Any) -> SearchResult:
    """Four trials of which the learning rate of some is hopeless, under ASHA."""
    file = space(
        tmp_path_factory.mktemp("spaces"),
        "asha",
        overrides=SMALL | {"training.epochs": 4},
        scheduler={"name": "asha", "grace_period": 1, "reduction_factor": 2},
        num_trials=4,
        parameters={"optimizer.lr": {"type": "float", "low": 1e-9, "high": 0.2, "log": True}},
        baselines={
            "paper": {"optimizer.lr": 0.1},
            "half": {"optimizer.lr": 0.05},
            "tiny": {"optimizer.lr": 1e-8},
            "nil": {"optimizer.lr": 1e-9},
        },
    )
    return tune(search(shared_storage, file, "asha"))


def test_search_records_parent_and_children(asha: SearchResult, shared_storage: Path) -> None:
    parent = recorded.one(shared_storage, "asha")
    children = recorded.runs(shared_storage, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert parent.data.tags["morel.kind"] == "search"
    assert len(children) == 4
    assert {run.data.tags["morel.run_id"] for run in children} == {t.run_id for t in asha.trials}
    assert {run.info.status for run in children} == {"FINISHED"}
    assert parent.data.params["training.epochs"] == "4"
    assert all(run.data.params.keys() == {"optimizer.lr"} for run in children)
    assert asha.recorded


def test_asha_stops_the_worse_and_says_so(asha: SearchResult, shared_storage: Path) -> None:
    by_name = {trial.baseline: trial for trial in asha.trials}
    assert by_name["nil"].reason.startswith("ASHA stopped it at epoch")
    assert by_name["nil"].epoch in milestones(asha.search.scheduler, 4)
    assert asha.winner is not None
    assert asha.winner.baseline in ("paper", "half")
    assert asha.winner.reason == "all 4 epochs trained"
    stopped = recorded.one(shared_storage, by_name["nil"].run_id)
    assert stopped.data.tags["morel.stop_reason"] == by_name["nil"].reason
    assert recorded.steps(shared_storage, stopped, "holdout.clean") == list(
        range(1, by_name["nil"].epoch + 1)
    )


def test_only_the_winner_meets_the_test_set(asha: SearchResult, shared_storage: Path) -> None:
    assert asha.winner is not None
    tested = {
        trial.run_id
        for trial in asha.trials
        if any(
            key.startswith("test.")
            for key in recorded.one(shared_storage, trial.run_id).data.metrics
        )
    }
    assert tested == {asha.winner.run_id}
    winner = recorded.one(shared_storage, asha.winner.run_id)
    assert winner.outputs.model_outputs
    parent = recorded.one(shared_storage, "asha")
    assert parent.data.metrics["test.clean"] == winner.data.metrics["test.clean"]


def test_report_of_a_search_shows_its_winners_pictures(
    asha: SearchResult, shared_storage: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "asha.html"
    command = ["report", "--search", "asha", "--out", str(out), "--json"]
    assert main([*command, f"storage_path={shared_storage}"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["recorded"], said["missing"]) == ("asha", [])
    page = out.read_text()
    assert asha.winner is not None
    assert f"Use the baseline {asha.winner.baseline} (trial {asha.winner.number})." in page
    assert page.count('src="data:image/png;base64,') == 3 * 6  # original, perturbation, attacked
    assert "before training, the same seed" in page
    parent = recorded.one(shared_storage, "asha")
    files = recorded.client(shared_storage).list_artifacts(parent.info.run_id)
    assert "report.html" in {file.path for file in files}


def test_a_report_without_checkpoints_shows_the_model_in_mlflow(
    asha: SearchResult, shared_storage: Path, tmp_path: Path
) -> None:
    """The same pictures, and it says whose they are."""
    folder, away = shared_storage / "asha", tmp_path / "away"
    out = tmp_path / "with.html", tmp_path / "without.html"
    command = ["report", "--search", "asha", f"storage_path={shared_storage}", "--out"]
    assert main([*command, str(out[0])]) == 0
    folder.rename(away)
    try:
        assert main([*command, str(out[1])]) == 0
    finally:
        away.rename(folder)
    here, without = (re.findall(r'src="(data:image/png[^"]*)"', file.read_text()) for file in out)
    assert len(here) == 3 * 6
    assert here == without
    sources = "its checkpoint", "the exported model in MLflow"
    for file, source in zip(out, sources, strict=True):
        assert [name in file.read_text() for name in sources] == [
            name == source for name in sources
        ]


def test_a_trial_that_never_met_the_test_set_is_registered_from_its_checkpoint(
    asha: SearchResult, shared_storage: Path, capsys: Any
) -> None:
    trial = next(t for t in asha.trials if t is not asha.winner and t.checkpoint is not None)
    assert not recorded.one(shared_storage, trial.run_id).outputs.model_outputs
    command = ["register", trial.run_id, "losers", f"storage_path={shared_storage}", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["champion"] == "no: not verified"
    (version,) = recorded.client(shared_storage).search_model_versions("name = 'losers'")
    assert "held-out images, best epoch" in version.tags["robust_accuracy"]
    assert version.run_id == recorded.one(shared_storage, trial.run_id).info.run_id
    assert recorded.one(shared_storage, trial.run_id).info.status == "FINISHED"


def test_finished_search_repeated_changes_nothing(asha: SearchResult, shared_storage: Path) -> None:
    before = {run.info.run_id for run in recorded.runs(shared_storage, "")}
    again = tune(asha.search)
    assert {run.info.run_id for run in recorded.runs(shared_storage, "")} == before
    assert again.winner is not None
    assert asha.winner is not None
    assert again.winner.run_id == asha.winner.run_id
    assert [(t.run_id, t.reason) for t in again.trials] == [
        (t.run_id, t.reason) for t in asha.trials
    ]


def test_failed_and_diverged_trials_are_recorded_as_such(
    local_ray: Any, shared_storage: Path, tmp_path: Path
) -> None:
    file = space(
        tmp_path,
        "broken",
        num_trials=3,
        parameters={
            "optimizer.lr": {"type": "choice", "values": [0.1, 1e30]},
            "training.batch_size": {"type": "choice", "values": [64, 100000]},
        },
        baselines={
            "paper": {"optimizer.lr": 0.1, "training.batch_size": 64},
            "explodes": {"optimizer.lr": 1e30, "training.batch_size": 64},
            "too_large": {"optimizer.lr": 0.1, "training.batch_size": 100000},
        },
    )
    result = tune(search(shared_storage, file, "broken"))
    by_name = {trial.baseline: trial for trial in result.trials}
    assert {name: trial.state for name, trial in by_name.items()} == {
        "paper": "finished",
        "explodes": "diverged",
        "too_large": "failed",
    }
    assert "training.batch_size = 100000" in by_name["too_large"].reason
    assert result.winner is not None
    assert result.winner.baseline == "paper"
    for name, status in (("explodes", "FAILED"), ("too_large", "FAILED"), ("paper", "FINISHED")):
        run = recorded.one(shared_storage, by_name[name].run_id)
        assert run.info.status == status
        assert run.data.tags["morel.state"] == by_name[name].state


def test_a_point_that_no_run_can_have_costs_its_own_trial_alone(
    local_ray: Any, shared_storage: Path, tmp_path: Path
) -> None:
    """Each value is possible beside the paper's of the others, so that the search is taken."""
    file = space(
        tmp_path,
        "impossible",
        num_trials=6,
        searcher={"name": "grid"},
        parameters={
            "objective.accuracy": {"type": "choice", "values": ["trades", "mart", "at"]},
            "objective.label_smoothing": {"type": "choice", "values": [0.0, 0.1]},
        },
        baselines={"paper": {"objective.accuracy": "at", "objective.label_smoothing": 0.0}},
    )
    result = tune(search(shared_storage, file, "impossible"))
    failed = [trial for trial in result.trials if trial.state != "finished"]
    assert len(result.trials) == 6
    assert failed
    assert all("objective.label_smoothing = 0.1" in trial.reason for trial in failed)
    assert result.winner is not None


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_multi_worker_trials_on_real_cifar10_free_their_cpus(
    local_ray: Any, shared_storage: Path, cifar_root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (
        "num_trials=2",
        "searcher.startup_trials=2",
        "ladder.verify.top=1",
        "data.train_size=640",
    )
    config = search(shared_storage, "cifar10_slice", "cifar", f"data.root={cifar_root}", *few)
    result = tune(config)
    assert len(result.trials) == 2
    assert all(trial.state in ("finished", "stopped") for trial in result.trials)
    assert result.winner is not None
    assert recorded.one(shared_storage, "cifar").data.params["scaling.num_workers"] == "2"
    for trial in result.trials:
        run = recorded.one(shared_storage, trial.run_id)
        assert recorded.steps(shared_storage, run, "loss.total") == list(range(1, trial.epoch + 1))
    deadline = time.time() + 30
    while local_ray.available_resources().get("CPU") != 2 and time.time() < deadline:
        time.sleep(0.2)
    assert local_ray.available_resources()["CPU"] == 2

    capsys.readouterr()
    assert main(["compare", "--search", "cifar", f"storage_path={shared_storage}"]) == 0
    table = capsys.readouterr().out
    assert "pgd5_linf_8-255" in table
    assert all(f"{trial.number:03d}" in table for trial in result.trials)


def test_command_prints_one_json_document(
    local_ray: Any, shared_storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = space(tmp_path, "one")
    capsys.readouterr()
    assert main(["tune", file, f"storage_path={shared_storage}", "name=one", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["winner"] == printed["trials"][0]["run_id"]
    assert printed["trials"][0]["robust_accuracy_low"] <= printed["trials"][0]["robust_accuracy"]
    assert printed["attack"] == "pgd3_linf_0.1"
