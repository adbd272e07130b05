"""Who wins a search, by numbers of one rung or by verified ones, and why others lost."""

import io
import json
from dataclasses import replace

import pytest
from fake_tune import ATTACK
from rich.console import Console

from morel_core.config import RungConfig
from orchestrator.search.budget import Cost, Meter
from orchestrator.search.note import search_note
from orchestrator.search.result import SearchResult
from orchestrator.search.selection import choose, ranked, why_lost
from orchestrator.search.settings import LadderConfig, VerifyConfig
from orchestrator.search.trial import Trial
from orchestrator.search.verified import Verified
from orchestrator.search.verify import standing
from orchestrator.search.view import SearchProgress, search_summary, trial_table

SQUARE = "square_linf_0.1"
MASKED = {"code": "zero_gradient", "reason": "No gradient at all.", "evidence": {"share": 1.0}}
WEAK = {"code": "not_converged", "reason": "More steps change it.", "evidence": {}}


def trial(number, epoch, robust, state="finished", checkpoint="/c", clean=0.9, **last):
    values = {"epoch": epoch, "best_robust_accuracy": robust, "best_clean_accuracy": clean}
    if robust is not None:
        values |= {
            "best_epoch": epoch,
            "best_robust_accuracy_low": robust - 0.05,
            "best_robust_accuracy_high": robust + 0.05,
            "best_clean_accuracy_low": clean - 0.05,
            "best_clean_accuracy_high": clean + 0.05,
        }
    return Trial(
        run_id=f"hunt/{number}",
        number=number,
        label=f"point {number}",
        params={},
        state=state,
        reason="all epochs trained",
        last=values | last,
        checkpoint=checkpoint,
    )


def outcome(accuracy):
    return {
        "accuracy": accuracy,
        "low": accuracy - 0.1,
        "high": accuracy + 0.1,
        "num_images": 100,
    }


def document(robust, clean=0.9, findings=(), attacks=(SQUARE, ATTACK)):
    return json.dumps(
        {
            "evaluation": {
                "split": "holdout",
                "outcomes": {"clean": outcome(clean)} | {name: outcome(robust) for name in attacks},
            },
            "worst_case": {
                "accuracy": robust,
                "accuracy_low": robust - 0.1,
                "accuracy_high": robust + 0.1,
            },
            "findings": list(findings),
            "seconds": 45.0,
        }
    )


def verified(number, searched, robust, findings=(), **last):
    candidate = trial(number, 9, searched, **last)
    candidate.verified = Verified.from_json(document(robust, findings=findings))
    candidate.standing = standing(candidate.verified)
    return candidate


@pytest.fixture
def verifying(search):
    return replace(search, ladder=LadderConfig(verify=VerifyConfig(top=2)))


def laddered(search):
    evaluation = replace(
        search.base.evaluation, rungs=[RungConfig(num_steps=5), RungConfig(epoch=4)]
    )
    return replace(search, base=replace(search.base, evaluation=evaluation))


def numbers(trials):
    return [trial.number for trial in trials]


# --- by search numbers ---------------------------------------------------------------------------


def test_lengths_do_not_mix(search):
    """A trial stopped at epoch 3 may look better there than any does at epoch 9."""
    early = trial(1, 3, 0.99)
    far = [trial(2, 9, 0.5), trial(3, 9, 0.6)]
    assert numbers(ranked(search, [early, *far])) == [3, 2]
    assert choose(search, far).number == 3
    stopped = trial(4, 3, 0.999, state="stopped")
    assert choose(search, [stopped, *far]).number == 3
    assert choose(search, [stopped, early]).number == 1


def test_rungs_do_not_mix(search):
    """One that ran out of patience on the first rung counts as long, but not as measured alike."""
    early = trial(1, 3, 0.99, num_epochs=9, best_rung=1)
    far = trial(2, 9, 0.5, num_epochs=9, best_rung=2)
    assert numbers(ranked(laddered(search), [early, far])) == [2]
    assert choose(laddered(search), [early]) is None


@pytest.mark.parametrize("state", ["running", "stopped", "diverged", "failed"])
def test_only_finished_trials_win(search, state):
    assert choose(search, [trial(1, 9, 0.9, state=state)]) is None


def test_without_measurement_or_checkpoint_nobody_wins(search):
    assert choose(search, []) is None
    assert choose(search, [trial(1, 9, None)]) is None
    assert choose(search, [trial(1, 9, 0.9, checkpoint=None)]) is None


def test_the_metric_decides_and_a_tie_goes_to_the_earlier(search):
    trials = [trial(1, 9, 0.5, clean=0.95), trial(2, 9, 0.6, clean=0.9), trial(3, 9, 0.6)]
    clean = replace(search, objective=replace(search.objective, metric="clean_accuracy"))
    assert choose(clean, trials).number == 1
    assert choose(search, trials).number == 2


def test_note_says_that_the_winners_number_is_biased(search):
    winner = trial(1, 9, 0.6)
    note = search_note(search, [winner], winner, Cost())
    assert "1 trials" in note
    assert (
        f"Winner: trial 1 (point 1), held-out robust accuracy 60.0 [55.0, 65.0] % ({ATTACK})"
        in note
    )
    assert "biased upwards" in note
    assert "Winner" not in search_note(search, [], None, Cost())


def test_note_tells_what_measuring_cost_beside_the_training(search):
    trials = [verified(1, 0.8, 0.5), verified(2, 0.7, 0.6)]
    trials[1].test_seconds = 8.0
    cost = Meter(search).cost(trials)
    assert cost.cpu_seconds == 0.0
    assert cost.metrics()["cost.verification_seconds"] == 90.0
    assert cost.metrics()["cost.test_seconds"] == 8.0
    spent = "(besides: 1 min 30 s of verification and 8 s of the test set)"
    assert spent in search_note(search, trials, trials[1], cost)
    assert "besides" not in search_note(search, trials, trials[1], Cost())


# --- by verified numbers -------------------------------------------------------------------------


def test_the_verified_number_decides(verifying):
    trials = [verified(1, 0.8, 0.5), verified(2, 0.7, 0.6), trial(3, 9, 0.9)]
    winner = choose(verifying, trials)
    assert winner.number == 2
    assert why_lost(trials[0], winner) == (
        f"verified 50.0 [40.0, 60.0] % ({SQUARE}, {ATTACK}; 100 held-out images), where "
        "trial 2 has 60.0 [50.0, 70.0] %"
    )
    assert why_lost(winner, winner) == why_lost(trials[2], winner) == ""


def test_a_flagged_trial_loses_to_any_other(verifying):
    trials = [verified(1, 0.9, 0.9, [MASKED]), verified(2, 0.7, 0.1, [WEAK])]
    winner = choose(verifying, trials)
    assert winner.number == 2
    assert trials[0].standing.startswith("it masks its gradients (90.0 [80.0, 100.0] %")
    note = search_note(verifying, trials, winner, Cost())
    assert "Trial 1 (point 1) lost: it masks its gradients" in note
    assert "No gradient at all." in note
    assert "the best of 1, on images that served the search too" in note
    assert "Its number in the search was held-out robust accuracy 70.0 [65.0, 75.0] %" in note


def test_where_all_are_flagged_the_best_wins_and_the_note_says_so(verifying):
    trials = [verified(1, 0.9, 0.8, [MASKED]), verified(2, 0.9, 0.9, [MASKED])]
    winner = choose(verifying, trials)
    assert winner.number == 2
    assert "Every candidate is flagged, the winner too: No gradient at all." in search_note(
        verifying, trials, winner, Cost()
    )


def test_without_a_verified_trial_there_is_no_winner(verifying):
    failed = trial(1, 9, 0.9)
    failed.standing = "its verification failed: OSError: disk full"
    assert choose(verifying, [failed]) is None
    note = search_note(verifying, [failed], None, Cost())
    assert "No trial was verified: there is no winner." in note
    assert "Trial 1 (point 1) lost: its verification failed: OSError: disk full" in note


def test_the_goal_may_be_the_verified_clean_accuracy(verifying):
    clean = replace(verifying, objective=replace(verifying.objective, metric="clean_accuracy"))
    trials = [verified(1, 0.8, 0.5), verified(2, 0.8, 0.6)]
    trials[0].verified = Verified.from_json(document(0.5, clean=0.95))
    assert choose(clean, trials).number == 1


def test_verified_numbers_are_recorded_with_attack_interval_and_count():
    metrics = verified(1, 0.8, 0.5).verified.metrics
    for name in (SQUARE, ATTACK, "worst_case"):
        assert metrics[f"verified.robust.{name}"] == 0.5
        assert metrics[f"verified.robust.{name}_low"] == pytest.approx(0.4)
        assert metrics[f"verified.robust.{name}_high"] == pytest.approx(0.6)
    assert metrics["verified.images"] == 100
    alone = Verified.from_json(document(0.5, attacks=[SQUARE])).metrics
    assert "verified.robust.worst_case" not in alone


def test_what_a_person_sees(verifying):
    trials = [verified(1, 0.9, 0.9, [MASKED]), verified(2, 0.7, 0.6), trial(3, 9, 0.5)]
    trials.append(trial(4, 9, 0.5))
    trials[3].standing = "its verification failed: OSError"
    console = Console(file=io.StringIO(), width=200)
    console.print(trial_table(trials, ATTACK, winner=trials[1]))
    shown = console.file.getvalue()
    for part in ("verified %", "90.0 [80.0, 100.0] masked", "60.0 [50.0, 70.0]", "failed"):
        assert part in shown
    assert "rung" not in shown
    with SearchProgress(console, ATTACK, 4) as view:
        view.update(trials)
    assert "trial 1/4 point 1: it masks its gradients (90.0" in console.file.getvalue()

    result = SearchResult(
        search=verifying,
        trials=trials,
        winner=trials[1],
        seconds=1.0,
        cost=Cost(wall_seconds=2.0, cpu_seconds=7200.0, gpu_seconds=1800.0),
        recorded=True,
    )
    masked, winner, other, failed = (
        t["verified"] for t in json.loads(json.dumps(search_summary(result)))["trials"]
    )
    assert masked["masking"] == ["No gradient at all."]
    assert masked["lost"].startswith("it masks its gradients")
    assert (winner["lost"], winner["verified.robust.worst_case"]) == (None, 0.6)
    assert other is None
    assert failed == {"lost": "its verification failed: OSError"}


def test_the_table_says_which_rung(search):
    console = Console(file=io.StringIO(), width=200)
    console.print(trial_table([trial(1, 9, 0.5, best_rung=2), trial(2, 9, 0.4)], ATTACK))
    assert "rung" in console.file.getvalue()
