"""What MLflow's own pages show, on SQLite and on a real ``mlflow server``: notes, views, models."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from orchestrator.tracking import Journal, Recorder, replay
from orchestrator.tracking.note import merged
from orchestrator.tracking.registry import PROTOCOL, SCORE


def test_artifacts_texts_and_a_note(connect, client, runs_of, tmp_path):
    (tmp_path / "a b.json").write_text("{}")
    recorder = Recorder(Journal(str(tmp_path / "journal")), connect())
    recorder.start_run("s/a", name="a", params={}, config={})
    recorder.finish(
        "s/a",
        status="FINISHED",
        stop_reason="done",
        artifacts={
            "eval/result.json": str(tmp_path / "a b.json"),
            "eval/by_uri.json": (tmp_path / "a b.json").as_uri(),
            "gone.bin": str(tmp_path / "gone.bin"),
            "gone_by_uri.bin": (tmp_path / "gone.bin").as_uri(),
        },
        texts={"notes/log.txt": "α"},
        note="# Summary",
    )
    assert recorder.close(60) == 0
    assert recorder.rejected == ()
    run = runs_of()[0]["s/a"]
    files = client.list_artifacts(run.info.run_id, "eval")
    assert [f.path for f in files] == ["eval/by_uri.json", "eval/result.json"]
    local = client.download_artifacts(run.info.run_id, "notes/log.txt", str(tmp_path))
    assert Path(local).read_text(encoding="utf-8") == "α"
    assert run.data.tags["mlflow.note.content"] == merged("# Summary", None)
    assert run.data.tags["morel.missing_artifacts"] == "gone.bin, gone_by_uri.bin"


def registration(name, score, protocol="square on 100 images", champion="better"):
    return {
        "name": name,
        "description": "# What it is",
        "tags": {
            "seed": "0",
            **({SCORE: repr(score), PROTOCOL: protocol} if score is not None else {}),
        },
        "champion": champion,
        "score": score,
        "protocol": protocol,
    }


@pytest.fixture
def network(connect, client, runs_of, tmp_path):
    """``network("a")``: a recorded run with a logged model, and the recorder that it has."""
    recorders = []

    def record(name):
        recorder = Recorder(Journal(str(tmp_path / name)), connect())
        recorders.append(recorder)
        recorder.start_run(name, name=name, params={}, config={})
        recorder.finish(name, status="FINISHED", stop_reason="done", metrics={"test.clean": 0.9})
        assert recorder.flush(60) == 0
        run = runs_of()[0][name]
        model = client.create_logged_model(
            run.info.experiment_id, name="model", source_run_id=run.info.run_id
        )
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
        return recorder

    yield record
    for recorder in recorders:
        recorder.close(0)


def registered(client, name):
    """The versions in order, as (run, champion tag), and the number of the champion."""
    found = client.search_model_versions(f"name = '{name}'")
    versions = sorted(found, key=lambda version: int(version.version))
    runs = [client.get_run(v.run_id).data.tags["morel.run_id"] for v in versions]
    aliases = client.get_registered_model(name).aliases
    champion = aliases.get("champion")
    said = [version.tags["champion"] for version in versions]
    return list(zip(runs, said, strict=True)), None if champion is None else str(champion)


def test_a_registration_is_a_version_and_is_never_doubled(
    connect, client, network, experiment, tmp_path
):
    recorder = network("a")
    recorder.register("a", registration(experiment, 0.5))
    recorder.register("a", registration(experiment, 0.5))
    assert recorder.flush(60) == 0
    assert recorder.rejected == ()
    assert registered(client, experiment) == ([("a", "yes: it was already")], "1")
    (version,) = client.search_model_versions(f"name = '{experiment}'")
    assert version.description == "# What it is"
    assert version.tags[SCORE] == "0.5"
    client.delete_tag(version.run_id, "morel.seq")  # as after a crash
    assert replay(Journal(str(tmp_path / "a")), connect()) == (4, 0, 0)
    assert registered(client, experiment) == ([("a", "yes: it was already")], "1")


def test_the_champion_is_the_better_one_by_the_same_protocol(client, network, experiment):
    for name, payload in {
        "unverified": registration(experiment, None),
        "first": registration(experiment, 0.5),
        "lost": registration(experiment, 0.9, champion="never"),
        "equal": registration(experiment, 0.5),
        "better": registration(experiment, 0.6),
        "other": registration(experiment, 0.9, protocol="fgsm on 10 images"),
        "asked": registration(experiment, 0.1, champion="always"),
    }.items():
        recorder = network(name)
        recorder.register(name, payload)
        assert recorder.flush(60) == 0
    versions, champion = registered(client, experiment)
    assert dict(versions) == {
        "unverified": "no: not verified",
        "first": "no: version 5 is, since",
        "lost": "no: not asked for",
        "equal": "no: 50.0 % against 50.0 % of version 2, by the same protocol",
        "better": "no: version 7 is, since",
        "other": "no: version 5 was measured otherwise, so they cannot be compared",
        "asked": "yes: asked for, instead of version 5",
    }
    assert champion == "7"


def test_without_a_registry_a_run_keeps_all_that_it_has(
    client, network, runs_of, experiment, monkeypatch
):
    def absent(*args, **kwargs):
        raise MlflowException("no such endpoint", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(MlflowClient, "search_registered_models", absent)
    recorder = network("a")
    recorder.register("a", registration(experiment, 0.5))
    recorder.finish("a", status="FINISHED", stop_reason="later", metrics={"test.robust.x": 0.5})
    assert recorder.flush(60) == 0
    (rejection,) = recorder.rejected
    assert "no registry of models" in rejection.reason
    run = runs_of()[0]["a"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"test.clean": 0.9, "test.robust.x": 0.5}
    assert run.data.tags["morel.stop_reason"] == "later"


def test_a_view_is_a_tag_of_the_experiment(connect, client, experiment, tmp_path):
    recorder = Recorder(Journal(str(tmp_path)), connect())
    recorder.start_run("s", name="s", params={}, config={})
    shown = {
        "params": ["lr"], "clean": "c", "robust": "r", "more": [], "curves": ["r"], "tags": [],
    }  # fmt: skip
    assert recorder.view("s", shown)
    assert not recorder.view("s", shown)  # a resumed search
    recorder.view("s", shown | {"params": [f"p{i:x}{i * 7919:x}" for i in range(3_000)]})
    assert recorder.close(60) == 0
    (rejection,) = recorder.rejected
    assert "too long for MLflow" in rejection.reason
    tags = client.get_experiment_by_name(experiment).tags
    assert json.loads(tags["mlflow.sharedViewState.s"])["name"] == "s"


def test_what_a_person_wrote_on_a_run_stays(connect, client, runs_of, tmp_path):
    recorder = Recorder(Journal(str(tmp_path)), connect())
    recorder.start_run("s", name="s", params={}, config={})
    assert recorder.flush(60) == 0
    client.set_tag(runs_of()[0]["s"].info.run_id, "mlflow.note.content", "mine")
    for note in ("first", "second, of [s](run:s) and [t](run:t)"):
        recorder.finish("s", status="FINISHED", stop_reason="done", note=note)
    assert recorder.close(60) == 0
    run = runs_of()[0]["s"]
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    expected = merged(f"second, of [s]({page}) and t", "mine")
    assert run.data.tags["mlflow.note.content"] == expected
