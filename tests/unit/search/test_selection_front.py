"""The front of a search, and what constraints leave out of its result."""

import io
import json
from dataclasses import replace

import pytest
from fake_tune import ATTACK
from rich.console import Console
from test_selection import MASKED, document, laddered, numbers, trial, verified

from orchestrator.notes import GAP
from orchestrator.search.budget import Cost
from orchestrator.search.note import search_note
from orchestrator.search.result import SearchResult
from orchestrator.search.selection import choose, front, left_out, ranked, result_lines
from orchestrator.search.settings import GoalConfig, LadderConfig, VerifyConfig
from orchestrator.search.verified import Verified
from orchestrator.search.view import print_search, search_summary


@pytest.fixture
def both(search):
    return replace(search, objective=GoalConfig(metric="tradeoff"))


def point(number, clean, robust, **more):
    return trial(number, 9, robust, clean=clean, **more)


def bounded(search, *constraints, metric="robust_accuracy"):
    return replace(search, objective=GoalConfig(metric=metric, constraints=list(constraints)))


def printed(result):
    console = Console(file=io.StringIO(), width=200)
    print_search(console, result)
    return console.file.getvalue()


def result_of(search, trials):
    winner = choose(search, trials)
    return SearchResult(search=search, trials=trials, winner=winner, seconds=1.0, recorded=True)


# --- the front -----------------------------------------------------------------------------------


def test_the_front_is_sorted_by_robustness_and_its_most_robust_wins(both):
    trials = [point(1, 0.9, 0.3), point(2, 0.8, 0.5), point(3, 0.8, 0.4), point(4, 0.7, 0.5)]
    assert numbers(front(both, trials)) == numbers(ranked(both, trials)) == [2, 1]
    assert choose(both, trials).number == 2
    equal = [point(2, 0.8, 0.5), point(1, 0.8, 0.5)]
    assert numbers(front(both, equal)) == [1, 2]


def test_only_whole_trials_on_the_last_rung_are_on_the_front(both):
    trials = [
        point(1, 0.99, 0.99, num_epochs=9, best_rung=1),
        point(2, 0.99, 0.99, num_epochs=9, best_rung=2, state="stopped"),
        point(3, 0.7, 0.3, num_epochs=9, best_rung=2),
    ]
    trials.append(trial(4, 3, 0.99, clean=0.99, num_epochs=3, best_rung=2))
    assert numbers(front(laddered(both), trials)) == [3]


def test_masked_trials_leave_the_front_and_others_come_onto_it(both):
    verifying = replace(both, ladder=LadderConfig(verify=VerifyConfig(top=2)))
    fake = verified(1, 0.9, 0.9, [MASKED])
    honest = [point(2, 0.9, 0.4), point(3, 0.8, 0.5)]
    assert numbers(front(verifying, [fake, *honest])) == [3, 2]
    assert numbers(front(verifying, [fake])) == [1]  # every candidate is flagged


def test_the_verified_numbers_choose_among_the_front(both):
    verifying = replace(both, ladder=LadderConfig(verify=VerifyConfig(top=2)))
    trials = [verified(1, 0.8, 0.4), verified(2, 0.7, 0.5), point(3, 0.5, 0.9)]
    trials[1].last["best_clean_accuracy"] = 0.95
    winner = choose(verifying, trials)
    assert winner.number == 2
    (head, *_) = result_lines(verifying, trials, winner)
    assert head.startswith(
        "Winner: trial 2 (point 2), the most robust of the front's 3, verified robust accuracy 50.0"
    )
    note = search_note(verifying, trials, winner, Cost()).replace(GAP, "").replace("\xa0", " ")
    assert "Trial 1 (point 1) lost: verified 40.0" in note
    assert "| [3 (point 3)](run:hunt/3) | 50.0 [45.0, 55.0] | 90.0 [85.0, 95.0] | – |" in note


def test_what_a_person_and_a_script_see(both):
    trials = [point(1, 0.9, 0.3), point(2, 0.8, 0.5), point(3, 0.8, 0.4)]
    result = result_of(both, trials)
    shown = " ".join(printed(result).split())  # captions are wrapped
    for part in ("* point 2", "+ point 1", "+ on the front, * winner", "front of clean and robust"):
        assert part in shown
    assert "+ point 3" not in shown
    assert "Winner: trial 2 (point 2), the most robust of the front's 2" in shown
    assert json.loads(json.dumps(search_summary(result)))["front"] == ["hunt/2", "hunt/1"]
    note = search_note(both, trials, result.winner, Cost()).replace(GAP, "").replace("\xa0", " ")
    assert f"Front of held-out accuracies ({ATTACK}):" in note
    assert (
        "| trial | clean % [95 %] | robust % [95 %] |\n| :--- | :--- | :--- |\n"
        "| [2 (point 2)](run:hunt/2) **won** |" in note
    )


def test_a_search_for_one_number_has_a_front_for_scripts_alone(search):
    result = result_of(search, [point(1, 0.9, 0.3), point(2, 0.8, 0.5)])
    assert "front" not in printed(result)
    assert search_summary(result)["front"] == ["hunt/2", "hunt/1"]
    assert "Front" not in search_note(search, result.trials, result.winner, Cost())


# --- constraints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["robust_accuracy", "tradeoff"])
def test_only_trials_that_keep_the_constraints_win(search, metric):
    bound = bounded(search, "clean_accuracy >= 0.8", "train_seconds <= 100", metric=metric)
    trials = [
        point(1, 0.7, 0.9, time_total_s=10.0),
        point(2, 0.9, 0.8, time_total_s=0.1, train_seconds=200.0),  # taken over from a twin
        point(3, 0.8, 0.3, time_total_s=100.0),
        point(4, 0.1, 0.9, time_total_s=10.0, state="stopped"),
    ]
    assert left_out(bound, trials) == {
        "hunt/1": ["clean_accuracy 0.7 misses clean_accuracy >= 0.8"],
        "hunt/2": ["train_seconds 200 misses train_seconds <= 100"],
    }
    result = result_of(bound, trials)
    assert result.winner.number == 3
    line = "Trial 1 (point 1) is left out: clean_accuracy 0.7 misses clean_accuracy >= 0.8."
    assert line in printed(result)
    assert line in search_note(bound, trials, result.winner, Cost())
    summary = search_summary(result)
    assert summary["front"] == ["hunt/3"]
    assert [t["left_out"] for t in summary["trials"]] == [
        *left_out(bound, trials).values(),
        None,
        None,
    ]


def test_where_none_keeps_them_nobody_wins(search):
    bound = bounded(search, "clean_accuracy >= 0.8", "robust_accuracy >= 0.2")
    trials = [point(number, 0.5, 0.3) for number in range(1, 9)]
    assert choose(bound, trials) is None
    lines = result_lines(bound, trials, None)
    assert lines[0] == (
        "No trial keeps clean_accuracy >= 0.8 and robust_accuracy >= 0.2: there is no winner."
    )
    assert len(lines) == 7
    assert lines[-1] == "Left out for a missed constraint too: 3 more."


def test_a_constraint_is_judged_by_search_numbers(search):
    """Verified ones are of fewer images; the file speaks of the held-out split."""
    bound = bounded(search, "clean_accuracy >= 0.8")
    bound = replace(bound, ladder=LadderConfig(verify=VerifyConfig(top=1)))
    only = verified(1, 0.8, 0.5)
    only.verified = Verified.from_json(document(0.5, clean=0.75))
    assert choose(bound, [only]) is only
