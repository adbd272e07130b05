"""What waits in journals is counted and delivered, to SQLite here; in its order, and once."""

import json
import os
import socket
import time

import pytest

from morel_core import MorelError
from orchestrator import cli
from orchestrator.config import RunConfig, TrackingConfig
from orchestrator.driver.lease import held
from orchestrator.tracking import Event, Journal, LateTracker, MemoryTracker, Recorder, records


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "runs"


def journal(runs, name, epochs=3, **noted):
    """A run that was never delivered."""
    recorder = Recorder(Journal(str(runs / name / "journal")), LateTracker(unreachable))
    recorder.start_run(name, name=name, params={}, config={})
    for epoch in range(1, epochs + 1):
        recorder.epoch(name, epoch, {"loss": 1 / epoch})
    recorder.finish(name, status="FINISHED", stop_reason="done")
    assert recorder.close(0) == epochs + 2
    (runs / name / "definition.json").write_text(json.dumps(noted))


def unreachable():
    raise MorelError("nobody there")


def sync(capsys, *argv):
    code = cli.main(["sync", *argv, "--json"])
    out, err = capsys.readouterr()
    return json.loads(out) if code == 0 else (code, err)


def losses(database, experiment):
    from mlflow import MlflowClient

    client = MlflowClient(database)
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]


def test_what_is_pending_is_shown_and_then_delivered_once(runs, database, capsys):
    journal(runs, "a")
    options = (f"storage_path={runs}", f"tracking.uri={database}", "tracking.experiment=once")
    (shown,) = sync(capsys, "a", "--dry-run", *options)
    assert (shown["events"], shown["pending"], shown["delivered"]) == (5, 5, 0)
    (done,) = sync(capsys, "a", *options)
    assert (done["pending"], done["delivered"], done["rejected"]) == (5, 5, 0)
    assert (done["uri"], done["experiment"]) == (database, "once")
    before = losses(database, "once")
    assert before == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    (again,) = sync(capsys, str(runs / "a"), *options)
    assert (again["pending"], again["delivered"]) == (0, 0)
    assert losses(database, "once") == before


def test_all_runs_of_a_storage_go_where_they_were_begun(runs, database, capsys):
    """Of a search, the definition notes its base; other folders are no runs."""
    journal(runs, "later", **{"base.tracking.uri": database, "base.tracking.experiment": "later"})
    time.sleep(0.01)
    journal(runs, "earlier", **{"tracking.uri": database, "tracking.experiment": "earlier"})
    (runs / "verified").mkdir()
    done = sync(capsys, f"storage_path={runs}")
    assert [item["name"] for item in done] == ["later", "earlier"]  # in the order they began
    assert [item["experiment"] for item in done] == ["later", "earlier"]
    assert [item["delivered"] for item in done] == [5, 5]


def test_what_mlflow_refuses_is_counted(runs, database, capsys):
    recorder = Recorder(Journal(str(runs / "r" / "journal")), LateTracker(unreachable))
    recorder.start_run("r", name="r", params={}, config={})
    recorder.epoch("r", 1, {"bad*name": 1.0})
    recorder.close(0)
    options = (f"storage_path={runs}", f"tracking.uri={database}", "tracking.experiment=refused")
    (done,) = sync(capsys, "r", *options)
    assert (done["pending"], done["delivered"], done["rejected"]) == (2, 1, 1)
    assert sync(capsys, "r", *options)[0]["pending"] == 0


def test_mistakes_in_one_line(runs, database, capsys):
    code, said = sync(capsys, "nothing", f"storage_path={runs}")
    assert code == 2
    assert said.startswith(f"morel: {runs}/nothing: holds no journal: give the name of a run in")
    journal(runs, "a")
    code, said = sync(capsys, "a", f"storage_path={runs}", "tracking.uri=http://127.0.0.1:1")
    assert code == 2
    assert "MLflow at tracking.uri = http://127.0.0.1:1 does not answer" in said
    assert cli.main(["sync", f"storage_path={runs}/none"]) == 0
    assert "no journals in" in capsys.readouterr().out


def test_a_run_that_goes_on_does_not_wait_for_mlflow(runs, database, caplog):
    """One that begins is told of a wrong address, one that is resumed is recorded later."""
    away = TrackingConfig(uri="http://127.0.0.1:1")
    config = RunConfig(name="a", storage_path=str(runs), tracking=away)
    with pytest.raises(MorelError, match="does not answer"):
        records.open_recorder(config)
    journal(runs, "a", epochs=1)
    recorder = records.open_recorder(config)
    assert "recording is delayed: MLflow at tracking.uri = http://127.0.0.1:1" in caplog.text
    assert recorder.epoch("a", 2, {"loss": 0.5})
    assert recorder.close(0) == 4


def test_a_late_tracker_is_reached_by_the_first_event_that_can():
    there, made = [False], []

    def connect():
        if not there[0]:
            raise MorelError("nobody there")
        made.append(MemoryTracker())
        return made[-1]

    tracker = LateTracker(connect)
    events = [Event("a", seq, "epoch", f"epoch:{seq}", 1.0, {}) for seq in (1, 2)]
    with pytest.raises(ConnectionError, match="nobody there"):
        tracker.apply(events[0])
    there[0] = True
    assert all(tracker.apply(event) for event in events)
    assert [event.seq for event in made[0].applied] == [1, 2]
    assert len(made) == 1


def test_sync_is_for_runs_without_a_driver(runs, database, capsys):
    journal(runs, "a", **{"tracking.uri": database, "tracking.experiment": "busy"})
    with held(f"{runs}/a", 60):
        code, said = sync(capsys, "a", f"storage_path={runs}")
        assert code == 2
        assert f"held by another driver on {socket.gethostname()}" in said
        (found,) = sync(capsys, f"storage_path={runs}")  # all that can be
    assert f"process {os.getpid()}" in found["busy"]
    assert found["delivered"] == 0
