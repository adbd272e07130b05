"""Which checkpoint is best where each was measured by itself: as the trainer would choose."""

from types import SimpleNamespace

from orchestrator.config import compose, run_key
from orchestrator.training.asynchronous import best_metrics, best_validated, score
from orchestrator.training.reports import SCORE, UNVALIDATED


def measured(epoch, robust, **more):
    return {"epoch": epoch, "robust_accuracy": robust, **more}


def result(*epochs):
    return SimpleNamespace(
        best_checkpoints=[(f"c{m['epoch']}", {**m, SCORE: score(m)}) for m in epochs]
    )


def test_the_highest_accuracy_wins_and_of_equal_ones_the_earlier():
    epochs = [measured(1, 0.5), measured(2, 0.6), measured(300, 0.6), measured(4, 0.5999)]
    assert best_validated(result(*epochs))[0] == "c2"


def test_a_later_rung_beats_any_number_of_an_earlier_one():
    epochs = [measured(1, 1.0, rung=1), measured(2, 0.0, rung=2), measured(3, 0.1, rung=2)]
    assert best_validated(result(*epochs))[0] == "c3"


def test_no_robust_accuracy_at_all_is_measured_too():
    """Every network has a best epoch, and its numbers on the test set."""
    assert best_validated(result(measured(1, 0.0), measured(2, 0.0)))[0] == "c1"


def test_what_was_not_measured_is_never_best():
    failed = SimpleNamespace(best_checkpoints=[("c1", {"epoch": 1, **UNVALIDATED})])
    assert best_validated(failed) is None
    assert best_validated(SimpleNamespace(best_checkpoints=None)) is None
    assert score(measured(10**6, 0.0)) > UNVALIDATED[SCORE]


def test_the_best_is_told_as_a_trainer_tells_it():
    told = best_metrics(measured(2, 0.6, robust_accuracy_low=0.5, epochs=[], lr=0.1, rung=1))
    assert told == {
        "best_epoch": 2,
        "best_robust_accuracy": 0.6,
        "best_robust_accuracy_low": 0.5,
        "best_rung": 1,
    }


def test_runs_that_differ_in_who_waits_are_twins():
    assert run_key(compose("digits")) == run_key(
        compose("digits", ["evaluation.asynchronous=true"])
    )
