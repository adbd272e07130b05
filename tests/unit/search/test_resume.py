"""What a restored search takes from Tune's state, and what from today's command."""

from dataclasses import replace

import pytest
from fake_tune import FakeTrial, report
from optuna.trial import TrialState

from morel_core.errors import MorelError
from orchestrator.search.resume import TrialSource, saved_trials
from orchestrator.search.searcher import SpaceSearcher

SESSION = "2026-01-01_00-00-00"


TWO_SEEDS = """
baselines:
  paper: {objective.alpha: 1.0e-5}
parameters:
  objective.alpha: {type: float, low: 1.0e-6, high: 1.0, log: true}
  seed: {type: grid, values: [0, 1]}
"""


def trial(trial_id, index, epoch, status="TERMINATED", **given):
    found = FakeTrial(
        trial_id, index, status=status, last_result=report(epoch) if epoch else {}, **given
    )
    found.ERROR = "ERROR"
    return found


@pytest.fixture
def source(search, tmp_path):
    def make(saved=(), *, closed=False, concurrent=3, again=None, **changes):
        searcher = SpaceSearcher(replace(search, **changes), again=again)
        return TrialSource(
            searcher, concurrent=concurrent, folder=str(tmp_path), saved=saved, closed=closed
        )

    return make


@pytest.fixture
def begun(source, tmp_path):
    """A search of 5 trials, 3 of them proposed, of which b has ended; returns what was proposed."""
    first = source()
    proposed = {name: first.searcher.suggest(name) for name in "abc"}
    first.searcher.on_trial_complete("b", result=report(9))
    first._counter = 3
    first.save_to_dir(str(tmp_path), SESSION)
    return proposed


def restored(source, tmp_path):
    source.restore_from_dir(str(tmp_path))
    return source


def states(source):
    return [t.state for t in source._proposer._study.trials]


def test_a_search_goes_on_larger_and_with_other_concurrency(begun, source, tmp_path):
    saved = [trial("a", 0, 4, "RUNNING"), trial("b", 1, 9), trial("c", 2, 2, "RUNNING")]
    later = restored(source(saved, num_trials=7, concurrent=2), tmp_path)
    assert not later.is_finished()
    assert later.total_samples == 7
    assert later.searcher.max_concurrent == 2
    assert later.searcher.suggest("d") is None  # a and c are under way
    later.on_trial_complete("a", result=report(9))
    assert later.searcher.suggest("d")["index"] == 3
    assert states(later)[:3] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]


def test_trials_that_were_cut_off_leave_their_places(begun, source, tmp_path):
    saved = [trial("a", 0, 4), trial("b", 1, 9), trial("c", 2, 2, "ERROR")]
    later = restored(source(saved), tmp_path)
    assert later.searcher.live_trials == set()
    assert TrialState.RUNNING not in states(later)
    assert states(later)[2] is TrialState.FAIL


def test_a_trial_that_was_not_saved_comes_again_with_its_point(begun, source, tmp_path):
    saved = [trial("a", 0, 4, "RUNNING"), trial("b", 1, 9)]
    again = {2: begun["c"]["params"]}
    later = restored(source(saved, again=again), tmp_path)
    assert later.searcher.live_trials == {"a"}
    proposed = later.searcher.suggest("other")
    assert proposed["index"] == 2
    assert proposed["params"] == begun["c"]["params"]
    assert later.searcher.suggest("d")["params"] != begun["c"]["params"]


def test_trials_that_never_began_come_again_and_first(begun, source, tmp_path):
    """Those that waited when the budget was spent: the baseline, and a sampled point."""
    saved = [
        trial("a", 0, 0, began=False),
        trial("b", 1, 9),
        trial("c", 2, 0, began=False, k1=0.375, alpha=0.5),
    ]
    later = restored(source(saved), tmp_path)
    assert later.searcher.live_trials == set()
    again = [later.searcher.suggest(name) for name in ("d", "e", "f")]
    assert [found["index"] for found in again] == [0, 2, 3]
    assert (again[0]["baseline"], again[0]["params"]) == ("paper", begun["a"]["params"])
    assert again[1]["params"] == {"k1": 0.375, "objective.alpha": 0.5}
    # Tune keeps the old ones beside: what has begun since does not come a third time.
    both = [*saved, trial("d", 0, 3), trial("e", 2, 0, began=False, k1=0.375, alpha=0.5)]
    third = restored(source(both), tmp_path)
    assert [third.searcher.suggest(name)["index"] for name in "gh"] == [2, 3]


def test_all_trials_are_proposed_although_some_were_twice(begun, source, tmp_path):
    saved = [trial("a", 0, 0, began=False), trial("b", 1, 9), trial("c", 2, 9), trial("d", 0, 9)]
    later = restored(source(saved), tmp_path)
    later._experiment = None
    assert later._counter == 3
    assert not later.is_finished()
    assert restored(source(saved, num_trials=3), tmp_path).is_finished()


def test_a_grid_is_crossed_with_the_points_of_the_trials_that_are_known(load, tmp_path):
    """Tune copies its trials first: the searcher's own state may be of fewer."""
    search = load(TWO_SEEDS, "num_trials=4")
    first = SpaceSearcher(search)
    first.save(f"{tmp_path}/at_first")
    known = {index: first.suggest(f"t{index}")["params"] for index in range(5)}
    later = SpaceSearcher(search)
    later.restore(f"{tmp_path}/at_first")
    later.go_on_from(known, [])
    found = later.suggest("next")
    assert found["index"] == 5
    assert found["params"] == known[4] | {"seed": 1}


@pytest.mark.parametrize(("closed", "trials"), [(True, 5), (False, 3)])
def test_nothing_is_proposed_after_the_end(begun, source, tmp_path, closed, trials):
    saved = [trial(name, index, 9) for index, name in enumerate("abc")]
    assert restored(source(saved, closed=closed, num_trials=trials), tmp_path).is_finished()


def test_a_search_that_had_ended_is_open_again(begun, source, tmp_path):
    first = restored(source([trial(n, i, 9) for i, n in enumerate("abc")], closed=True), tmp_path)
    first.save_to_dir(str(tmp_path), "2026-01-02_00-00-00")
    saved = [trial(name, index, 9) for index, name in enumerate("abc")]
    assert not restored(source(saved), tmp_path).is_finished()


def test_tune_does_not_begin_anew_in_silence(source):
    with pytest.raises(MorelError, match="cannot be read"):
        source([trial("a", 0, 9)]).add_configurations([])


def test_no_state_and_a_torn_one(tmp_path):
    assert saved_trials(f"{tmp_path}/nowhere") == []
    (tmp_path / f"experiment_state-{SESSION}.json").write_text('{"trial_data": [[')
    with pytest.raises(MorelError, match="move the newest experiment_state"):
        saved_trials(str(tmp_path))
