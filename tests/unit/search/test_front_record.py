"""The front of a running search: its files, its numbers in the journal, and what it costs."""

import io
import json
import time
from dataclasses import replace

import pytest
from fake_tune import ATTACK, FakeTrial, checkpoint, report
from matplotlib.image import imread
from test_selection import trial
from test_selection_front import bounded, point

from orchestrator.compare.pareto import hypervolume
from orchestrator.search import front as front_module
from orchestrator.search.front import FILES, FrontRecord
from orchestrator.search.selection import choose
from orchestrator.search.trials import TrialBook


@pytest.fixture
def progress(recorder, tracker):
    """The progress events so far, as (step, metrics, artifacts)."""

    def events():
        assert recorder.flush(10) == 0
        found = [e.payload for e in tracker.applied if e.kind == "progress"]
        return [(e["step"], e["metrics"], sorted(e["artifacts"])) for e in found]

    return events


def folder(search):
    return f"{search.base.storage_path}/{search.base.name}"


def table(search):
    with open(f"{folder(search)}/front.json") as file:
        return json.load(file)


def test_the_front_is_recorded_while_trials_end(search, recorder, progress, monkeypatch):
    monkeypatch.setattr(front_module, "PAUSE_S", 0.0)
    monkeypatch.setattr(front_module, "SHARE", 1.0)
    record = FrontRecord(search, recorder)
    points = [(0.9, 0.3), (0.8, 0.2), (0.7, 0.5)]
    with record.kept_up():
        for number, (clean, robust) in enumerate(points, 1):
            record.add(point(number, clean, robust))
            deadline = time.monotonic() + 20
            while len(progress()) < number and time.monotonic() < deadline:
                time.sleep(0.01)
    assert [step for step, _, _ in progress()] == [1, 2, 3]
    for seen, (_, metrics, files) in enumerate(progress(), 1):
        assert metrics["front.hypervolume"] == pytest.approx(hypervolume(points[:seen]))
        assert metrics["front.size"] == (1, 1, 2)[seen - 1]
        assert files == sorted(FILES)
    written = table(search)
    assert (written["attack"], written["split"], written["trials_ended"]) == (ATTACK, "holdout", 3)
    assert written["hypervolume"] == pytest.approx(0.9 * 0.3 + 0.7 * 0.2)
    (robust, clean) = written["points"]
    assert (robust["trial"], clean["trial"]) == (3, 1)
    assert (clean["clean_accuracy"], clean["robust_accuracy"]) == (0.9, 0.3)
    assert clean["robust_accuracy_low"] == pytest.approx(0.25)
    assert clean["robust_accuracy_high"] == pytest.approx(0.35)
    assert clean["images"] == search.base.data.holdout
    assert clean["epoch"] == 9


def test_all_that_ended_is_recorded_at_the_exit(search, recorder, progress):
    """Also what came during the pause between two updates."""
    record = FrontRecord(search, recorder)
    with record.kept_up():
        for number in range(1, 30):
            record.add(point(number, 0.9, number / 100))
    assert progress()[-1][0] == 29
    assert len(progress()) <= 3
    assert table(search)["points"][0]["trial"] == 29


def test_trials_that_are_no_result_count_but_draw_nothing(search, recorder, progress):
    record = FrontRecord(bounded(search, "clean_accuracy >= 0.8"), recorder)
    with record.kept_up():
        record.add(point(1, 0.9, 0.3, state="stopped"))
        record.add(point(2, 0.7, 0.3))
    assert progress()[-1] == (2, {"front.hypervolume": 0.0, "front.size": 0.0}, [])
    assert record.finish(None) == {}


def test_a_trial_that_is_tried_again_counts_once(search, recorder, progress):
    record, again = FrontRecord(search, recorder), point(1, 0.9, 0.3, state="failed")
    with record.kept_up():
        record.add(again)
        again.state = "finished"
        record.add(again)
    assert progress()[-1][:2] == (1, {"front.hypervolume": pytest.approx(0.27), "front.size": 1.0})


def test_a_front_that_cannot_be_written_costs_nothing_else(search, recorder, progress, caplog):
    broken = replace(search, base=replace(search.base, storage_path="/proc/no/such"))
    with FrontRecord(broken, recorder).kept_up() as _:
        pass
    record = FrontRecord(broken, recorder)
    with record.kept_up():
        record.add(point(1, 0.9, 0.3))
    assert "front is not up to date" in caplog.text
    assert progress() == []


def test_the_driver_only_notes_that_a_trial_ended(search, recorder):
    """Whatever the picture takes: 1,000 ended trials cost the driver milliseconds."""
    record = FrontRecord(search, recorder)
    trials = [point(number, number % 97 / 97, number % 89 / 89) for number in range(1, 1001)]
    with record.kept_up():
        started = time.thread_time()
        for ended in trials:
            record.add(ended)
        assert time.thread_time() - started < 0.05


def test_the_end_marks_the_winner_and_shows_baselines(search, recorder, progress):
    constrained = bounded(search, "clean_accuracy >= 0.75", metric="tradeoff")
    trials = [point(1, 0.9, 0.3), point(2, 0.8, 0.5), point(3, 0.7, 0.6), point(4, 0.8, 0.1)]
    trials[0].baseline = "paper"
    record = FrontRecord(constrained, recorder)
    for ended in trials:
        record.add(ended)
    files = record.finish(choose(constrained, trials))
    assert sorted(files) == sorted(FILES)
    rows = table(search)["points"]
    assert [(row["trial"], row["winner"]) for row in rows] == [(2, True), (1, False)]
    assert [row["baseline"] for row in rows] == [None, "paper"]
    with open(files["front.png"], "rb") as file:
        picture = imread(io.BytesIO(file.read()))
    assert picture.shape[0] > 400
    assert picture.shape[1] > 600


def test_the_same_front_is_recorded_once(search, recorder, progress):
    """A resumed search sees its ended trials again."""
    for _ in range(2):
        record = FrontRecord(search, recorder)
        record.add(point(1, 0.9, 0.3))
        record.finish(None)
    assert len(progress()) == 1


def test_numbers_without_intervals_can_be_drawn(search, recorder):
    record = FrontRecord(search, recorder)
    bare = trial(1, 9, 0.5)
    bare.last = {k: v for k, v in bare.last.items() if not k.endswith(("_low", "_high"))}
    record.add(bare)
    assert record.finish(None)


def test_the_book_tells_of_every_end(search, recorder):
    ended = []
    book = TrialBook(search, recorder, None, on_end=ended.append)
    tune_trial = FakeTrial(checkpoint=checkpoint())
    book.result(tune_trial, report(9))
    assert ended == []
    book.complete(tune_trial)
    assert [t.state for t in ended] == ["finished"]
