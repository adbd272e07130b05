"""`morel train` for real: DDP workers, MLflow, resume by name."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import recorded
import torch
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from safetensors.torch import load_file

from morel_core import MorelError
from orchestrator.cli import main
from orchestrator.cluster import address_passed_on
from orchestrator.config import RunConfig, compose
from orchestrator.driver.ending import interrupt_main
from orchestrator.train import train

ATTACK = "pgd3_linf_0.1"


def config(storage: Path, *overrides: str) -> RunConfig:
    return compose(
        "digits",
        [
            f"storage_path={storage}",
            "training.epochs=2",
            "data.holdout=60",
            "data.train_size=320",
            "data.test_size=60",
            "model.width=4",
            "attack.num_steps=2",
            "evaluation.attack.num_steps=3",
            "optimizer.schedule=constant",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def two_workers(local_ray: Any, shared_storage: Path) -> Any:
    """Two epochs on two workers, then the same name again for a third."""
    first = train(config(shared_storage, "name=pair", "scaling.num_workers=2"))
    longer = config(shared_storage, "name=pair", "scaling.num_workers=2", "training.epochs=3")
    return first, train(longer)


def test_run_is_recorded_once(two_workers: Any, shared_storage: Path) -> None:
    run = recorded.one(shared_storage, "pair")
    assert run.info.status == "FINISHED"
    assert run.data.params["objective.accuracy"] == "trades"
    assert run.data.params["scaling.num_workers"] == "2"
    assert run.data.tags["morel.kind"] == "train"
    assert run.data.tags["morel.stop_reason"] == "all 3 epochs trained"
    assert run.data.tags["morel.version.torch"] == torch.__version__.partition("+")[0]
    assert len(run.data.tags["morel.commit"].partition("-")[0]) in (7, 40)  # "unknown" or a hash
    assert Path(run.data.tags["morel.checkpoint"], "manifest.json").is_file()
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["digits"]


def test_each_epoch_has_its_numbers_and_resume_does_not_repeat_them(
    two_workers: Any, shared_storage: Path
) -> None:
    run = recorded.one(shared_storage, "pair")
    for metric in (
        "loss.total",
        "loss.alignment",
        "loss.contrastive",
        "loss.kl",
        "gradient_share.alignment",
        "lr",
        "images_per_second",
        "holdout.clean",
        f"holdout.robust.{ATTACK}",
        f"holdout.robust.{ATTACK}_low",
        f"holdout.robust.{ATTACK}_high",
    ):
        assert recorded.steps(shared_storage, run, metric) == [1, 2, 3], metric
    first, second = two_workers
    assert (first.epochs, second.epochs) == (2, 3)


def test_final_numbers_stand_with_attack_interval_and_count(
    two_workers: Any, shared_storage: Path
) -> None:
    metrics = recorded.one(shared_storage, "pair").data.metrics
    value = metrics[f"test.robust.{ATTACK}"]
    assert metrics[f"test.robust.{ATTACK}_low"] < value < metrics[f"test.robust.{ATTACK}_high"]
    assert metrics["test.images"] == 60
    assert 1 <= metrics["best.epoch"] <= 3


def test_the_time_it_took_is_that_of_training_under_both_commands(
    two_workers: Any, shared_storage: Path
) -> None:
    """As a search counts it: without the start of workers."""
    run = recorded.one(shared_storage, "pair")
    spent = [recorded.history(shared_storage, run, m) for m in ("seconds", "seconds_evaluation")]
    assert [step for step, _ in spent[0]] == [1, 2, 3]
    total = sum(seconds for of in spent for _, seconds in of)
    assert run.data.metrics["train.seconds"] == pytest.approx(total)


def test_logged_model_is_the_plain_network(two_workers: Any, shared_storage: Path) -> None:
    run = recorded.one(shared_storage, "pair")
    assert len(run.outputs.model_outputs) == 2  # one for each time the run came to an end
    state = load_file(shared_storage / "pair" / "model" / "model.safetensors")
    assert not [name for name in state if "projection" in name or "attention" in name]
    program = torch.export.load(shared_storage / "pair" / "model" / "model.pt2")
    assert program.module()(torch.rand(5, 1, 8, 8)).shape == (5, 10)


def test_name_of_another_run_is_refused(two_workers: Any, shared_storage: Path) -> None:
    with pytest.raises(MorelError, match=r"differs in objective\.beta = 5"):
        train(config(shared_storage, "name=pair", "objective.beta=5"))


def test_worker_count_does_not_change_what_is_learned(
    two_workers: Any, shared_storage: Path
) -> None:
    # No norm: with BatchNorm the statistics are per rank, the one stated exception.
    both: list[dict[str, float]] = []
    for workers in (1, 2):
        name = f"norm-free-{workers}"
        both.append(
            train(
                config(
                    shared_storage,
                    f"name={name}",
                    f"scaling.num_workers={workers}",
                    "model.norm=none",
                )
            ).metrics
        )
    keys = ("best.epoch", "best.holdout.clean", f"best.holdout.robust.{ATTACK}")
    assert [both[0][key] for key in keys] == [both[1][key] for key in keys]


@pytest.mark.parametrize("when", ["an epoch was reported", "workers are started"])
def test_an_interrupted_run_trains_no_further(
    local_ray: Any, shared_storage: Path, when: str
) -> None:
    """Though Ray goes on, as a notebook's; and Ray's own end finds no thread of ours inside."""
    signals = iter([interrupt_main])
    soon = threading.Timer(1.5, interrupt_main)
    hooks: dict[str, Any] = {
        "an epoch was reported": {"on_epoch": lambda _: next(signals)()},
        "workers are started": {"on_start": lambda _: soon.start()},
    }
    name = when.replace(" ", "-")
    with pytest.raises(KeyboardInterrupt):
        train(config(shared_storage, f"name={name}", "training.epochs=100000"), **hooks[when])
    for thread in threading.enumerate():
        if thread.name == "morel-work":
            thread.join(1)
            assert not thread.is_alive()
    deadline = time.monotonic() + 60
    while local_ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < deadline, "the workers keep their CPUs"
        time.sleep(0.1)
    assert recorded.one(shared_storage, name).info.status == "KILLED"


def test_evaluate_and_compare_from_the_command_line(
    two_workers: Any, shared_storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"storage_path={shared_storage}"
    capsys.readouterr()
    code = main(["evaluate", "pair", "--attacks", "fgsm", "pgd5", "--json", where])
    record = json.loads(capsys.readouterr().out)
    assert code == 0
    clean, fgsm = (record["outcomes"][name] for name in ("clean", "fgsm_linf_0.1"))
    assert len(clean["correct"]) == 60
    assert fgsm["accuracy"] <= clean["accuracy"]
    assert "pgd5_linf_0.1" in record["outcomes"]
    run = recorded.one(shared_storage, "pair")
    assert run.data.metrics["test.robust.pgd5_linf_0.1"] <= clean["accuracy"]
    assert run.data.tags["morel.stop_reason"] == "all 3 epochs trained"

    assert main(["compare", "--json", where]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert (
        rows["pair"]["robust_accuracy"]["value"]
        == run.data.metrics[f"best.holdout.robust.{ATTACK}"]
    )


def test_ray_trains_own_actors_are_told_which_ray_is_theirs(
    local_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where several run on a machine, the one that frees a killed run's CPUs would give up."""
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    with address_passed_on():
        told = get_env_vars_to_propagate()["RAY_ADDRESS"]
        assert told == local_ray.get_runtime_context().gcs_address
    assert os.environ["RAY_ADDRESS"] == "elsewhere:1"
    monkeypatch.delenv("RAY_ADDRESS")
    with address_passed_on():
        assert os.environ["RAY_ADDRESS"] == told
    assert "RAY_ADDRESS" not in os.environ
