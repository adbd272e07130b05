"""Names, tags and parameters under which numbers are recorded."""

import platform
import re
import subprocess
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from fake_tune import ATTACK, epoch

from morel_core.data import load_data
from orchestrator.config import RunConfig, compose, run_key
from orchestrator.tracking import records
from orchestrator.tracking.events import check_run_id


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return compose("digits", ["name=hunt", "storage_path=/data/runs"])


def test_every_robust_number_carries_its_attack_and_interval():
    recorded = records.epoch_metrics(epoch(3, robust=0.5), ATTACK)
    assert recorded == {
        "holdout.clean": 0.9,
        "holdout.clean_low": 0.85,
        "holdout.clean_high": 0.95,
        f"holdout.robust.{ATTACK}": 0.5,
        f"holdout.robust.{ATTACK}_low": 0.45,
        f"holdout.robust.{ATTACK}_high": 0.55,
        "loss.total": 1 / 3,
        "gradient_share.kl": 0.25,
        "lr": 0.1,
        "seconds": 2.0,
        "seconds_evaluation": 0.5,
        "images_per_second": 500.0,
    }


def test_an_epoch_that_was_not_measured_has_no_accuracies():
    metrics = {key: value for key, value in epoch(3).items() if "accuracy" not in key}
    recorded = records.epoch_metrics(metrics, ATTACK)
    assert not any(name.startswith("holdout") for name in recorded)
    assert recorded["loss.total"] == 1 / 3


def test_best_metrics_are_the_best_epochs():
    metrics = epoch(9, robust=0.4, best_robust_accuracy=0.6, best_epoch=5.0)
    recorded = records.best_metrics(metrics, ATTACK)
    assert recorded[f"best.holdout.robust.{ATTACK}"] == 0.6
    assert recorded["best.epoch"] == 5.0
    assert len(recorded) == 7
    assert records.best_metrics({"epoch": 1, "robust_accuracy": 0.4}, ATTACK) == {}


def test_test_metrics_come_from_the_evaluations_record():
    def outcome(accuracy):
        return {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1} | {
            "num_images": 359
        }

    outcomes = {"clean": outcome(0.75), "pgd20_linf_0.1": outcome(0.5), "fgsm_l2_1": outcome(0.25)}
    assert records.test_metrics({"split": "test", "outcomes": outcomes}) == {
        "test.clean": 0.75,
        "test.clean_low": 0.65,
        "test.clean_high": 0.85,
        "test.robust.pgd20_linf_0.1": 0.5,
        "test.robust.pgd20_linf_0.1_low": 0.4,
        "test.robust.pgd20_linf_0.1_high": 0.6,
        "test.robust.fgsm_l2_1": 0.25,
        "test.robust.fgsm_l2_1_low": 0.15,
        "test.robust.fgsm_l2_1_high": 0.35,
        "test.images": 359,
    }
    held_out = records.test_metrics({"split": "holdout", "outcomes": {"clean": outcome(0.5)}})
    assert set(held_out) == {
        "holdout.clean", "holdout.clean_low", "holdout.clean_high", "holdout.images"
    }  # fmt: skip


def test_the_evaluation_attack_does_not_depend_on_what_a_run_trains_with(config):
    at = compose("digits", ["objective.accuracy=at"])
    assert records.evaluation_label(config) == records.evaluation_label(at) == ATTACK


def test_numbers_of_a_rung_are_recorded_under_what_it_measured_with():
    rungs = "evaluation.rungs=[{epoch: 1, num_steps: 5, num_images: 100}, {epoch: 4}]"
    config = compose("digits", [rungs])
    assert records.ladder_label(config) == (f"pgd5_linf_0.1_first100, from epoch 4 {ATTACK}")
    for rung, label in ((1, "pgd5_linf_0.1_first100"), (2, ATTACK)):
        metrics = epoch(4, rung=rung, num_images=100, best_rung=rung, best_num_images=100)
        attack = records.measured_with(config, metrics)
        assert attack == records.measured_with(config, metrics, "best_") == label
        recorded = records.epoch_metrics(metrics, attack)
        assert recorded[f"holdout.robust.{label}"] == 0.5
        assert recorded["holdout.images"] == 100
        best = records.best_metrics(metrics, attack)
        assert best[f"best.holdout.robust.{label}"] == 0.5
        assert (best["best.rung"], best["best.holdout.images"]) == (rung, 100)


def test_environment_tags_hold_commit_and_versions(monkeypatch):
    monkeypatch.delenv("MOREL_COMMIT", raising=False)
    tags = records.environment_tags.__wrapped__()
    assert tags["morel.python"] == platform.python_version()
    for package in ("torch", "ray", "mlflow", "omegaconf", "optuna", "torchvision", "numpy"):
        assert tags[f"morel.version.{package}"] == version(package)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", tags["morel.commit"])


def test_a_package_that_is_not_installed_has_no_tag(monkeypatch):
    monkeypatch.setattr(records, "PACKAGES", ("torch", "no-such-package"))
    tags = records.environment_tags.__wrapped__()
    assert tags["morel.version.torch"] == version("torch")
    assert "morel.version.no-such-package" not in tags


def test_run_tags(config):
    tags = records.run_tags(config, "train")
    assert tags["morel.kind"] == "train"
    assert tags["morel.key"] == run_key(config)
    assert (tags["morel.objective"], tags["morel.attack.evaluation"]) == ("trades", ATTACK)
    assert tags["morel.storage"] == "/data/runs/hunt"
    assert all(isinstance(value, str) for value in tags.values())


def test_a_search_starts_no_processes_for_its_trials_tags(config, monkeypatch):
    records.run_tags(config, "trial")
    monkeypatch.setattr(subprocess, "run", None)
    assert records.run_tags(config, "trial")["morel.kind"] == "trial"


def test_mlflows_own_columns_are_filled(config, monkeypatch):
    def nobody():
        raise OSError("no such user")

    assert records.run_tags(config, "trial")["mlflow.source.name"] == "morel tune"
    assert records.run_tags(config, "train")["mlflow.user"]
    monkeypatch.setattr("getpass.getuser", nobody)
    assert "mlflow.user" not in records.run_tags(config, "train")


def test_a_run_without_a_name_is_called_by_what_it_is(config):
    name = records.train_name(replace(config, name=None))
    assert name.startswith("digits-morel-trades-seed0-")
    plain = replace(config, objective=replace(config.objective, morel=False, accuracy="mart"))
    assert records.train_name(plain).startswith("digits-mart-seed0-")


def test_robust_accuracy_is_the_first_metric_of_a_run(config):
    recorded = records.epoch_metrics(epoch(3, robust=0.5), ATTACK)
    assert next(iter(recorded)) == f"holdout.robust.{ATTACK}"


def test_params_are_the_resolved_config_flat(config):
    params = records.params(config)
    assert params["model.width"] == 16  # of the recipe
    assert params["objective.gamma"] == 2e-5  # a default
    assert params["evaluation.attack.num_steps"] == 20
    assert params["name"] == "hunt"
    assert not any(isinstance(value, dict) for value in params.values())


def test_dataset_record(config):
    data = load_data(config.data)
    record = records.dataset_record(config, data)
    assert record == {
        "name": "digits",
        "fingerprint": data.fingerprint,
        "num_classes": 10,
        "sizes": {"train": 1138, "holdout": 300, "test": 359},
        "source": "digits",
    }
    elsewhere = replace(config, data=replace(config.data, root="/data/sets"))
    assert records.dataset_record(elsewhere, data)["source"] == "/data/sets"


def test_a_new_name_is_a_run_id():
    name = records.new_name("my_space")
    assert re.fullmatch(r"my_space-\d{8}-\d{6}", name)
    check_run_id(name)


@pytest.mark.parametrize(
    ("uri", "command"),
    [
        ("http://host:5000", "open http://host:5000"),
        ("https://host", "open https://host"),
        (
            "sqlite:////data/my runs/m.db",
            "mlflow ui --backend-store-uri 'sqlite:////data/my runs/m.db'",
        ),
    ],
)
def test_how_to_look_at_the_runs(config, uri, command):
    tracked = replace(config, tracking=replace(config.tracking, uri=uri))
    assert records.ui_command(tracked) == command


def test_exported_files_are_stored_and_described(tmp_path):
    final = {
        "files": {"model.pt2": b"program", "model.safetensors": b"weights"},
        "record": {
            "split": "test",
            "outcomes": {"clean": {"accuracy": 0.5, "low": 0.4, "high": 0.6, "num_images": 9}},
        },
        "shape": [1, 8, 8],
        "num_classes": 10,
        "json": "{}",
        "seconds": 3.0,
    }
    exported = records.store_export(f"{tmp_path}/deep/winner", final)
    folder = tmp_path / "deep" / "winner" / "model"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == final["files"]
    assert exported.model == {
        "path": str(folder),
        "name": "model",
        "input_shape": [1, 8, 8],
        "num_classes": 10,
        "torch_version": torch.__version__,
    }
    assert exported.metrics["test.clean"] == 0.5
    assert (exported.evaluation, exported.seconds) == ("{}", 3.0)
