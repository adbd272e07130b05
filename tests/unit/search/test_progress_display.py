"""What is printed: plain lines, each once, without a terminal; tables that show what is there."""

import io
import json
from dataclasses import replace

import pytest
from fake_tune import ATTACK, FakeTrial, checkpoint, epoch, report
from rich.console import Console

from orchestrator.messages.wording import percent, with_interval
from orchestrator.search.budget import Cost
from orchestrator.search.result import SearchResult
from orchestrator.search.selection import choose
from orchestrator.search.trials import TrialBook
from orchestrator.search.view import SearchProgress, print_search, search_summary, trial_table
from orchestrator.tracking.records import ui_command
from orchestrator.training import view as training_view
from orchestrator.training.reports import WORST
from orchestrator.training.result import TrainResult
from orchestrator.training.view import epoch_line, print_train, train_summary


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=160)


def text(console):
    return console.file.getvalue()


@pytest.fixture
def book(search, recorder):
    return TrialBook(search, recorder, None)


@pytest.fixture
def finished_search(search, book):
    """Three trials: finished, stopped and failed with a message full of brackets."""
    best, stopped, failed = (FakeTrial(i, n) for n, i in enumerate("abc"))
    best.baseline, best.checkpoint = "paper", checkpoint()
    book.result(best, report(9, robust=0.61))
    book.complete(best)
    book.result(stopped, report(3, robust=0.5))
    book.complete(stopped)
    failed.failure = "OSError: no [bold] space in [/tmp/x]"
    book.error(failed)
    winner = choose(search, book.trials)
    winner.test = {
        "test.clean": 0.95, "test.clean_low": 0.9, "test.clean_high": 0.97,
        f"test.robust.{ATTACK}": 0.6, f"test.robust.{ATTACK}_low": 0.55,
        f"test.robust.{ATTACK}_high": 0.65, "test.images": 359,
    }  # fmt: skip
    return SearchResult(
        search=search,
        trials=book.trials,
        winner=winner,
        seconds=12.3,
        cost=Cost(wall_seconds=2.0, cpu_seconds=7200.0, gpu_seconds=1800.0),
        recorded=True,
    )


def test_plain_lines_one_for_each_thing_that_happens(console, search, recorder):
    with SearchProgress(console, ATTACK, 5) as view:
        book = TrialBook(search, recorder, view)
        tune_trial, other = FakeTrial("a", 0, baseline="paper"), FakeTrial("b", 1)
        book.start(tune_trial)
        book.result(tune_trial, report(1, robust=0.5))
        book.start(other)
        book.start(other)  # nothing new
        book.result(tune_trial, report(9, robust=0.6))
        book.complete(tune_trial)
    lines = text(console).splitlines()
    assert "\x1b" not in text(console)
    assert lines[0] == "trial 1/5 paper: started"
    assert lines[1] == "trial 1/5 paper: epoch 1, clean 90.0 %, robust 50.0 [45.0, 55.0] %"
    assert lines[2].startswith("trial 2/5 ")
    assert lines[2].endswith(": started")
    assert lines[3] == "trial 1/5 paper: epoch 9, clean 90.0 %, robust 60.0 [55.0, 65.0] %"
    assert lines[4] == (
        "trial 1/5 paper: all 9 epochs trained; epoch 9, clean 90.0 %, robust 60.0 [55.0, 65.0] %"
    )
    assert len(lines) == 5


@pytest.mark.parametrize("terminal", [False, True])
def test_a_trial_that_diverged_at_once_is_shown_without_numbers(search, recorder, terminal):
    console = Console(file=io.StringIO(), width=160, force_terminal=terminal)
    with SearchProgress(console, ATTACK, 5) as view:
        book = TrialBook(search, recorder, view)
        tune_trial = FakeTrial("a", 0, baseline="paper")
        numbers = WORST | {"diverged": True, "epoch": 1, "num_epochs": 9, "time_total_s": 1.0}
        book.result(tune_trial, numbers | {"epochs": [{"epoch": 1, "diverged": True}]})
        book.complete(tune_trial)
    if not terminal:
        (*_, last) = text(console).splitlines()
        assert last.startswith("trial 1/5 paper: diverged")
        assert last.endswith("; epoch 1")


def test_why_a_trial_was_run_again_is_said_once(console, search, recorder):
    with SearchProgress(console, ATTACK, 5) as view:
        book = TrialBook(search, recorder, view)
        tune_trial = FakeTrial("a", 0, baseline="paper")
        book.result(tune_trial, report(1))
        tune_trial.failure = "OSError: no [bold] space"
        book.retry(tune_trial)
        book.result(tune_trial, report(2))
    lines = text(console).splitlines()
    assert [line for line in lines if "again" in line] == [
        "trial 1/5 paper: again: OSError: no [bold] space (after epoch 1)"
    ]
    assert lines[-1] == "trial 1/5 paper: epoch 2, clean 90.0 %, robust 50.0 [45.0, 55.0] %"


def test_on_a_terminal_a_table_is_redrawn(search, recorder):
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    with SearchProgress(console, ATTACK, 5) as view:
        book = TrialBook(search, recorder, view)
        book.result(FakeTrial(), report(2))
        assert view.live.is_started
    assert not view.live.is_started
    assert "0 of 5 trials done" in text(console)


def test_trial_table_says_all_there_is(console, finished_search):
    console.print(trial_table(finished_search.trials, ATTACK, winner=finished_search.winner))
    shown = text(console)
    for part in (
        "* paper", "90.0", "61.0 [56.0, 66.0]", "27", "all 9 epochs trained",
        "ASHA stopped it at epoch 3", "OSError: no [bold] space in [/tmp/x]", ATTACK,
    ):  # fmt: skip
        assert part in shown
    assert shown.count("*") == 1


def test_a_trial_without_numbers_has_dashes(console, book):
    book.start(FakeTrial())
    console.print(trial_table(book.trials, ATTACK))
    assert "–" in text(console)
    assert "running" in text(console)


def test_end_of_a_search(console, finished_search):
    print_search(console, finished_search)
    shown = text(console)
    assert "hunt: 3 trials in 12 s" in shown
    assert "Winner: trial 1 (paper), held-out robust accuracy 61.0 [56.0, 66.0] %" in shown
    assert "biased upwards" in shown
    assert f"On the test set: clean 95.0 [90.0, 97.0] %, {ATTACK} 60.0 [55.0, 65.0] %" in shown
    assert f"look at the runs: {ui_command(finished_search.search.base)}" in shown
    assert "lacks" not in shown


def test_end_of_a_search_without_winner_and_not_all_recorded(console, finished_search):
    print_search(console, replace(finished_search, winner=None, recorded=False))
    shown = text(console)
    assert "there is no winner" in shown
    assert "lacks some events: they wait in" in shown
    assert "hunt/journal" in shown


def test_search_summary_is_json(finished_search):
    summary = json.loads(json.dumps(search_summary(finished_search)))
    assert (summary["name"], summary["winner"], summary["attack"]) == ("hunt", "hunt/a", ATTACK)
    assert summary["tracking_uri"].startswith("sqlite:///")
    first, second, third = summary["trials"]
    assert (first["state"], first["robust_accuracy"], first["epochs"]) == ("finished", 0.61, 9)
    assert first["robust_accuracy_low"] == pytest.approx(0.56)
    assert first["test"]["test.clean"] == 0.95
    assert (second["state"], second["stop_reason"]) == ("stopped", "ASHA stopped it at epoch 3")
    assert (third["state"], third["robust_accuracy"]) == ("failed", None)


@pytest.fixture
def finished_run(search):
    return TrainResult(
        not_measured="",
        config=search.base,
        epochs=9,
        seconds=8.6,
        stop_reason="all 9 epochs trained",
        metrics={
            "best.epoch": 7.0, f"best.holdout.robust.{ATTACK}": 0.6,
            f"best.holdout.robust.{ATTACK}_low": 0.5, f"best.holdout.robust.{ATTACK}_high": 0.7,
            "test.clean": 0.9, "test.clean_low": 0.8, "test.clean_high": 0.95,
        },
        checkpoint="/data/runs/hunt/checkpoint_000003",
        diverged=False,
        recorded=True,
    )  # fmt: skip


def test_end_of_a_run(console, finished_run):
    print_train(console, finished_run)
    lines = text(console).splitlines()
    assert lines[0] == "hunt: all 9 epochs trained in 9 s"
    assert lines[1] == f"best epoch 7: held-out robust 60.0 [50.0, 70.0] % ({ATTACK})"
    assert lines[2] == "test set: clean 90.0 [80.0, 95.0] %"
    assert lines[3] == "checkpoint: /data/runs/hunt/checkpoint_000003"
    assert lines[4].startswith("look at the runs: mlflow ui --backend-store-uri 'sqlite:///")
    assert json.loads(json.dumps(train_summary(finished_run)))["epochs"] == 9


def test_end_of_a_run_that_was_never_measured(console, finished_run):
    print_train(console, replace(finished_run, metrics={}, stop_reason="diverged"))
    assert "best epoch" not in text(console)
    assert text(console).startswith("hunt: diverged in 9 s")


def test_epoch_lines():
    assert epoch_line(epoch(3, robust=0.5)) == (
        "epoch 3/9  loss 0.3333  lr 0.1  500 images/s  clean 90.0 %  robust 50.0 [45.0, 55.0] %"
    )
    unmeasured = {k: v for k, v in epoch(4, diverged=1.0).items() if "accuracy" not in k}
    assert epoch_line(unmeasured) == "epoch 4/9  loss 0.2500  lr 0.1  500 images/s  DIVERGED"
    accuracies = {k: v for k, v in epoch(3, robust=0.5).items() if "accuracy" in k}
    assert epoch_line({"epoch": 3, **accuracies}) == (
        "epoch 3  clean 90.0 %  robust 50.0 [45.0, 55.0] %"
    )
    assert epoch_line({"epoch": 3, "not_measured": "OSError"}) == "epoch 3  not measured: OSError"


def test_numbers():
    assert (percent(0.93149), percent(None)) == ("93.1", "–")
    assert with_interval({}, "robust") == "–"
    assert training_view.test_line({}) == "not measured"
