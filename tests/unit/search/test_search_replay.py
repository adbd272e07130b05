"""Replaying searches on a table: costs, ends, and what is found."""

import math

import pytest

from benchmarks import search_replay as replaying
from benchmarks.search_table import SPACE, key, points
from morel_core.statistics import binomial_tail
from orchestrator.search.space import load_search

EPOCHS = 12


@pytest.fixture(scope="module")
def table():
    """The nearer to a point, the more robust; one setting in 288 diverges in its third epoch."""
    curves, costs = {}, {}
    for params in points(load_search(str(SPACE))):
        distance = abs(params["lr_step"] - 1) + abs(params["eps_step"] - 2) + params["alpha_step"]
        best = 0.8 - 0.05 * distance - 0.01 * params["k1_step"] + 0.002 * params["attack_step"]
        epochs = 2 if key(params) == "3 3 2 2 1" else EPOCHS
        curves[key(params)] = [(0.9, best * epoch / EPOCHS) for epoch in range(1, epochs + 1)]
        costs[key(params)] = 1.0 + params["attack_step"]
    return replaying.Table(EPOCHS, curves, costs)


def test_every_point_of_the_space_is_one_of_the_table():
    names = [key(params) for params in points(load_search(str(SPACE)))]
    assert len(names) == len(set(names)) == 288


def test_random_search_trains_every_trial_to_the_end_and_pays_for_it(table):
    contender = replaying.Contender(
        (*replaying.CONTENDERS["random"].overrides, "num_trials=10"), replaying.SpaceSearcher
    )
    proposed = []

    class Spy(replaying.SpaceSearcher):
        def suggest(self, trial_id):
            config = super().suggest(trial_id)
            if isinstance(config, dict):
                proposed.append(key(config["params"]))
            return config

    spied = replaying.Contender(contender.overrides, Spy)
    done, cost = replaying.replay(spied, table, 0, 4, math.inf)
    ended = [name for name in proposed if len(table.curves[name]) == EPOCHS]
    assert len(proposed) == 10
    assert cost == sum(
        table.costs[name] * min(EPOCHS, len(table.curves[name]) + 1) for name in proposed
    )
    assert sorted(trial.robust for trial in done) == sorted(
        max(robust for _, robust in table.curves[name]) for name in ended
    )


@pytest.mark.parametrize("name", [n for n in replaying.CONTENDERS if n != "random"])
def test_a_budget_is_kept_and_costs_grow(table, name):
    done, _ = replaying.replay(replaying.CONTENDERS[name], table, 1, 4, 300.0)
    costs = [trial.cost for trial in done]
    assert costs == sorted(costs)
    assert 0 < costs[-1] <= 300
    assert len(done) * EPOCHS <= 300


def test_all_contenders_of_a_seed_begin_with_the_same_point():
    assert replaying.first_point(3) == replaying.first_point(3)
    assert len({tuple(replaying.first_point(seed)) for seed in range(8)}) > 1


def test_the_cost_to_reach_is_that_of_the_first_as_good():
    done = [replaying.Done(*values) for values in ((5, 0.9, 0.5), (9, 0.8, 0.7), (12, 0.9, 0.6))]
    assert replaying.cost_to_reach(done, 0.6) == 9
    assert replaying.cost_to_reach(done, 0.71) == math.inf
    assert replaying.volume(done) == pytest.approx(0.9 * 0.6 + 0.8 * 0.1)


def test_the_interval_of_a_median_covers_it():
    summed = replaying.median_interval([float(v) for v in range(100)])
    assert summed["median"] == 49.5
    inside = summed["low"], summed["high"]
    assert inside == (39.0, 60.0)  # order statistics 40 and 61 of 100, as tabulated
    assert binomial_tail(61, 100, 0.5) <= 0.025 < binomial_tail(60, 100, 0.5)
