"""Commands as on a cluster: storage on an S3 API, MLflow's server on PostgreSQL, artifacts on S3.

One search, whose driver is killed once and which the same command finishes. In `make long` also one
whose trials have two workers each, and a training run of two workers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from object_store import ObjectStore, serve
from postgres import postgres
from servers import free_port, kill_group, start_mlflow

from morel_core.checkpoint import load_tensors, verify
from orchestrator import storage
from orchestrator.cli import main
from orchestrator.compare import RunRecord, load_runs
from orchestrator.tracking import Journal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STORAGE = "s3://runs/of/tests"
SMALL = {
    "data.holdout": 60,
    "data.train_size": 320,
    "data.test_size": 60,
    "model.width": 4,
    "attack.num_steps": 2,
    "evaluation.attack.num_steps": 3,
    "checkpoint.every_seconds": 0,
    "training.epochs": 3,
}
SPACE: dict[str, Any] = {
    "recipe": "digits",
    "overrides": SMALL,
    "scheduler": {"name": "none"},
    "num_trials": 3,
    "ladder": {"verify": {"top": 1, "attacks": ["apgd-ce"]}},
    "parameters": {"objective.alpha": {"type": "float", "low": 1e-6, "high": 1.0, "log": True}},
    "baselines": {"paper": {"objective.alpha": 1e-5}},
}


@dataclass
class Place:
    """What the commands are pointed at, by the environment alone."""

    store: ObjectStore
    tracking: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    with serve() as store, postgres() as database, pytest.MonkeyPatch.context() as patch:
        for bucket in ("runs", "artifacts"):
            store.client.create_bucket(Bucket=bucket)
        server = start_mlflow(
            folder,
            port,
            database=database,
            artifacts="s3://artifacts/of/mlflow",
            environment=store.environment,
        )
        uri = f"http://127.0.0.1:{port}"
        for name, value in {**store.environment, "MLFLOW_TRACKING_URI": uri}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        storage.forget_stores()
        yield Place(store, uri)
        storage.forget_stores()
        kill_group(server)


def morel(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *arguments, f"storage_path={STORAGE}"]


def printed(*arguments: str) -> dict[str, Any]:
    """What a command that must succeed prints."""
    done = subprocess.run(
        morel(*arguments), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def recorded(name: str, place: Place) -> list[RunRecord]:
    """The runs in MLflow of a training run or a search."""
    return [run for run in load_runs(place.tracking, "morel") if name in (run.run_id, run.search)]


def keys(name: str) -> list[str]:
    return [event.run_id + event.key for event in Journal(f"{STORAGE}/{name}/journal").events()]


# --- a search whose driver is killed --------------------------------------------------------------


@dataclass
class Hunt:
    """A search that needed two drivers."""

    name: str
    seen: list[str]
    """What was in the journal when the first was killed."""
    printed: dict[str, Any]
    """By the second."""


@pytest.fixture(
    scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)], ids="workers{}".format
)
def hunt(
    place: Place, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Hunt:
    name = f"hunt{request.param}"
    file = tmp_path_factory.mktemp("space") / "space.yaml"
    file.write_text(json.dumps(SPACE | {"resources": {"workers": request.param}}))
    command = ["tune", str(file), "--json", f"name={name}"]
    driver = subprocess.Popen(morel(*command), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    try:
        while not any("/" in key and "final" in key for key in keys(name)):  # one trial is done
            assert driver.poll() is None, "the search ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        driver.kill()
        driver.wait()
    return Hunt(name, keys(name), printed(*command))


def test_no_trial_is_lost_or_doubled(hunt: Hunt) -> None:
    trials = hunt.printed["trials"]
    assert [trial["number"] for trial in trials] == [1, 2, 3]
    assert {trial["stop_reason"] for trial in trials} == {"all 3 epochs trained"}
    assert hunt.printed["winner"] in [trial["run_id"] for trial in trials]


def test_the_journal_goes_on_where_it_was(hunt: Hunt) -> None:
    now = keys(hunt.name)
    assert now[: len(hunt.seen)] == hunt.seen
    assert max(Counter(now).values()) == 1


def test_mlflow_is_consistent_and_checkpoints_are_whole(hunt: Hunt, place: Place) -> None:
    runs = recorded(hunt.name, place)
    assert Counter(run.kind for run in runs) == {"search": 1, "trial": 3}
    assert {run.status for run in runs} == {"FINISHED"}
    client = MlflowClient(place.tracking)
    for run in runs:
        if run.kind == "trial":
            history = client.get_metric_history(run.mlflow_id, "holdout.clean")
            assert sorted(point.step for point in history) == [1, 2, 3]
            assert run.tags["morel.checkpoint"].startswith(f"{STORAGE}/{hunt.name}/")
            verify(storage.local_copy(run.tags["morel.checkpoint"]))


def test_mlflow_has_the_model_of_the_winner(hunt: Hunt, place: Place) -> None:
    (run,) = [r for r in recorded(hunt.name, place) if r.run_id == hunt.printed["winner"]]
    _check_model(run, place)


def _check_model(run: RunRecord, place: Place) -> None:
    """The model in MLflow can be had through its server, lies in its bucket, and loads."""
    (model,) = MlflowClient(place.tracking).get_run(run.mlflow_id).outputs.model_outputs
    mlflow.set_tracking_uri(place.tracking)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model.model_id}"))
    weights = next(folder.rglob("model.safetensors"))
    (key,) = (
        key
        for key in place.store.keys("artifacts", "of/mlflow/")
        if model.model_id in key and key.endswith("model.safetensors")
    )
    assert weights.read_bytes() == place.store.read("artifacts", key)
    assert load_tensors(weights)


def test_it_is_watched_and_compared(hunt: Hunt, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"storage_path={STORAGE}"
    assert main(["status", hunt.name, "--json", where]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"finished": 3}
    assert main(["compare", "--search", hunt.name, "--json", where]) == 0
    assert hunt.printed["winner"] in capsys.readouterr().out
    assert main(["stop", hunt.name, where]) != 0
    assert "nothing to stop" in capsys.readouterr().err
    assert main(["sync", hunt.name, "--dry-run", "--json", where]) == 0
    assert f'"{hunt.name}"' in capsys.readouterr().out


def test_an_evaluation_finds_its_shards_again(
    hunt: Hunt, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", hunt.name, "--attacks", "fgsm", "--num-images", "40", "--json"]
    command += ["--no-checks", f"storage_path={STORAGE}"]
    found: list[Any] = []
    for _ in range(2):
        place.store.requests.clear()
        assert main(command) == 0
        written = [r for r in place.store.requests if r.startswith("PUT") and "/shards/" in r]
        found.append((json.loads(capsys.readouterr().out)["outcomes"], len(written)))
    (first, measured), (second, again) = found
    assert measured > 0
    assert again == 0
    assert first == second


# --- a run of two workers -------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_of_two_workers_goes_on_from_its_checkpoint(place: Place) -> None:
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    command = ["train", "digits", "--json", "name=first", "scaling.num_workers=2", *settings]
    printed(*command)
    longer = printed(*command, "training.epochs=4")
    assert longer["checkpoint"].startswith(f"{STORAGE}/first/checkpoint_")
    verify(storage.local_copy(longer["checkpoint"]))
    (run,) = recorded("first", place)
    assert run.epochs == 4
    history = MlflowClient(place.tracking).get_metric_history(run.mlflow_id, "loss.total")
    assert sorted(point.step for point in history) == [1, 2, 3, 4]
