"""The driver's view of Tune's trials: a state machine, fed as Tune feeds its callbacks."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from fake_tune import ATTACK, FakeTrial, checkpoint, report, traceback

from orchestrator.messages.failures import FAILED
from orchestrator.search import trials
from orchestrator.search.selection import choose
from orchestrator.search.settings import SchedulerConfig
from orchestrator.search.trial import STOP_REASON
from orchestrator.search.trials import TrialBook
from orchestrator.tracking import Journal, MemoryTracker, Recorder, records
from orchestrator.tracking.records import own_end


class View:
    """Remembers the states that were shown."""

    def __init__(self):
        self.shown = []

    def update(self, trials):
        self.shown.append([(t.number, t.state, t.epoch) for t in trials])

    def say(self, line):
        self.shown.append(line)


@pytest.fixture
def view():
    return View()


@pytest.fixture
def book(search, recorder, view):
    return TrialBook(search, recorder, view)


@pytest.fixture
def recorded(recorder, tracker):
    """The events of one run so far, as (kind, payload)."""

    def of(run_id):
        assert recorder.flush(10) == 0
        assert tracker.rejected == []
        return [(e.kind, e.payload) for e in tracker.applied if e.run_id == run_id]

    return of


@contextmanager
def another_driver(search, recorder):
    """The book of a driver that finds the journal of this one."""
    later = Recorder(Journal(recorder._journal.root), MemoryTracker())
    yield TrialBook(search, later, None)
    later.close()


@pytest.fixture
def now(monkeypatch):
    """A clock to set: ``now(1000.0)``."""
    clock = [1000.0]
    monkeypatch.setattr(trials.time, "time", lambda: clock[0])

    def set_to(seconds):
        clock[0] = seconds

    return set_to


def test_a_trial_from_start_to_end(book, recorded, view):
    tune_trial = FakeTrial(index=2)
    book.start(tune_trial)
    book.result(tune_trial, report(3, robust=0.4, since=1))
    book.result(tune_trial, report(9, robust=0.6, since=4))
    tune_trial.checkpoint = checkpoint()
    book.complete(tune_trial)

    (trial,) = book.trials
    assert (trial.run_id, trial.number, trial.state) == ("hunt/t1", 3, "finished")
    assert trial.reason == "all 9 epochs trained"
    assert (trial.epoch, trial.seconds) == (9, 27.0)
    assert trial.checkpoint == "/storage/checkpoint_000001"
    assert trial.measured

    events = recorded("hunt/t1")
    assert [kind for kind, _ in events] == ["start", *["epoch"] * 9, "final"]
    assert [p["epoch"] for kind, p in events if kind == "epoch"] == list(range(1, 10))
    assert view.shown[0] == [(3, "running", 0)]
    assert view.shown[-1] == [(3, "finished", 9)]


def test_what_is_recorded_at_the_start(book, recorded):
    book.start(FakeTrial(index=0, baseline="paper", k1=0.1, alpha=1e-5))
    ((kind, start),) = recorded("hunt/t1")
    assert kind == "start"
    assert (start["name"], start["parent"]) == ("001 paper", "hunt")
    assert start["params"] == {
        "objective.preference": [0.1, 0.9],  # resolved for the run …
        "objective.alpha": 1e-5,
        "search.k1": 0.1,  # … and the helper it was derived from
    }
    assert book.search.base.objective.alpha == 1e-5  # what is searched stands there all the same
    assert start["config"]["objective"]["preference"] == [0.1, 0.9]
    assert start["config"]["training"]["epochs"] == 9
    tags = start["tags"]
    assert tags["morel.kind"] == "trial"
    assert (tags["morel.search"], tags["morel.baseline"]) == ("hunt", "paper")
    assert tags["morel.attack.evaluation"] == ATTACK
    assert "morel.commit" in tags


def test_a_trial_has_what_the_record_of_its_search_lacks(search, recorder, tmp_path):
    moved = replace(search.base, tracking=replace(search.base.tracking, uri="http://new:5000"))
    for params, more in (
        (records.params(search.base), {"tracking.uri"}),
        ({"search.seed": 0}, records.params(search.base).keys()),  # of an older search
    ):
        before = Recorder(Journal(str(tmp_path / str(len(params)))), MemoryTracker())
        before.start_run("hunt", name="hunt", params=params, config={})
        before.close()
        with another_driver(replace(search, base=moved), before) as book:
            book.start(FakeTrial())
            (start,) = [
                event
                for event in Journal(before._journal.root).events()
                if event.run_id == "hunt/t1"
            ]
        own = {"objective.preference", "objective.alpha", "search.k1"}
        assert start.payload["params"].keys() == own | more


def test_a_sampled_trial_is_labelled_by_its_point(book):
    trial = book.start(FakeTrial(k1=0.25, alpha=0.01))
    assert "0.25" in trial.label
    assert trial.baseline is None


def test_epochs_are_recorded_under_names_with_the_attack(book, recorded):
    tune_trial = FakeTrial()
    book.result(tune_trial, report(1, robust=0.4))  # a result may be the first that is heard
    (start, _), (kind, payload) = recorded("hunt/t1")
    assert (start, kind) == ("start", "epoch")
    metrics = payload["metrics"]
    assert metrics[f"holdout.robust.{ATTACK}"] == 0.4
    assert metrics[f"holdout.robust.{ATTACK}_low"] == pytest.approx(0.35)
    assert metrics["holdout.clean"] == 0.9
    assert metrics["loss.total"] == 1.0
    assert "robust_accuracy" not in metrics


def test_final_numbers_and_tags(book, recorded):
    tune_trial = FakeTrial(checkpoint=checkpoint("/storage/c"))
    book.result(tune_trial, report(9, robust=0.6))
    book.complete(tune_trial)
    kind, final = recorded("hunt/t1")[-1]
    assert kind == "final"
    assert (final["status"], final["stop_reason"]) == ("FINISHED", "all 9 epochs trained")
    assert final["metrics"][f"best.holdout.robust.{ATTACK}"] == 0.6
    assert final["metrics"]["best.epoch"] == 9
    assert final["metrics"]["train.seconds"] == 27.0
    assert final["metrics"]["train.images_per_second"] == 500.0
    assert final["tags"] == {
        "morel.state": "finished",
        "morel.diverged": "false",
        "morel.device": "cpu",
        "morel.checkpoint": "/storage/c",
    }
    assert final["metrics"]["cost.cpu_seconds"] == 27.0


def test_stopped_early_by_the_scheduler(book, recorded):
    tune_trial = FakeTrial(checkpoint=checkpoint())
    book.result(tune_trial, report(3))
    book.complete(tune_trial)
    (trial,) = book.trials
    assert (trial.state, trial.reason) == ("stopped", "ASHA stopped it at epoch 3")
    final = recorded("hunt/t1")[-1][1]
    assert (final["status"], final["tags"]["morel.state"]) == ("FINISHED", "stopped")


@pytest.mark.parametrize("name", ["asha", "hyperband", "pareto", "median"])
def test_the_scheduler_that_stopped_a_trial_is_named(search, recorder, name):
    settings = replace(search, scheduler=SchedulerConfig(name=name))
    book = TrialBook(settings, recorder, None)
    silent, told = FakeTrial("a", 0), FakeTrial("b", 1)
    setattr(told, STOP_REASON, "dominated by 4 of 6")
    for tune_trial in (silent, told):
        book.result(tune_trial, report(3))
        book.complete(tune_trial)
    stopped = f"{name.upper()} stopped it at epoch 3"
    assert [t.reason for t in book.trials] == [stopped, f"{stopped}: dominated by 4 of 6"]


def test_all_epochs_are_those_of_the_trial(book):
    """Not those of the recipe, which has 9: what its reports say."""
    short, long = FakeTrial("a", 0), FakeTrial("b", 1)
    book.result(short, report(4, num_epochs=4))
    book.complete(short)
    book.result(long, report(9, num_epochs=12))
    book.complete(long)
    assert [t.reason for t in book.trials] == [
        "all 4 epochs trained",
        "ASHA stopped it at epoch 9",
    ]


def test_a_trial_that_never_reported(book):
    book.complete(FakeTrial())
    assert (book.trials[0].state, book.trials[0].epoch) == ("stopped", 0)


@pytest.mark.parametrize("again", [False, True])
def test_a_point_that_no_run_can_have(book, recorded, again):
    tune_trial = FakeTrial(k1=0.25, alpha=-1.0, failure=traceback("OSError: the worker died"))
    reason = "ConfigError: objective.alpha = -1.0: must be >= 0"
    book.start(tune_trial)
    if again:
        book.retry(tune_trial)
    book.result(tune_trial, {"epoch": 0, "epochs": [], FAILED: reason})
    book.complete(tune_trial)
    (trial,) = book.trials
    assert (trial.state, trial.reason) == ("failed", reason)
    assert recorded("hunt/t1")[-1][1]["stop_reason"] == reason


def test_diverged(book, recorded):
    tune_trial = FakeTrial(checkpoint=checkpoint())
    book.result(tune_trial, report(2))
    book.result(tune_trial, report(9, diverged=1.0))  # in its last epoch: still no success
    book.complete(tune_trial)
    (trial,) = book.trials
    assert (trial.state, trial.reason) == ("diverged", "diverged in epoch 9")
    final = recorded("hunt/t1")[-1][1]
    assert (final["status"], final["tags"]["morel.diverged"]) == ("FAILED", "true")


def test_failed(book, recorded):
    tune_trial = FakeTrial(status="ERROR", failure=traceback("OSError: x", "ValueError: no room"))
    book.start(tune_trial)
    book.error(tune_trial)
    (trial,) = book.trials
    assert (trial.state, trial.reason) == ("failed", "ValueError: no room")
    final = recorded("hunt/t1")[-1][1]
    assert (final["status"], final["stop_reason"]) == ("FAILED", "ValueError: no room")
    assert final["tags"]["morel.device"] == "unknown"


def test_a_failure_of_which_tune_kept_nothing(book):
    book.error(FakeTrial(status="ERROR"))
    assert book.trials[0].reason == "unknown: Ray kept no error"


def test_a_failure_whose_text_is_not_in_the_storage_yet(book, tmp_path):
    path = tmp_path / "error.txt"
    path.write_text(traceback("ray.exceptions.ActorDiedError: The actor died"))
    book.error(FakeTrial(status="ERROR", error_file=str(path)))
    assert book.trials[0].reason == "ActorDiedError: The actor died"


def test_a_failure_ends_nobody_else(book):
    first, second = FakeTrial("a", index=0), FakeTrial("b", index=1)
    book.start(first)
    book.start(second)
    book.error(first)
    book.result(second, report(9))
    book.complete(second)
    assert [t.state for t in book.trials] == ["failed", "finished"]


def test_a_trial_that_is_tried_again_goes_on_under_its_id(book, recorded):
    tune_trial = FakeTrial(failure=traceback("RuntimeError: lost node"))
    book.result(tune_trial, report(3, since=1))
    book.error(tune_trial)
    book.start(tune_trial)
    assert book.trials[0].state == "running"
    book.result(tune_trial, report(4, since=2))  # from its checkpoint: epochs 2 and 3 again
    book.result(tune_trial, report(9, since=5))
    book.complete(tune_trial)
    events = recorded("hunt/t1")
    assert [kind for kind, _ in events].count("start") == 1
    assert [p["epoch"] for k, p in events if k == "epoch"] == list(range(1, 10))
    assert [p["status"] for k, p in events if k == "final"] == ["FAILED", "FINISHED"]


def test_an_end_heard_twice_is_recorded_once(book, recorded):
    tune_trial = FakeTrial()
    book.result(tune_trial, report(9))
    book.complete(tune_trial)
    book.complete(tune_trial)
    assert [kind for kind, _ in recorded("hunt/t1")] == ["start", "epoch", "final"]


def test_a_trial_that_somebody_stopped(book):
    tune_trial = FakeTrial()
    book.result(tune_trial, report(2))
    book.stopped_by_hand.add(book.run_id(tune_trial))
    book.complete(tune_trial)
    assert (book.trials[0].state, book.trials[0].reason) == (
        "stopped",
        "stopped by morel stop at epoch 2",
    )


def test_what_was_done_when_it_was_to_be_stopped_is_finished(book):
    tune_trial = FakeTrial()
    book.result(tune_trial, report(9))
    book.stopped_by_hand.add(book.run_id(tune_trial))
    book.cut = "budget.wall_time_s spent"
    book.complete(tune_trial)
    assert book.trials[0].state == "finished"


def test_end_closes_what_still_seems_to_run(book, recorded):
    done, running = FakeTrial("a", index=0), FakeTrial("b", index=1)
    book.result(done, report(9))
    book.complete(done)
    book.result(running, report(4))
    running.checkpoint = checkpoint("/storage/newest")
    book.cut = "budget.gpu_hours spent"
    book.end()
    assert [t.state for t in book.trials] == ["finished", "stopped"]
    assert recorded("hunt/b")[-1][1]["stop_reason"] == "budget.gpu_hours spent at epoch 4"
    assert recorded("hunt/b")[-1][1]["tags"]["morel.checkpoint"] == "/storage/newest"


def test_seconds_that_a_trial_costs(book, now, recorded):
    tune_trial = FakeTrial()
    book.start(tune_trial)
    (trial,) = book.trials
    now(1004.0)
    assert trial.held_until(1004.0) == 4.0
    book.result(tune_trial, report(1, time_this_iter_s=3.0))
    assert trial.held == 3.0  # what it says itself, without its start
    now(1010.0)
    tune_trial.status = "PENDING"  # lost, and to be tried again
    book.adopt([tune_trial])
    assert trial.held_until(2000.0) == 9.0
    now(2000.0)
    book.start(tune_trial)
    book.result(tune_trial, report(1, time_this_iter_s=3.0))  # the epoch once more
    assert trial.held == 12.0
    now(2002.0)
    book.end()
    metrics = recorded("hunt/t1")[-1][1]["metrics"]
    assert (metrics["cost.cpu_seconds"], metrics["cost.gpu_seconds"]) == (14.0, 0.0)


def test_seconds_under_earlier_drivers_count(book):
    book.held_before = {"hunt/t1": 50.0}
    tune_trial = FakeTrial()
    book.result(tune_trial, report(4, time_this_iter_s=3.0))
    assert book.trials[0].held == 53.0


def test_an_end_that_is_recorded_is_taken_as_it_is(book, search, recorder):
    tune_trial = FakeTrial(status="TERMINATED", last_result=report(4))
    book.result(tune_trial, report(4))
    book.cut = "budget.cpu_hours spent"
    book.end()
    before = list(recorder._journal.events())
    with another_driver(search, recorder) as second:
        second.adopt([tune_trial])
        assert [(t.state, t.reason, t.epoch) for t in second.trials] == [
            ("stopped", "budget.cpu_hours spent at epoch 4", 4)
        ]
    assert list(recorder._journal.events()) == before


def test_a_trial_that_goes_on_is_as_far_as_it_was(book):
    resumed = FakeTrial("a", 0, status="PENDING", last_result=report(4))
    fresh = FakeTrial("b", 1, status="PENDING", last_result={"trial_id": "b"})
    book.remember([resumed, fresh])
    book.start(resumed)
    book.start(fresh)
    assert [(t.epoch, t.held) for t in book.trials] == [(4, 12.0), (0, 0.0)]


def test_a_trial_that_was_cut_off_before_it_began_is_not_recorded(book):
    given = {"status": "TERMINATED", "last_result": {"trial_id": "t1"}}
    book.adopt([FakeTrial(began=False, **given)])
    assert book.trials == []
    book.adopt([FakeTrial("other", 1, **given)])
    assert [(trial.number, trial.epoch) for trial in book.trials] == [(2, 0)]


def test_a_trial_that_was_not_saved_keeps_its_record_when_it_comes_again(book, search, recorder):
    book.result(FakeTrial("a", 0), report(9))
    book.result(FakeTrial("b", 1, k1=0.125), report(2))
    with another_driver(search, recorder) as second:
        assert second.unsaved([FakeTrial("a", 0)]) == {1: {"k1": 0.125, "objective.alpha": 0.01}}
        assert second.start(FakeTrial("other", 1, k1=0.125)).run_id == "hunt/b"
        assert second.start(FakeTrial("c", 2)).run_id == "hunt/c"


def test_adopts_what_ended_before_this_driver_started(book, recorded):
    finished = FakeTrial("a", 0, status="TERMINATED", last_result=report(9, 0.7))
    finished.checkpoint = checkpoint()
    failed = FakeTrial("b", 1, status="ERROR", failure=traceback("OSError: disk"))
    running, waiting = FakeTrial("c", 2), FakeTrial("d", 3, status="PENDING")
    for _ in range(2):  # Tune says so before every turn
        book.adopt([finished, failed, running, waiting])
    assert [(t.run_id, t.state) for t in book.trials] == [
        ("hunt/a", "finished"),
        ("hunt/b", "failed"),
    ]
    adopted = book.trials[0]
    assert (adopted.epoch, adopted.seconds) == (9, 27.0)
    assert choose(book.search, book.trials) is adopted
    assert [kind for kind, _ in recorded("hunt/a")] == ["start", "final"]


def test_an_adopted_trial_is_not_taken_in_twice(book):
    tune_trial = FakeTrial(checkpoint=checkpoint())
    book.result(tune_trial, report(9, robust=0.6))
    book.complete(tune_trial)
    tune_trial.status, tune_trial.last_result = "TERMINATED", report(9, robust=0.1)
    book.adopt([tune_trial])
    assert book.trials[0].last["best_robust_accuracy"] == 0.6


def test_checkpoint_of_ray_train_inside_the_trial(book):
    """The own Tune checkpoint of a trial of several workers holds none of the training."""
    book.search = replace(book.search, resources=replace(book.search.resources, workers=2))
    tune_trial = FakeTrial(checkpoint=checkpoint("/of/the/driver"))
    book.result(tune_trial, report(9) | {"checkpoint_path": "/of/the/workers"})
    book.complete(tune_trial)
    (trial,) = book.trials
    assert trial.checkpoint == "/of/the/workers"


def test_trials_are_listed_in_the_searchers_order(book):
    for trial_id, index in (("z", 1), ("a", 2), ("m", 0)):
        book.start(FakeTrial(trial_id, index))
    assert [t.run_id for t in book.trials] == ["hunt/m", "hunt/z", "hunt/a"]


def test_a_point_that_no_run_can_have_is_recorded_all_the_same(book, recorded):
    book.start(FakeTrial(k1=7.0))
    start = recorded("hunt/t1")[0][1]
    assert start["params"]["objective.preference"] == [7.0, -6.0]


def test_without_a_view(search, recorder):
    book = TrialBook(search, recorder, None)
    book.start(FakeTrial())
    assert len(book.trials) == 1


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"epoch": 3, "num_epochs": 9}, ""),
        ({"epoch": 9, "num_epochs": 9}, "all 9 epochs trained"),
        ({"epoch": 3, "num_epochs": 9, "diverged": 1.0}, "diverged in epoch 3"),
        (
            {"epoch": 5, "num_epochs": 9, "stopped_early": 1.0, "best_epoch": 2},
            "no better since epoch 2 (training.patience)",
        ),
        (
            {"epoch": 5, "num_epochs": 9, "catastrophic_overfitting": 1.0},
            "catastrophic overfitting in epoch 5",
        ),
    ],
)
def test_a_run_says_how_it_came_to_its_own_end(report, reason):
    assert own_end(report) == reason


# --- its page in MLflow --------------------------------------------------------------------------


def test_its_note_says_what_came_out_and_how_to_get_it_again(book, recorded):
    trial = FakeTrial("t1")
    book.result(trial, report(9))
    trial.last_result = report(9)
    book.complete(trial)
    note = recorded("hunt/t1")[-1][1]["note"]
    first, what, table, again = note.split("\n\n")
    assert first.startswith("Robust accuracy ")
    assert first.endswith("; not verified.")
    assert what.startswith("Trial 1 of [hunt](run:hunt): ")
    assert ATTACK in table
    assert "morel reproduce hunt/t1" in again


def test_what_cannot_be_shown_ends_no_search(search, recorder, caplog):
    class Broken(View):
        def update(self, trials):
            raise BrokenPipeError

    book = TrialBook(search, recorder, Broken())
    book.start(FakeTrial())
    book.result(FakeTrial(), report(2))
    assert book.trials[0].epoch == 2
    assert caplog.text.count("the search goes on") == 1
