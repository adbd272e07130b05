"""Who is stopped at a milestone: against brute force, after a restore, and with diverged trials."""

import itertools
import pickle
import random
from dataclasses import dataclass, field, replace

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from morel_core import ConfigError
from orchestrator.search.checks import check_scheduler
from orchestrator.search.schedulers import Median, ParetoHalving, goes_on, make_scheduler
from orchestrator.search.settings import GoalConfig, SchedulerConfig
from orchestrator.search.trial import STOP_REASON

GO, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
FOUR = {"grace_period": 1, "reduction_factor": 2}


@dataclass(eq=False)
class Tuned:
    """A Tune trial as far as a scheduler looks at it."""

    index: int
    tried: int = 0
    config: dict = field(init=False)

    def __post_init__(self):
        self.config = {"index": self.index}

    @property
    def trial_id(self):
        return f"t{self.index}.{self.tried}"

    def invalidate_json_state(self):
        pass


def result(epoch, robust, clean=0.9, **more):
    return {"epoch": epoch, "robust_accuracy": robust, "clean_accuracy": clean, **more}


DIVERGED = {"diverged": 1.0, "done": True}


@pytest.fixture
def searching(search, tmp_path):
    """The scheduler of a search of 9 epochs with these settings, as Tune sets it up."""

    def start(name, folder="run", **settings):
        base = replace(search.base, storage_path=str(tmp_path), name=folder)
        config = replace(search, base=base, scheduler=SchedulerConfig(name=name, **settings))
        scheduler = make_scheduler(config, limit=4)
        scheduler.set_search_properties("robust_accuracy", "max")
        return scheduler

    return start


def told(scheduler, *results, of=None):
    """The decisions on these reports, each of a trial of its own unless ``of`` names one."""
    decisions = []
    for index, report in enumerate(results):
        trial = of or Tuned(index)
        if of is None:
            scheduler.on_trial_add(None, trial)
        decisions.append(scheduler.on_trial_result(None, trial, report))
    return decisions


def test_names(searching):
    assert type(searching("none")) is FIFOScheduler
    assert isinstance(searching("median"), Median)
    assert isinstance(searching("pareto"), ParetoHalving)
    assert len(searching("asha")._brackets) == 1
    assert len(searching("hyperband", brackets=2)._brackets) == 2


# --- asha and hyperband ----------------------------------------------------------------------


def test_asha_decides_as_rays_does(searching):
    """Its brackets and its memory add nothing to the rule."""
    dice = random.Random(0)
    ours = searching("asha", grace_period=1, reduction_factor=3)
    rays = AsyncHyperBandScheduler(
        "epoch", "robust_accuracy", "max", max_t=9, grace_period=1, reduction_factor=3
    )
    trials = [Tuned(index) for index in range(40)]
    for scheduler in (ours, rays):
        for trial in trials:
            scheduler.on_trial_add(None, trial)
    alive, stopped = list(trials), 0
    for epoch in range(1, 10):
        for trial in list(alive):
            report = result(epoch, dice.random())
            decisions = [s.on_trial_result(None, trial, report) for s in (ours, rays)]
            assert decisions[0] == decisions[1]
            if decisions[0] == STOP:
                alive.remove(trial)
                stopped += epoch < 9
    assert stopped > 20


def test_hyperbands_brackets_start_later_one_after_the_other(searching):
    scheduler = searching("hyperband", grace_period=1, reduction_factor=3, brackets=3)
    starts = [min(milestone for milestone, _ in b._rungs) for b in scheduler._brackets]
    assert starts == [1, 3, 9]
    trials = [Tuned(index) for index in range(300)]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    where = [scheduler._brackets.index(scheduler._trial_info[str(t.index)]) for t in trials]
    shares = [where.count(bracket) / 300 for bracket in range(3)]
    # HyperBand's table for 9 epochs and eta = 3: 9, 5 (here 4.5) and 3 trials.
    assert shares == pytest.approx([3 / 5.5, 1.5 / 5.5, 1 / 5.5], abs=0.06)
    for trial in trials:  # a trial that is tried again
        scheduler.on_trial_add(None, trial)
    assert where == [scheduler._brackets.index(scheduler._trial_info[str(t.index)]) for t in trials]


def test_hyperband_compares_within_a_bracket_at_equal_epochs(searching):
    """Against a brute-force twin that keeps every number."""
    dice = random.Random(1)
    scheduler = searching("hyperband", brackets=2, **FOUR)
    seen = {}
    for index in range(60):
        trial = Tuned(index)
        scheduler.on_trial_add(None, trial)
        bracket = scheduler._brackets.index(scheduler._trial_info[str(trial.index)])
        for epoch in range(1, 9):
            value = dice.random()
            decision = scheduler.on_trial_result(None, trial, result(epoch, value))
            if epoch not in ((1, 2, 4, 8), (2, 4, 8))[bracket]:
                assert decision == GO
                continue
            there = sorted(seen.setdefault((bracket, epoch), []))
            middle = len(there) // 2
            half = there and (there[middle] + there[-1 - middle]) / 2  # reduction_factor 2: median
            assert (decision == STOP) == (bool(there) and value < half)
            seen[bracket, epoch].append(value)
            if decision == STOP:
                break
    assert len(seen) == 7


@pytest.mark.parametrize("name", ["asha", "hyperband", "pareto"])
def test_unpickled_in_another_process_it_remembers(searching, name):
    """Tune restores a scheduler as it was pickled when the search began."""
    settings = FOUR | ({"brackets": 1} if name == "hyperband" else {})
    scheduler = searching(name, **settings)
    scheduler.set_search_properties(None, None)
    at_first = pickle.dumps(scheduler)
    assert told(scheduler, result(1, 0.5), result(1, 0.6)) == [GO, GO]
    restored = pickle.loads(at_first)
    late = Tuned(7)
    restored.on_trial_add(None, late)
    assert restored.on_trial_result(None, late, result(1, 0.4)) == STOP
    fresh = searching(name, folder="other", **settings)
    assert told(fresh, result(1, 0.4), of=None) == [GO]


@pytest.mark.parametrize("name", ["asha", "hyperband", "pareto"])
def test_a_stopped_trial_stays_stopped_under_another_driver(searching, name):
    """Which knows it as it was before its last epochs; and by another id of Tune's, perhaps."""
    settings = FOUR | ({"brackets": 1} if name == "hyperband" else {})
    scheduler = searching(name, **settings)
    at_first = pickle.dumps(scheduler)
    stopped = Tuned(2)
    assert told(scheduler, result(2, 0.5), result(2, 0.6)) == [GO, GO]
    scheduler.on_trial_add(None, stopped)
    assert told(scheduler, result(2, 0.4, 0.8), of=stopped) == [STOP]

    for again in (Tuned(2), Tuned(2, tried=1)):
        restored = pickle.loads(at_first)
        restored.on_trial_add(None, again)
        reports = (result(1, 0.9), result(2, 0.9), result(3, 0.9))
        assert told(restored, *reports, of=again) == [GO, STOP, STOP]
        assert getattr(again, STOP_REASON, "") == getattr(stopped, STOP_REASON, "")
        other = Tuned(3 + again.tried)
        restored.on_trial_add(None, other)
        # Second of those there: the stopped one counts once.
        assert told(restored, result(2, 0.55 + 0.02 * again.tried), of=other) == [GO]


@pytest.mark.parametrize("name", ["asha", "hyperband", "pareto"])
def test_between_milestones_nobody_is_compared(searching, name):
    settings = {"grace_period": 2, "reduction_factor": 2} | (
        {"brackets": 1} if name == "hyperband" else {}
    )
    scheduler = searching(name, **settings)
    good, bad = Tuned(0), Tuned(1)
    for trial in (good, bad):
        scheduler.on_trial_add(None, trial)
    told(scheduler, *(result(e, 0.9) for e in (1, 2, 3)), of=good)
    assert told(scheduler, result(1, 0.1), of=bad) == [GO]
    # The guard ends a run between two measured epochs: its number is no number of a milestone.
    scheduler.on_trial_complete(None, good, result(3, 0.0, catastrophic_overfitting=1.0))
    assert told(scheduler, result(2, 0.1), of=bad) == [STOP]


# --- diverged trials -------------------------------------------------------------------------


def test_asha_counts_diverged_trials_as_the_worst_and_stops_nobody_for_them(searching):
    scheduler = searching("asha", **FOUR)
    for index in range(5):
        trial = Tuned(index)
        scheduler.on_trial_add(None, trial)
        scheduler.on_trial_complete(None, trial, result(1, 0.0, 0.0, **DIVERGED))
    weak, weaker = Tuned(10), Tuned(11)
    for trial in (weak, weaker):
        scheduler.on_trial_add(None, trial)
    assert told(scheduler, result(1, 0.2), of=weak) == [GO]
    assert told(scheduler, result(1, 0.1), of=weaker) == [GO]  # still in the better half


def test_hyperband_counts_diverged_trials_as_the_worst(searching):
    scheduler = searching("hyperband", brackets=3, **FOUR)
    for index in range(30):
        trial = Tuned(index)
        scheduler.on_trial_add(None, trial)
        scheduler.on_trial_complete(None, trial, result(4, 0.0, 0.0, **DIVERGED))
    for index in range(30, 60):
        trial = Tuned(index)
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, result(4, 0.5)) == GO


def test_pareto_counts_diverged_trials_as_the_worst(searching):
    scheduler = searching("pareto", **FOUR)
    for index in range(3):
        nan = float("nan")
        scheduler.on_trial_complete(None, Tuned(index), result(2, nan, nan, **DIVERGED))
    assert scheduler._points[2] == {f"{i}": (0.0, 0.0) for i in range(3)}
    good, bad = Tuned(10), Tuned(11)
    assert told(scheduler, result(2, 0.5), of=good) == [GO]
    assert told(scheduler, result(2, 0.4), of=bad) == [GO]  # second of five: the better half
    scheduler.on_trial_complete(None, Tuned(12), result(9, 0.0, 0.0, **DIVERGED))  # no milestone
    assert len(scheduler._points[8]) == 0


def test_the_median_rule_counts_diverged_trials_as_the_worst(searching):
    scheduler = searching("median", grace_period=1)
    for index in range(4):
        trial = Tuned(index)
        scheduler.on_trial_add(None, trial)
        scheduler.on_trial_complete(None, trial, result(3, 0.0, 0.0, **DIVERGED))
    fair = Tuned(10)
    assert told(scheduler, *(result(e, 0.1 * e) for e in (1, 2, 3)), of=fair) == [GO] * 3


def test_the_median_rule_pauses_nobody(searching):
    scheduler = searching("median", grace_period=1)
    trial = Tuned(0)
    scheduler.on_trial_add(None, trial)
    assert told(scheduler, result(1, 0.1), of=trial) == [GO]  # Ray's asks here who is waiting


# --- pareto ----------------------------------------------------------------------------------


def brute_rank(points, place):
    """Fronts peeled off one by one."""
    left, rank = list(range(len(points))), 0
    while True:
        peeled = [
            i
            for i in left
            if not any(
                all(a >= b for a, b in zip(points[j], points[i], strict=True))
                and points[j] != points[i]
                for j in left
            )
        ]
        if place in peeled:
            return rank
        left, rank = [i for i in left if i not in peeled], rank + 1


def brute_area(points, steps):
    """Cells of a lattice below any of the points, whose coordinates lie on it."""
    cells = itertools.product(range(steps), repeat=2)
    return sum(any(x < p[0] * steps and y < p[1] * steps for p in points) for x, y in cells)


@pytest.mark.parametrize("factor", [2, 3])
def test_who_goes_on_against_brute_force(factor):
    dice, steps, decided = random.Random(factor), 8, set()
    for _ in range(60):
        size = dice.randint(1, 12)
        points = [(dice.randint(0, 8) / 8, dice.randint(0, 8) / 8) for _ in range(size)]

        def key(i, points=points):
            rank = brute_rank(points, i)
            peers = [p for j, p in enumerate(points) if brute_rank(points, j) == rank]
            without = list(peers)
            without.remove(points[i])
            return rank, brute_area(without, steps) - brute_area(peers, steps), i

        order = sorted(range(size), key=key)
        for place in range(size):
            best = order.index(place) < size // factor
            expected = brute_rank(points, place) == 0 or best
            assert goes_on(points, place, factor) == expected
            decided.add((expected, best))
    assert decided == {(True, True), (True, False), (False, False)}


def test_pareto_says_by_how_many_a_trial_is_dominated(searching):
    scheduler = searching("pareto", grace_period=1, reduction_factor=3)
    robust = [0.50, 0.40, 0.30, 0.45]
    clean = [0.50, 0.60, 0.70, 0.60]
    reports = [result(1, r, c) for r, c in zip(robust, clean, strict=True)]
    assert told(scheduler, *reports) == [GO] * 4
    worse = Tuned(9)
    assert told(scheduler, result(1, 0.35, 0.55), of=worse) == [STOP]
    assert getattr(worse, STOP_REASON) == "dominated by 2 of 4"


def test_pareto_keeps_both_ends_of_the_front_and_equal_points(searching):
    scheduler = searching("pareto", grace_period=1, reduction_factor=4)
    ends = [result(1, 0.0, 1.0), result(1, 1.0, 0.0), result(1, 1.0, 0.0)]
    assert told(scheduler, *ends) == [GO] * 3


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_one_number_does_not_rank_a_tradeoff(search, name):
    settings = SchedulerConfig(name=name)
    with pytest.raises(ConfigError, match=r"scheduler\.name = .*pareto, pbt or none"):
        check_scheduler(settings, GoalConfig(metric="tradeoff"), search.base)
    for other in ("pareto", "none"):
        check_scheduler(SchedulerConfig(name=other), GoalConfig(metric="tradeoff"), search.base)


def test_more_brackets_than_milestones(search):
    settings = SchedulerConfig(name="hyperband", grace_period=3, reduction_factor=3, brackets=3)
    with pytest.raises(ConfigError, match=r"brackets = 3: at most 2: .*9 epochs .* 1 times"):
        check_scheduler(settings, GoalConfig(), search.base)
    check_scheduler(replace(settings, brackets=2), GoalConfig(), search.base)


def test_brackets_that_would_begin_at_the_same_measured_epoch(search):
    settings = SchedulerConfig(name="hyperband", grace_period=1, reduction_factor=2, brackets=2)
    base = replace(search.base, evaluation=replace(search.base.evaluation, every=2))
    with pytest.raises(ConfigError, match=r"grace_period = 1: a multiple of evaluation\.every = 2"):
        check_scheduler(settings, GoalConfig(), base)
    check_scheduler(replace(settings, grace_period=2), GoalConfig(), base)
    check_scheduler(replace(settings, brackets=1), GoalConfig(), base)
