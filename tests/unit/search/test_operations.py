"""`morel status`, `top`, `logs` and `stop` on what a driver has left, and on MLflow alone."""

import json
import time

import pytest
from fake_tune import FakeTrial, report, traceback

from orchestrator import cli
from orchestrator.compare import RunRecord
from orchestrator.driver import control
from orchestrator.search import operations, status
from orchestrator.search.trials import TrialBook
from orchestrator.search.watch import Watch
from orchestrator.tracking import Journal, MemoryTracker, Recorder


@pytest.fixture
def storage(search):
    """Where a driver has left a search: trial 1 finished, 2 failed, 3 at work."""
    path = search.base.storage_path
    recorder = Recorder(Journal(f"{path}/hunt/journal"), MemoryTracker())
    book = TrialBook(search, recorder, None)
    watch = Watch(book)
    done, failed, running = (FakeTrial(i, n) for n, i in enumerate("abc"))
    done.baseline = "paper"
    book.result(done, report(9, robust=0.6))
    book.complete(done)
    failed.failure = traceback("OSError: no space")
    book.error(failed)
    book.result(running, report(4))
    recorder.close()
    content = status.describe(
        book, state="training", cost=watch.meter.cost(book.trials), held={}, there=(2.0, 0.0),
        concurrent=2, waiting={}, folders={},
    )  # fmt: skip
    status.write(f"{path}/hunt", content)
    error = search.base.storage_path + "/hunt/trial_b"
    operations.storage.write(f"{error}/error.txt", b"Traceback ...\nOSError: no space\n")
    return path


@pytest.fixture
def morel(storage, capsys):
    def run(*arguments):
        code = cli.main([*arguments, f"storage_path={storage}"])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_status_in_words(morel):
    code, shown, _ = morel("status", "hunt")
    assert code == 0
    for part in (
        "hunt: training; 5 trials: 1 finished, 1 failed, 1 running, 2 not started",
        "best so far: trial 1 (paper), epoch 9: robust 60.0 [55.0, 65.0] %",
        "in use: 1 of 2 CPUs",
        "OSError: no space",
        "4/9",
    ):
        assert part in shown


def test_status_as_json(morel):
    code, shown, _ = morel("status", "hunt", "--json")
    found = json.loads(shown)
    assert [trial["state"] for trial in found["trials"]] == ["finished", "failed", "running"]
    assert morel("top", "hunt", "--json")[1]
    assert code == 0


def test_top_without_a_terminal_prints_once(morel):
    assert morel("top", "hunt")[1] == morel("status", "hunt")[1]


def age(storage, seconds):
    found = status.read(f"{storage}/hunt")
    status.write(f"{storage}/hunt", found | {"updated": time.time() - seconds})


def test_a_silent_driver(morel, storage):
    age(storage, 100)
    assert "no driver has been heard of for 100 s" in morel("status", "hunt")[1]
    code, _, said = morel("stop", "hunt")
    assert code == 2
    assert "nothing to stop" in said
    assert "100 s" in said


def test_stop_asks(morel, storage):
    code, shown, _ = morel("stop", "hunt", "3", "5", "--json")
    assert code == 0
    assert len(json.loads(shown)["asked"]) == 2
    assert morel("stop", "hunt")[0] == 0
    names = control.requests(f"{storage}/hunt")
    assert control.pause_asked(names)
    assert control.stops_asked(names) == {3, 5}


@pytest.mark.parametrize(
    ("number", "said"),
    [("1", "has ended already: finished"), ("6", "trials 1 to 5"), ("0", "trials 1 to 5")],
)
def test_what_cannot_be_stopped(morel, storage, number, said):
    code, _, error = morel("stop", "hunt", "3", number)
    assert code == 2
    assert said in error
    assert control.requests(f"{storage}/hunt") == []


def test_logs_of_all(morel):
    _, shown, _ = morel("logs", "hunt")
    lines = [line.split("  ", 1)[1] for line in shown.splitlines()]
    assert lines[0].split() == ["trial", "1", "started:", "001", "paper"]
    assert any("epoch 4, clean 90.0 %, robust.pgd20_linf_0.1 50.0 %" in line for line in lines)
    assert "finished: all 9 epochs trained" in shown
    assert "failed: OSError: no space" in shown


def test_logs_of_a_failed_trial_end_with_its_traceback(morel):
    _, shown, _ = morel("logs", "hunt", "2")
    assert "trial 1" not in shown
    assert shown.rstrip().endswith("OSError: no space")
    _, text, _ = morel("logs", "hunt", "2", "--json")
    assert {event["number"] for event in json.loads(text)["events"]} == {2}
    assert "Traceback" in json.loads(text)["error"]


def test_logs_of_a_trial_that_is_not_there(morel):
    code, _, said = morel("logs", "hunt", "4")
    assert code == 2
    assert "there: 1, 2, 3" in said


def test_a_name_that_nobody_knows(morel):
    code, _, said = morel("status", "other")
    assert code == 2
    assert "no search 'other'" in said
    assert morel("status", "../hunt")[0] == 2


# --- MLflow alone --------------------------------------------------------------------------------


def run(run_id, kind, status="FINISHED", **more):
    return RunRecord(
        run_id=run_id, mlflow_id=run_id, parent_mlflow_id=None, kind=kind, status=status,
        search="hunt", started=1.0, ended=None,
        **({"params": {}, "metrics": {}, "tags": {}, "name": run_id} | more),
    )  # fmt: skip


@pytest.fixture
def mlflow(monkeypatch):
    runs = [
        run("hunt", "search", "RUNNING", params={"search.num_trials": "4"},
            tags={"morel.storage": "/far/away/hunt"}),
        run("hunt/b", "trial", "RUNNING", name="002 k1=0.2", metrics={"epoch": 3.0}),
        run("hunt/a", "trial", name="001 paper", tags={
            "morel.state": "finished", "morel.stop_reason": "all 9 epochs trained"}, metrics={
            "epoch": 9.0, "cost.cpu_seconds": 3600.0, "train.seconds": 3600.0,
            "best.holdout.robust.pgd20_linf_0.1": 0.6,
            "best.holdout.robust.pgd20_linf_0.1_low": 0.5,
            "best.holdout.robust.pgd20_linf_0.1_high": 0.7, "best.holdout.clean": 0.9}),
        run("other", "search"),
    ]  # fmt: skip
    monkeypatch.setattr(operations, "load_runs", lambda uri, experiment: runs)
    return runs


def test_status_from_mlflow(mlflow, tmp_path, capsys):
    assert cli.main(["status", "hunt", f"storage_path={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "hunt: running; 4 trials: 1 running, 1 finished" in shown
    assert "its storage /far/away/hunt is not to be seen here" in shown
    assert "60.0 [50.0, 70.0]" in shown
    assert cli.main(["stop", "hunt", f"storage_path={tmp_path}"]) == 2
    assert "/far/away/hunt" in capsys.readouterr().err


def test_a_storage_that_mlflow_leads_to(mlflow, storage, tmp_path, capsys):
    mlflow[0].tags["morel.storage"] = f"{storage}/hunt"
    assert cli.main(["logs", "hunt", f"storage_path={tmp_path}/empty"]) == 0
    assert "failed: OSError: no space" in capsys.readouterr().out
