"""Searches for two accuracies at once, and under constraints: what the samplers make of them."""

import math

import numpy as np
import optuna.samplers._tpe.sampler as tpe
import pytest
from optuna.samplers.nsgaii._elite_population_selection_strategy import _rank_population
from optuna.trial import TrialState

from orchestrator.compare.pareto import front, hypervolume
from orchestrator.search import goal
from orchestrator.search.searcher import UNFINISHED, SpaceSearcher
from orchestrator.search.settings import GoalConfig

SPACE = """
parameters:
  k1: {type: float, low: 0.0, high: 1.0}
  objective.preference: {type: derived, expression: "[k1, 1 - k1]"}
  objective.beta: {type: float, low: 0.0, high: 10.0}
baselines:
  paper: {k1: 0.1, objective.beta: 6.0}
"""
BOTH = "objective.metric=tradeoff"
SAMPLERS = ["tpe", "nsga2", "nsga3", "random", "quasi_random"]


def report(clean, robust, epoch=4, **more):
    """A trainer's, whose best epoch is better than its newest."""
    best = {"best_clean_accuracy": clean, "best_robust_accuracy": robust}
    now = {"clean_accuracy": clean - 0.01, "robust_accuracy": robust - 0.02}
    return {"epoch": epoch, "num_epochs": 4, "time_total_s": 60.0, **best, **now, **more}


def tell(searcher, *reports):
    """Trials that end with these reports; Optuna's view of them."""
    for number, last in enumerate(reports):
        searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), last)
    return searcher._study.get_trials()


def by_tpe(searcher):
    """The trials' numbers, the best in TPE's eyes first."""
    order, trials = [], searcher._study.get_trials()
    for count in range(1, len(trials) + 1):
        below, _ = tpe._split_trials(searcher._study, trials, count)
        order += [trial.number for trial in below if trial.number not in order]
    return order


def by_genetics(searcher):
    """The trials' numbers in ranks, as NSGA-II and III see them."""
    trials = [t for t in searcher._study.get_trials() if t.state is TrialState.COMPLETE]
    ranks = _rank_population(trials, searcher._study.directions, is_constrained=True)
    return [[trial.number for trial in rank] for rank in ranks]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_both_accuracies_of_the_best_epoch_are_told(load, sampler):
    searcher = SpaceSearcher(load(SPACE, BOTH, f"searcher.name={sampler}"))
    (trial,) = tell(searcher, report(0.9, 0.5))
    assert (trial.values, trial.constraints) == ([0.9, 0.5], {})
    assert searcher.metric == "robust_accuracy"  # what Tune ranks by


def test_numbers_of_two_networks_never_mix():
    both = GoalConfig(metric="tradeoff")
    mixed = {"clean_accuracy": 0.9, "robust_accuracy": 0.4, "best_robust_accuracy": 0.5}
    assert goal.values(both, mixed) == [0.9, 0.4]
    assert goal.values(both, report(0.8, 0.5)) == [0.8, 0.5]
    assert goal.values(both, {"best_robust_accuracy": 0.5}) is None
    assert goal.values(both, report(0.8, math.nan)) is None


def test_stopped_trials_rank_by_epoch_then_by_what_they_dominate(load):
    searcher = SpaceSearcher(load(SPACE, BOTH, "num_trials=9"))
    tell(
        searcher,
        report(0.99, 0.99, epoch=1),
        report(0.5, 0.1, epoch=3),
        report(0.6, 0.2, epoch=3),
        report(0.3, 0.1),
        report(0.9, 0.9, epoch=2),
    )
    assert by_tpe(searcher) == [3, 2, 1, 4, 0]
    assert by_genetics(searcher) == [[3], [2], [1], [4], [0]]


def test_a_trial_that_means_nothing_fails(load):
    searcher = SpaceSearcher(load(SPACE, BOTH))
    trials = tell(searcher, report(0.0, 0.0, diverged=1.0), {"epoch": 4, "num_epochs": 4}, None)
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 3


def test_constraints_come_before_the_goal(load):
    options = ["objective.constraints=[clean_accuracy >= 0.8, train_seconds <= 100]"]
    searcher = SpaceSearcher(load(SPACE, *options, "num_trials=9"))
    trials = tell(
        searcher,
        report(0.7, 0.6),
        report(0.8, 0.2),
        report(0.9, 0.9, epoch=3),
        report(0.9, 0.7, time_total_s=1e6),
        report(0.9, 0.3),
        report(0.1, 0.8, time_total_s=1e6),
    )
    assert by_tpe(searcher) == [4, 1, 0, 3, 5, 2]
    assert by_genetics(searcher) == [[4], [1], [0], [3], [5], [2]]
    assert trials[1].constraints == {"clean_accuracy >= 0.8": 0.0, "train_seconds <= 100": -20.0}
    assert sum(miss for miss in trials[5].constraints.values() if miss > 0) < 1
    assert list(trials[2].constraints) == [UNFINISHED]
    assert trials[2].constraints[UNFINISHED] > 1


def test_a_miss_is_relative_and_at_most_1():
    bounds = GoalConfig(constraints=["train_seconds <= 0", "robust_accuracy >= .5"])
    assert list(goal.misses(bounds, report(0.9, 0.6)).values()) == [1.0, pytest.approx(-0.1)]
    assert list(goal.misses(bounds, {}).values()) == [1.0, 1.0]
    assert goal.complaints(bounds, {"robust_accuracy": 0.25}) == [
        "train_seconds (not measured) misses train_seconds <= 0",
        "robust_accuracy 0.25 misses robust_accuracy >= 0.5",
    ]


def tradeoff(config):
    """A made-up trade-off: beta moves along the front, k1 away from it."""
    beta, k1 = config["params"]["objective.beta"] / 10, config["params"]["k1"]
    distance = 0.5 * abs(k1 - 0.8)
    return max(0.0, 1 - beta**2 - distance), max(0.0, 0.6 * beta**0.5 - distance)


def searched(search):
    """The trials' points after a whole search, every third one stopped early."""
    searcher, points = SpaceSearcher(search), []
    for number in range(search.total_trials):
        config = searcher.suggest(str(number))
        points.append(tradeoff(config))
        epoch = 2 if number % 3 == 2 else 4
        searcher.on_trial_complete(str(number), report(*points[-1], epoch=epoch))
    return points


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3"])
def test_learners_find_more_of_the_front_than_chance(load, sampler):
    def area(name, seed):
        options = [f"searcher.name={name}", "num_trials=60", f"seed={seed}"]
        options += ["searcher.population_size=10"] if name.startswith("nsga") else []
        return hypervolume(searched(load(SPACE, BOTH, *options)))

    gains = [area(sampler, seed) - area("random", seed) for seed in range(4)]
    assert np.mean(gains) > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_restored_search_goes_on_as_if_nothing_had_happened(load, tmp_path, sampler):
    options = [f"searcher.name={sampler}", "num_trials=20"]
    options += ["searcher.population_size=4"] if sampler.startswith("nsga") else []
    search = load(SPACE, BOTH, *options)

    def go(searcher, numbers):
        configs = []
        for number in numbers:
            configs.append(searcher.suggest(str(number)))
            searcher.on_trial_complete(str(number), report(*tradeoff(configs[-1])))
        return configs

    whole = SpaceSearcher(search)
    go(whole, range(12))
    running = whole.suggest("running")
    whole.on_trial_result("running", report(0.5, 0.5, epoch=1))
    whole.save(str(tmp_path / "state"))
    expected = go(whole, range(13, 20))
    restored = SpaceSearcher(search)
    restored.restore(str(tmp_path / "state"))
    assert go(restored, range(13, 20)) == expected
    restored.on_trial_complete("running", None)
    told = restored._study.get_trials()[12]
    assert (told.values, told.params["k1"]) == ([0.5, 0.5], running["params"]["k1"])


def test_optunas_own_front_is_ours(load):
    searcher = SpaceSearcher(load(SPACE, BOTH, "num_trials=30", "searcher.name=random"))
    points = []
    for number in range(30):
        points.append(tradeoff(searcher.suggest(str(number))))
        searcher.on_trial_complete(str(number), report(*points[-1]))
    assert sorted(trial.number for trial in searcher._study.best_trials) == front(points)
