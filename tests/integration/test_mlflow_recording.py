"""Recording into real MLflow: the same contract on SQLite and on a real ``mlflow server``.

Shared by the tests of a store are one database and one server; each test has an experiment.
"""

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from servers import free_port, kill_group, start_mlflow

from morel_core.errors import MorelError
from orchestrator.compare import comparison_table, load_runs
from orchestrator.tracking import Journal, MlflowTracker, Recorder, replay

ATTACK = "pgd20_linf_8-255"


def record_search(recorder, trials=2, epochs=3):
    """A small search as the driver records it."""
    tags = {"morel.kind": "search", "morel.search": "demo"}
    recorder.start_run("demo", name="demo", params={"trials": trials}, config={}, tags=tags)
    for trial in range(trials):
        run_id = f"demo/trial_{trial:05d}"
        recorder.start_run(
            run_id,
            name=f"trial {trial}",
            parent="demo",
            params={"optimizer.lr": 0.1 * (trial + 1), "data.name": "digits"},
            tags={"morel.kind": "trial", "morel.search": "demo"},
            config={"optimizer": {"lr": 0.1 * (trial + 1)}, "data": {"name": "digits"}},
            dataset={
                "name": "digits",
                "fingerprint": "0123456789abcdef" * 4,
                "num_classes": 10,
                "sizes": {"train": 1200, "holdout": 200, "test": 397},
                "source": "sklearn.datasets.load_digits",
            },
        )
        for epoch in range(1, epochs + 1):
            accuracy = 0.1 * epoch + 0.01 * trial
            key = f"holdout.robust.{ATTACK}"
            metrics = {"holdout.clean": 0.9, key: accuracy, "loss.total": 1 / epoch}
            recorder.epoch(run_id, epoch, metrics)
        best = f"best.holdout.robust.{ATTACK}"
        recorder.finish(
            run_id,
            status="FINISHED",
            stop_reason="all epochs done",
            metrics={
                "best.holdout.clean": 0.9,
                best: accuracy,
                f"{best}_low": accuracy - 0.05,
                f"{best}_high": accuracy + 0.05,
                "train.seconds": 2.5,
            },
        )
    recorder.finish("demo", status="FINISHED", stop_reason="all trials done")


def histories(client, run):
    """Every row of every metric, without their order."""
    return {
        key: sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(run, key))
        for key in client.get_run(run).data.metrics
    }


def test_a_search_is_recorded_as_what_it_is(connect, client, runs_of, tmp_path):
    recorder = Recorder(Journal(str(tmp_path)), connect())
    record_search(recorder)
    assert recorder.close(60) == 0
    assert recorder.rejected == ()

    runs, count = runs_of()
    assert count == len(runs) == 3
    trial = runs["demo/trial_00001"]
    assert trial.info.run_name == "trial 1"
    assert trial.info.status == "FINISHED"
    assert trial.data.tags["mlflow.parentRunId"] == runs["demo"].info.run_id
    assert trial.data.tags["morel.stop_reason"] == "all epochs done"
    assert trial.data.params == {"optimizer.lr": "0.2", "data.name": "digits"}
    assert trial.data.metrics["epoch"] == 3
    rows = client.get_metric_history(trial.info.run_id, f"holdout.robust.{ATTACK}")
    assert [(row.step, row.value) for row in rows] == [
        (epoch, pytest.approx(0.1 * epoch + 0.01)) for epoch in (1, 2, 3)
    ]
    events = [e for e in Journal(str(tmp_path)).events() if e.run_id == "demo/trial_00001"]
    assert [row.timestamp for row in rows] == [e.milliseconds for e in events[1:4]]
    assert trial.info.start_time == events[0].milliseconds
    assert trial.info.end_time == events[-1].milliseconds
    assert trial.data.tags["morel.seq"] == "4"

    (used,) = trial.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", ("0123456789abcdef" * 4)[:36])
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    assert [f.path for f in client.list_artifacts(trial.info.run_id)] == ["config.yaml"]


def test_replaying_twice_doubles_nothing(connect, client, runs_of, tmp_path):
    journal = Journal(str(tmp_path))
    recorder = Recorder(journal, connect())
    record_search(recorder)
    assert recorder.close(60) == 0
    before = {key: histories(client, run.info.run_id) for key, run in runs_of()[0].items()}

    assert replay(journal, connect()) == (0, 12, 0)
    # As after a crash that lost the cursor: every call is made again.
    for run in runs_of()[0].values():
        client.delete_tag(run.info.run_id, "morel.seq")
    assert replay(journal, connect()) == (12, 0, 0)

    runs, count = runs_of()
    assert count == 3
    assert {key: histories(client, run.info.run_id) for key, run in runs.items()} == before
    assert all(len(run.inputs.dataset_inputs) <= 1 for run in runs.values())
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_crash_after_create_run_leaves_one_run(connect, runs_of, tmp_path, monkeypatch):
    journal = Journal(str(tmp_path))
    journal.append("s/a", "start", "start", start_payload())

    class Crash(BaseException):
        pass

    def crash(*args, **kwargs):
        raise Crash

    tracker = connect()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", crash)
        with pytest.raises(Crash):
            replay(journal, tracker)
    assert runs_of()[1] == 1
    assert replay(journal, connect()) == (1, 0, 0)
    runs, count = runs_of()
    assert count == 1
    assert runs["s/a"].data.params == {"lr": "0.1"}


def test_a_create_request_that_was_sent_twice_leaves_one_run(
    connect, runs_of, tmp_path, monkeypatch
):
    create = MlflowClient.create_run

    def twice(*args, **kwargs):
        create(*args, **kwargs)
        return create(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    journal = Journal(str(tmp_path))
    journal.append("s/a", "start", "start", start_payload())
    assert replay(journal, connect()) == (1, 0, 0)
    runs, count = runs_of()
    assert (count, runs["s/a"].data.params) == (1, {"lr": "0.1"})


def test_another_journal_with_the_same_names_gets_its_own_run(
    connect, client, experiment, tmp_path
):
    for name in ("first", "second"):
        journal = Journal(str(tmp_path / name))
        journal.append("s/a", "start", "start", start_payload())
        payload = {"epoch": 1, "metrics": {"loss": 0.5}}
        journal.append("s/a", "epoch", "epoch:1", payload)
        assert replay(journal, connect()) == (2, 0, 0)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id])
    assert len(runs) == 2
    assert all(len(client.get_metric_history(r.info.run_id, "loss")) == 1 for r in runs)


def test_a_resumed_run_is_running_again_and_ends_again(connect, client, runs_of, tmp_path):
    journal = Journal(str(tmp_path))
    for epochs, end in ((2, "KILLED"), (4, "FINISHED")):
        recorder = Recorder(journal, connect())
        recorder.start_run("s/a", name="a", params={"lr": 0.1}, config={})
        for epoch in range(1, epochs + 1):
            recorder.epoch("s/a", epoch, {"loss": 1 / epoch})
        recorder.flush(60)
        assert runs_of()[0]["s/a"].info.status == "RUNNING"
        recorder.finish("s/a", status=end, stop_reason=end.lower())
        assert recorder.close(60) == 0
        assert runs_of()[0]["s/a"].info.status == end
    runs, count = runs_of()
    assert count == 1
    rows = client.get_metric_history(runs["s/a"].info.run_id, "loss")
    assert [row.step for row in rows] == [1, 2, 3, 4]
    assert runs["s/a"].data.tags["morel.stop_reason"] == "finished"


def test_progress_has_its_steps_and_the_newest_files(connect, client, runs_of, tmp_path):
    """What waited for MLflow carries the file as it is now; one that is gone costs nothing."""
    recorder = Recorder(Journal(str(tmp_path / "journal")), connect())
    recorder.start_run("demo", name="demo", params={}, config={})
    recorder.finish("demo", status="KILLED", stop_reason="interrupted")
    table = tmp_path / "front.json"
    files = {"front.json": str(table), "front.png": str(tmp_path / "gone.png")}
    for step in (1, 5):
        table.write_text(f"{step}")
        recorder.progress("demo", step, {"front.size": float(step)}, files)
        assert recorder.flush(60) == 0
    assert recorder.close(60) == 0
    assert recorder.rejected == ()
    run = runs_of()[0]["demo"]
    assert run.info.status == "RUNNING"
    history = client.get_metric_history(run.info.run_id, "front.size")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (5, 5.0)]
    found = client.download_artifacts(run.info.run_id, "front.json", str(tmp_path))
    assert Path(found).read_text() == "5"
    before = histories(client, run.info.run_id)
    assert replay(Journal(str(tmp_path / "journal")), connect()).delivered == 0
    assert histories(client, run.info.run_id) == before


def test_numbers_that_are_none_are_counted_not_logged(connect, runs_of, tmp_path):
    recorder = Recorder(Journal(str(tmp_path)), connect())
    recorder.start_run("s/a", name="a", params={}, config={"eps": math.inf})
    recorder.epoch("s/a", 1, {"loss": math.nan, "grad": math.inf, "fine": 1.0})
    recorder.epoch("s/a", 2, {"loss": -math.inf})
    assert recorder.close(60) == 0
    run = runs_of()[0]["s/a"]
    assert run.data.metrics == {"fine": 1.0, "epoch": 2.0}
    assert run.data.tags["morel.nonfinite_metrics"] == "3"


def test_long_values_and_many_of_them(connect, runs_of, tmp_path):
    recorder = Recorder(Journal(str(tmp_path)), connect())
    params = {f"p{i:03d}": i for i in range(230)} | {"long": "x" * 7000, "none": None, "yes": True}
    recorder.start_run(
        "s/a", name="a", params=params, config={}, tags={f"t{i:03d}": "y" for i in range(200)}
    )
    recorder.epoch("s/a", 1, {f"m{i:04d}": float(i) for i in range(1900)})
    assert recorder.close(60) == 0
    assert recorder.rejected == ()
    run = runs_of()[0]["s/a"]
    assert len(run.data.params) == 233
    assert run.data.params["long"] == "x" * 6000
    assert (run.data.params["none"], run.data.params["yes"]) == ("null", "true")
    assert len(run.data.metrics) == 1901
    assert {f"t{i:03d}" for i in range(200)} <= run.data.tags.keys()


def test_what_mlflow_refuses_is_noted_on_the_run(connect, runs_of, tmp_path):
    recorder = Recorder(Journal(str(tmp_path)), connect())
    recorder.start_run("s/a", name="a", params={}, config={})
    recorder.epoch("s/a", 1, {"bad*name": 1.0})
    recorder.epoch("s/a", 2, {"loss": 0.5})
    recorder.finish("s/a", status="FAILED", stop_reason="x", texts={"../out.txt": "no"})
    assert recorder.close(60) == 0
    assert recorder.rejected[0].event.key == "epoch:1"
    assert len(recorder.rejected) == 2
    run = runs_of()[0]["s/a"]
    assert run.data.metrics == {"loss": 0.5, "epoch": 2.0}
    assert run.info.status == "FAILED"
    assert "relative path" in run.data.tags["morel.rejected"]


def test_the_exported_model_is_a_logged_model(uri, connect, client, runs_of, tmp_path, monkeypatch):
    import mlflow

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    folder = tmp_path / "export"
    folder.mkdir()
    torch.export.save(program, folder / "model.pt2")
    (folder / "model.safetensors").write_bytes(b"weights")
    model = {
        "path": str(folder),
        "name": "model",
        "input_shape": [1, 8, 8],
        "num_classes": 10,
        "torch_version": torch.__version__,
    }
    journal = Journal(str(tmp_path / "journal"))
    recorder = Recorder(journal, connect())
    recorder.start_run("s/a", name="a", params={}, config={})
    recorder.finish("s/a", status="FINISHED", stop_reason="done", model=model)
    assert recorder.close(60) == 0
    assert recorder.rejected == ()

    run = runs_of()[0]["s/a"]
    client.delete_tag(run.info.run_id, "morel.seq")
    assert replay(journal, connect()) == (2, 0, 0)  # completes the same model again
    run = client.get_run(run.info.run_id)
    (output,) = run.outputs.model_outputs
    (logged,) = client.search_logged_models([run.info.experiment_id])
    assert logged.model_id == output.model_id
    assert str(logged.status) == "READY"
    paths = {f.path for f in client.list_logged_model_artifacts(logged.model_id)}
    assert paths == {"MLmodel", "data", "model.safetensors", "python_env.yaml", "requirements.txt"}

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    source = client.get_logged_model(logged.model_id).artifact_location
    if uri.startswith("http"):
        source = str(tmp_path / "download")
        copy_model(uri, logged.model_id, source)
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(mlflow.pytorch.load_model(source)(x), expected)
    predicted = mlflow.pyfunc.load_model(source).predict(x.numpy())
    np.testing.assert_allclose(predicted, expected.numpy(), rtol=1e-6, atol=1e-6)


def copy_model(uri, model_id, target):
    """Download a logged model in a process of its own: MLflow keeps the address globally."""
    code = (
        "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]);"
        "mlflow.artifacts.download_artifacts(f'models:/{sys.argv[2]}', dst_path=sys.argv[3])"
    )
    subprocess.run([sys.executable, "-c", code, uri, model_id, target], check=True)


def test_a_model_that_is_gone_does_not_cost_the_end(connect, runs_of, tmp_path):
    recorder = Recorder(Journal(str(tmp_path)), connect())
    recorder.start_run("s/a", name="a", params={}, config={})
    model = {
        "path": str(tmp_path / "gone"),
        "name": "model",
        "input_shape": [1, 8, 8],
        "num_classes": 10,
        "torch_version": torch.__version__,
    }
    recorder.finish(
        "s/a", status="FINISHED", stop_reason="done", metrics={"test.clean": 0.5}, model=model
    )
    assert recorder.close(60) == 0
    run = runs_of()[0]["s/a"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"test.clean": 0.5}
    assert run.data.tags["morel.missing_artifacts"] == model["path"]


def test_comparing_what_was_recorded(uri, connect, experiment, tmp_path):
    recorder = Recorder(Journal(str(tmp_path)), connect())
    record_search(recorder)
    assert recorder.close(60) == 0
    runs = load_runs(uri, experiment, search="demo")
    assert [run.kind for run in runs] == ["search", "trial", "trial"]
    table = comparison_table(runs)
    assert [row.name for row in table.rows] == ["trial 1", "trial 0"]
    best = table.rows[0]
    assert (best.robust_accuracy.value, best.attack) == (pytest.approx(0.31), ATTACK)
    assert best.robust_accuracy.low == pytest.approx(0.26)
    assert (best.epochs, best.seconds, best.stopped) == (3, 2.5, "all epochs done")
    assert table.params == ["optimizer.lr"]


def test_a_trial_is_read_with_the_parameters_of_its_search(uri, connect, experiment, tmp_path):
    recorder = Recorder(Journal(str(tmp_path)), connect())
    whole = {"lr": 0.1, "model.name": "net", "model.norm": "batch", "search.seed": 7}
    recorder.start_run("s", name="s", params=whole, config={}, tags={"morel.kind": "search"})
    for name, own in (("a", {"lr": 0.1}), ("b", {"lr": 0.2, "model.name": "other"})):
        tags = {"morel.kind": "trial"}
        recorder.start_run(f"s/{name}", name=name, parent="s", params=own, config={}, tags=tags)
    assert recorder.close(60) == 0
    _, first, second = load_runs(uri, experiment)
    assert first.params == {"lr": "0.1", "model.name": "net", "model.norm": "batch"}
    assert second.params == {"lr": "0.2", "model.name": "other"}
    table = comparison_table([first, second])
    assert sorted(table.params) == ["lr", "model.name", "model.norm"]


def test_a_search_stands_before_trials_of_its_first_millisecond(uri, client, experiment):
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    for kind, run_id in (("trial", "a/2"), ("search", "a"), ("trial", "a/1")):
        tags = {"morel.run_id": run_id, "morel.kind": kind}
        client.create_run(experiment_id, start_time=1_000, tags=tags)
    assert [run.run_id for run in load_runs(uri, experiment)] == ["a", "a/1", "a/2"]


def test_the_name_of_a_search_means_its_latest(uri, connect, experiment, tmp_path):
    for name in ("first", "second"):
        recorder = Recorder(Journal(str(tmp_path / name)), connect())
        record_search(recorder, trials=1)
        assert recorder.close(60) == 0
        time.sleep(0.01)  # searches are told apart by the millisecond at which they began
    assert len(load_runs(uri, experiment)) == 4
    runs = load_runs(uri, experiment, search="demo")
    assert len(runs) == 2
    assert runs[0].mlflow_id == load_runs(uri, experiment)[2].mlflow_id


def test_unknown_names_come_with_the_known_ones(uri, connect, experiment, tmp_path):
    recorder = Recorder(Journal(str(tmp_path)), connect())
    record_search(recorder, trials=1)
    assert recorder.close(60) == 0
    with pytest.raises(MorelError) as caught:
        load_runs(uri, "no such experiment")
    assert experiment in str(caught.value)
    with pytest.raises(MorelError, match="did you mean 'demo'"):
        load_runs(uri, experiment, search="demoo")


def test_a_deleted_experiment_is_named(uri, connect, client, experiment):
    client.delete_experiment(client.get_experiment_by_name(experiment).experiment_id)
    with pytest.raises(MorelError, match="was deleted in MLflow"):
        connect()


def test_a_server_that_goes_away_and_comes_back_gets_everything_in_order(tmp_path, monkeypatch):
    for key in ("MAX_RETRIES", "BACKOFF_FACTOR"):  # fail fast; the recorder retries
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{key}", "0")
    port = free_port()
    server = start_mlflow(tmp_path, port)
    try:
        tracker = MlflowTracker.connect(f"http://127.0.0.1:{port}", "outage")
        recorder = Recorder(
            Journal(str(tmp_path / "journal")), tracker, first_retry_s=0.1, last_retry_s=0.5
        )
        recorder.start_run("s/a", name="a", params={}, config={})
        recorder.epoch("s/a", 1, {"loss": 1.0})
        assert recorder.flush(60) == 0
        kill_group(server)
        for epoch in (2, 3):
            recorder.epoch("s/a", epoch, {"loss": 1 / epoch})
        recorder.finish("s/a", status="FINISHED", stop_reason="done")
        assert recorder.flush(1) == 3
        assert recorder.last_error
        server = start_mlflow(tmp_path, port)
        assert recorder.close(60) == 0
        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        (run,) = client.search_runs([client.get_experiment_by_name("outage").experiment_id])
        rows = client.get_metric_history(run.info.run_id, "loss")
        assert [(row.step, row.value) for row in rows] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
        assert run.info.status == "FINISHED"
    finally:
        kill_group(server)


def test_nothing_is_written_where_the_process_happens_to_stand(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    recorder = Recorder(Journal(str(tmp_path / "journal")), MlflowTracker.connect(uri, "demo"))
    record_search(recorder, trials=1, epochs=1)
    assert recorder.close(60) == 0
    assert list(elsewhere.iterdir()) == []
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"mlflow.db", "mlartifacts"}


def start_payload():
    return {
        "name": "a",
        "parent": None,
        "params": {"lr": 0.1},
        "tags": {},
        "config": {},
        "dataset": None,
    }
