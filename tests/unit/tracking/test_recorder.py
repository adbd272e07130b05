"""The recorder never waits for its tracker, and never loses, doubles or reorders an event."""

import threading
import time

import pytest

from morel_core.errors import MorelError
from orchestrator.tracking import Journal, MemoryTracker, NullTracker, Recorder, replay


class FailingTracker(MemoryTracker):
    """Out of reach for the first ``failures`` calls; never takes what ``poison`` names."""

    def __init__(self, failures=0, poison=()):
        super().__init__()
        self.failures = failures
        self.poison = poison

    def apply(self, event):
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("no route to host")
        if event.key in self.poison:
            raise MorelError("never")
        return super().apply(event)


class HangingTracker(MemoryTracker):
    """Hangs in its first call until told otherwise."""

    def __init__(self):
        super().__init__()
        self.release = threading.Event()

    def apply(self, event):
        self.release.wait(20)
        return super().apply(event)


@pytest.fixture
def journal(tmp_path):
    return Journal(str(tmp_path))


def recorder_of(journal, tracker):
    return Recorder(journal, tracker, first_retry_s=0.01, last_retry_s=0.02)


def start(recorder, run_id="s/a"):
    return recorder.start_run(run_id, name=run_id, params={"lr": 0.1}, config={"lr": 0.1})


def test_everything_arrives_in_order_though_the_tracker_fails_at_first(journal):
    tracker = FailingTracker(failures=4)
    recorder = recorder_of(journal, tracker)
    assert start(recorder)
    for epoch in range(1, 6):
        recorder.epoch("s/a", epoch, {"loss": 1 / epoch})
    recorder.finish("s/a", status="FINISHED", stop_reason="done")
    assert recorder.close(10) == 0
    assert tracker.applied == list(journal.events())
    assert [e.seq for e in tracker.applied] == list(range(7))
    assert recorder.rejected == ()


def test_training_does_not_wait_and_nothing_is_lost(journal):
    tracker = HangingTracker()
    recorder = recorder_of(journal, tracker)
    before = time.monotonic()
    for epoch in range(1, 51):
        recorder.epoch("s/a", epoch, {"loss": 0.5})
    assert recorder.close(timeout_s=0.2) == 50
    assert time.monotonic() - before < 5
    tracker.release.set()

    fresh = MemoryTracker()
    assert recorder_of(journal, fresh).close(10) == 0
    assert [e.payload["epoch"] for e in fresh.applied] == list(range(1, 51))


def test_a_tracker_that_never_answers_leaves_all_in_the_journal(journal):
    recorder = recorder_of(journal, FailingTracker(failures=10**9))
    start(recorder)
    recorder.epoch("s/a", 1, {"loss": 0.5})
    deadline = time.monotonic() + 5
    while recorder.last_error is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert recorder.last_error == "no route to host"
    assert recorder.close(0.1) == 2
    tracker = MemoryTracker()
    assert replay(journal, tracker) == (2, 0, 0)
    assert replay(journal, tracker) == (0, 2, 0)


def test_a_restart_delivers_only_what_was_missing(journal):
    tracker = MemoryTracker()
    first = recorder_of(journal, tracker)
    start(first)
    first.epoch("s/a", 1, {"loss": 0.5})
    first.close(10)

    second = recorder_of(journal, tracker)
    assert not start(second)
    assert not second.epoch("s/a", 1, {"loss": 0.9})
    assert second.epoch("s/a", 2, {"loss": 0.4})
    assert second.close(10) == 0
    assert [e.key for e in tracker.applied] == ["start", "epoch:1", "epoch:2"]


def test_a_poisoned_event_holds_nothing_up(journal, caplog):
    tracker = FailingTracker(poison=("epoch:2",))
    recorder = recorder_of(journal, tracker)
    for epoch in (1, 2, 3):
        recorder.epoch("s/a", epoch, {"loss": 0.5})
    recorder.epoch("s/b", 1, {"loss": 0.5})
    assert recorder.close(10) == 0
    assert [(e.run_id, e.key) for e in tracker.applied] == [
        ("s/a", "epoch:1"),
        ("s/a", "epoch:3"),
        ("s/b", "epoch:1"),
    ]
    assert [(r.event.key, r.reason) for r in recorder.rejected] == [("epoch:2", "never")]
    assert [(e.key, reason) for e, reason in tracker.rejected] == [("epoch:2", "never")]
    assert "epoch:2 of run s/a is not recorded: never" in caplog.text


def test_replay_goes_past_a_poisoned_event(journal):
    recorder = recorder_of(journal, NullTracker())
    for epoch in (1, 2, 3):
        recorder.epoch("s/a", epoch, {"loss": 0.5})
    recorder.close(10)
    assert replay(journal, FailingTracker(poison=("epoch:2",))) == (2, 0, 1)


def test_the_same_end_is_one_end_and_more_about_it_another(journal):
    recorder = recorder_of(journal, MemoryTracker())
    start(recorder)
    assert recorder.finish("s/a", status="KILLED", stop_reason="SIGTERM")
    assert not recorder.finish("s/a", status="KILLED", stop_reason="SIGTERM")
    assert recorder.epoch("s/a", 1, {"loss": 0.5})
    assert recorder.finish("s/a", status="KILLED", stop_reason="SIGTERM")
    recorder.close(10)

    again = recorder_of(journal, MemoryTracker())
    assert not again.finish("s/a", status="KILLED", stop_reason="SIGTERM")
    assert again.finish("s/a", status="KILLED", stop_reason="SIGTERM", note="looked at")
    again.close(10)


def test_an_end_that_was_replaced_can_be_said_again(journal):
    """One evaluation, another under the same names, and the first one again."""
    nan = float("nan")

    def measured(accuracy):
        recorder = recorder_of(journal, MemoryTracker())
        metrics = {"test.robust.pgd": accuracy, "test.lost": nan}
        try:
            return recorder.finish("s/a", status="FINISHED", stop_reason="", metrics=metrics)
        finally:
            recorder.close(10)

    recorder = recorder_of(journal, MemoryTracker())
    start(recorder)
    recorder.close(10)
    assert [measured(a) for a in (0.7, 0.7, 0.9, 0.7, 0.7, 0.9, 0.7)] == [
        *(True, False, True, True, False, True, True)
    ]
    last = recorder_of(journal, MemoryTracker())
    last.close(10)
    assert last.past["s/a"].metrics["test.robust.pgd"] == 0.7
    keys = [event.key for event in journal.events()]
    assert len(set(keys)) == len(keys) == 6


def test_what_was_added_to_an_end_is_not_taken_back_by_saying_it_again(journal):
    """As a finished command does that is run again after an evaluation."""
    recorder = recorder_of(journal, MemoryTracker())
    start(recorder)
    trained = {"status": "FINISHED", "stop_reason": "done", "metrics": {"best.epoch": 3.0}}
    assert recorder.finish("s/a", **trained)
    assert recorder.finish(
        "s/a", status="FINISHED", stop_reason="done", metrics={"test.clean": 0.9}, note="both"
    )
    assert not recorder.finish("s/a", **trained)
    recorder.close(10)


def test_two_threads_deliver_in_the_journals_order(journal):
    tracker = MemoryTracker()
    recorder = recorder_of(journal, tracker)

    def write(run_id):
        for epoch in range(1, 21):
            recorder.epoch(run_id, epoch, {"loss": 0.5})

    threads = [threading.Thread(target=write, args=(run,)) for run in ("s/a", "s/b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.close(10) == 0
    assert tracker.applied == list(journal.events())
    assert len(tracker.applied) == 40


def test_a_call_after_close_still_reaches_the_journal(journal):
    recorder = recorder_of(journal, MemoryTracker())
    recorder.close(10)
    assert recorder.epoch("s/a", 1, {"loss": 0.5})
    assert len(list(journal.events())) == 1


def test_progress_is_recorded_once_for_what_it_says(journal):
    tracker = MemoryTracker()
    recorder = recorder_of(journal, tracker)
    start(recorder, "s")
    assert recorder.progress("s", 1, {"front.size": 1.0}, {"front.json": "/s/front.json"})
    assert not recorder.progress("s", 1, {"front.size": 1.0}, {"front.json": "/s/front.json"})
    assert recorder.progress("s", 1, {"front.size": 2.0})  # the same step, and another front
    assert recorder.close(10) == 0
    assert [(e.kind, e.payload.get("step")) for e in tracker.applied] == [
        ("start", None),
        ("progress", 1),
        ("progress", 1),
    ]
    again = recorder_of(journal, MemoryTracker())
    assert not again.progress("s", 1, {"front.size": 2.0})
    again.close(10)
