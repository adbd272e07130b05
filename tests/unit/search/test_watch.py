"""What a driver does about requests and its budget, without Ray: and what it says of itself."""

import os
import socket
import threading
import time
from dataclasses import replace

import pytest
from fake_tune import FakeTrial, report
from ray.tune.result import SHOULD_CHECKPOINT

from orchestrator import storage
from orchestrator.driver import control
from orchestrator.search import status, watch
from orchestrator.search.settings import BudgetConfig, ResourcesConfig
from orchestrator.search.trials import TrialBook
from orchestrator.search.watch import Paused, Watch


def tune_trial(trial_id="t1", index=0, status="RUNNING"):
    trial = FakeTrial(trial_id, index, status=status)
    trial.relative_logdir = f"trial_{trial_id}"
    trial.num_failures = 0
    return trial


@pytest.fixture
def book(search, recorder):
    return TrialBook(search, recorder, None)


@pytest.fixture
def watching(book, monkeypatch):
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    monkeypatch.setattr(watch, "WRITE_S", 0.01)
    return Watch(book)


@pytest.fixture
def interrupts(monkeypatch):
    """Counts how often Tune's loop is asked to end."""
    sent = []
    monkeypatch.setattr(watch.signal, "raise_signal", sent.append)
    return sent


def until(condition):
    deadline = time.time() + 20
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


def test_a_pause_waits_until_running_trials_are_saved(watching, interrupts):
    first, second, waiting = (
        tune_trial("a", 0),
        tune_trial("b", 1),
        tune_trial("c", 2, status="PENDING"),
    )
    trials = [first, second, waiting]
    with watching.watching():
        control.ask_pause(watching.folder)
        until(lambda: watching.pausing is not None)
        watching.turn(trials)
        for trial in (first, second):
            assert interrupts == []
            newest = report(1)
            watching.report(trial, newest)
            assert newest[SHOULD_CHECKPOINT]
            watching.saved(trial)
            watching.turn(trials)
        assert len(interrupts) == 1
        watching.turn(trials)
        assert len(interrupts) == 1
    assert control.requests(watching.folder) == ["pause.json"]  # no exception: nobody was paused


def test_a_pause_waits_until_several_workers_have_saved_for_themselves(watching, interrupts):
    asked = replace(watching.book.search, resources=ResourcesConfig(workers=2))
    watching.book.search = asked
    trial = tune_trial()
    watching.report(trial, report(1, checkpoint_path="/before"))
    watching.pausing = time.time()
    for path, ended in ((None, 0), ("/there", 1)):
        newest = report(2, checkpoint_path=path)
        watching.report(trial, newest)
        assert SHOULD_CHECKPOINT not in newest  # it would end the workers
        watching.turn([trial])
        assert len(interrupts) == ended


def test_a_pause_does_not_wait_for_ever(watching, interrupts, monkeypatch):
    monkeypatch.setattr(control, "GRACE_S", -1.0)
    watching.pausing = time.time()
    watching.turn([tune_trial()])
    assert len(interrupts) == 1


def test_reports_are_saved_only_for_a_pause(watching):
    newest = report(1)
    watching.report(tune_trial(), newest)
    assert SHOULD_CHECKPOINT not in newest


def test_an_interrupted_loop_ends_as_an_interruption(watching):
    with pytest.raises(KeyboardInterrupt), watching.tuning():
        watching.interrupted = True


def test_a_search_in_another_thread_is_paused_too(watching):
    raised = []

    def search():
        try:
            with watching.tuning():
                watching.pausing = time.time() - 1000.0
                watching.turn([])
        except BaseException as error:
            raised.append(type(error))

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert raised == [KeyboardInterrupt]


def test_a_pause_says_that_the_command_goes_on(watching):
    def pause():
        with watching.watching(), watching.tuning():
            control.ask_pause(watching.folder)
            until(lambda: watching.pausing is not None)
            watching.interrupted = True

    with pytest.raises(Paused, match=r"the same command \(with name=hunt\) goes on"):
        pause()
    assert status.read(watching.folder)["state"] == "paused"
    assert control.requests(watching.folder) == []


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt, "interrupted"), (OSError, "failed")]
)
def test_how_a_driver_ended(watching, error, state):
    with pytest.raises(error), watching.watching():
        raise error("no more space")
    assert status.read(watching.folder)["state"] == state


def test_a_pause_of_its_campaign_is_heard_and_passed_on_to_its_workers(book, monkeypatch):
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    book.search = replace(book.search, parent="all")
    campaign, watching = f"{book.search.base.storage_path}/all", Watch(book)

    def pause():
        with watching.watching(), watching.tuning():
            control.ask_pause(campaign)
            until(lambda: watching.pausing is not None)
            assert control.is_paused(watching.folder)
            watching.interrupted = True

    with pytest.raises(Paused, match="the same command goes on"):
        pause()
    found = status.read(watching.folder)
    assert (found["state"], found["parent"]) == ("paused", "all")


def test_a_pause_that_comes_while_ray_starts_is_heard(watching):
    control.ask_pause(watching.folder)
    with watching.watching():
        until(lambda: watching.pausing is not None)


def test_a_pause_beside_the_last_report_still_pauses(watching):
    """Tune's loop has ended by itself; verification and test set wait."""
    with pytest.raises(Paused), watching.watching(), watching.tuning():
        watching.pausing = time.time()
    assert status.read(watching.folder)["state"] == "paused"


def test_a_slow_storage_makes_nobody_believe_that_the_driver_is_dead(watching, monkeypatch):
    """A status that took half a minute is followed by the next one in time."""
    now, written = [1000.0], []

    def write():
        written.append(now[0])
        now[0] += 30.0 if len(written) == 1 else 0.1

    class Ended:
        def is_set(self):
            return len(written) == 3

        def wait(self, seconds):
            now[0] += seconds

    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watching, "_write", write)
    watching._ended = Ended()
    watching._run()
    assert written[1] - (written[0] + 30.0) < status.STALE_S


def test_a_trial_that_is_to_stop(watching, book):
    trials = [tune_trial("a", 0), tune_trial("b", 1)]
    with watching.watching():
        control.ask_stop(watching.folder, 2)
        storage.write(f"{watching.folder}/control/stop-x.json", b"?")  # not one of ours
        watching.turn(trials)
        until(lambda: watching.stops("b"))
    assert not watching.stops("a")
    assert not watching.stops("unknown")
    assert book.stopped_by_hand == {"hunt/b"}


def test_the_budget_is_over_for_good(book):
    book.search = replace(book.search, budget=BudgetConfig(wall_time_s=1e-9))
    watching = Watch(book)
    assert watching.over()
    assert book.cut == "budget.wall_time_s spent"
    assert watching.over()


def test_what_was_spent_is_known_to_the_next_driver(watching, book, search, recorder):
    trial = tune_trial()
    with watching.watching():
        watching.turn([trial])
        watching.report(trial, report(2, time_this_iter_s=50.0))
    later = Watch(TrialBook(search, recorder, None))
    assert later.book.held_before["hunt/t1"] == pytest.approx(50.0, abs=1.0)
    assert later.meter.cost([]).wall_seconds > 0
    with later.watching():  # killed before its trials were here again, it would know as much
        pass
    third = Watch(TrialBook(search, recorder, None))
    assert third.meter.cost([]).cpu_seconds == pytest.approx(50.0, abs=1.0)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"held_seconds": 3, "cost": []}', '{"cost": "?"}']
)
def test_a_broken_status_costs_nothing(book, content):
    folder = f"{book.search.base.storage_path}/hunt"
    os.makedirs(folder)
    with open(f"{folder}/status.json", "w") as file:
        file.write(content)
    later = Watch(book)
    assert later.meter.cost([]).wall_seconds < 10
    assert book.held_before == {}


def test_the_status_is_written_while_nothing_happens(watching):
    with watching.watching():
        until(lambda: status.read(watching.folder))
        first = status.read(watching.folder)
        until(lambda: status.read(watching.folder)["updated"] > first["updated"])
    assert first["state"] == "starting"
    assert first["counts"] == {"not started": 5}
    assert (first["pid"], first["host"]) == (os.getpid(), socket.gethostname())


def test_the_status_of_trials(watching, book):
    running, waiting, again, fresh = (
        tune_trial("a", 0),
        tune_trial("b", 1, "PENDING"),
        tune_trial("c", 2, "PENDING"),
        tune_trial("d", 3),
    )
    again.num_failures = 1
    trials = [running, waiting, again, fresh]
    with watching.watching():
        watching.there, watching.concurrent = (4.0, 0.0), 2
        watching.turn(trials)
        for trial in trials:
            book.start(trial)
        watching.report(running, report(3, robust=0.5, time_this_iter_s=30.0))
        watching.state = "training"
        until(lambda: (status.read(watching.folder) or {}).get("best"))
        found = status.read(watching.folder)
    assert [(t["number"], t["state"], t["why"]) for t in found["trials"]] == [
        (1, "running", ""),
        (2, "waiting", "waits for 1 CPU"),
        (3, "waiting", "waits to be tried again"),
        (4, "running", "starting"),
    ]
    assert found["best"]["number"] == 1
    assert found["used"] == {"cpus": 2, "gpus": 0.0}
    # 90 s for 9 epochs each; two at a time: (60 + 3 × 90 + 90) / 2
    assert found["seconds_left"] == pytest.approx(210.0, abs=3.0)


def test_a_trial_that_was_never_started_has_no_folder_yet(watching):
    """Under pbt trials wait for their turn from the beginning."""
    waiting = tune_trial("t2", 1, status="PAUSED")
    waiting.relative_logdir = None
    watching.turn([tune_trial(), waiting])
    watching._write()
    assert status.read(watching.folder)["state"] == "starting"
