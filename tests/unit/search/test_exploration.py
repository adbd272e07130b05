"""Settings that change while networks train: where they may go, and what is refused beforehand."""

import random

import pytest

from morel_core import ConfigError
from morel_core.errors import check
from orchestrator.search.exploration import draw, explore, moved
from orchestrator.search.parameters import ChoiceParameter, FloatParameter, IntParameter
from orchestrator.search.space import SearchConfig

HEAD = """
recipe: digits
overrides: {training.epochs: 6}
searcher: {name: random}
scheduler: {name: pbt, interval: 2}
num_trials: 6
"""
SPACE = """
parameters:
  k1: {type: float, low: 0.0, high: 0.5}
  objective.preference: {type: derived, expression: "[k1, 1 - k1]"}
  objective.accuracy: {type: choice, values: [trades, mart, at]}
  objective.beta: {type: float, low: 1.0, high: 10.0, when: {objective.accuracy: [trades, mart]}}
  attack.num_steps: {type: int, low: 1, high: 9, step: 2}
  optimizer.lr: {type: float, low: 0.001, high: 0.5, log: true}
  seed: {type: grid, values: [0, 1]}
baselines:
  paper: {k1: 0.1, objective.accuracy: trades, attack.num_steps: 3, optimizer.lr: 0.1}
"""
POINT = {
    "seed": 1,
    "k1": 0.1,
    "objective.accuracy": "trades",
    "objective.beta": 6.0,
    "attack.num_steps": 3,
    "optimizer.lr": 0.1,
}


def explored(search, point, count=60):
    return [explore(search, point, random.Random(seed)) for seed in range(count)]


def test_moves_stay_beside_the_donors_values(load):
    search = load(SPACE, "scheduler.resample=0", head=HEAD)
    found = explored(search, POINT)
    assert {p["k1"] for p in found} == {0.1 * 0.8, 0.1 * 1.2}
    assert {p["optimizer.lr"] for p in found} == {0.1 * 0.8, 0.1 * 1.2}
    assert {p["attack.num_steps"] for p in found} == {1, 5}
    assert {p["objective.accuracy"] for p in found} == {"trades"}
    assert {p["seed"] for p in found} == {1}
    assert len({tuple(p.items()) for p in found}) > 12


def test_bounds_clip(load):
    search = load(SPACE, "scheduler.resample=0", head=HEAD)
    edge = POINT | {"k1": 0.5, "optimizer.lr": 0.001, "attack.num_steps": 9}
    found = explored(search, edge)
    assert {p["k1"] for p in found} == {0.4, 0.5}
    assert {p["optimizer.lr"] for p in found} == {0.001, 0.001 * 1.2}
    assert {p["attack.num_steps"] for p in found} == {7, 9}


def test_what_is_drawn_anew_is_of_the_whole_range_and_often_enough(load):
    search = load(SPACE, "scheduler.resample=0.5", head=HEAD)
    found = explored(search, POINT, 150)
    kept = sum(p["k1"] in (0.1 * 0.8, 0.1 * 1.2) for p in found) / 150
    assert kept == pytest.approx(0.5, abs=0.12)
    drawn = [p["k1"] for p in found if p["k1"] not in (0.1 * 0.8, 0.1 * 1.2)]
    assert min(drawn) < 0.05
    assert max(drawn) > 0.45
    assert {p["objective.accuracy"] for p in found} == {"trades", "mart", "at"}


def test_only_active_parameters_and_every_point_is_a_run(load):
    search = load(SPACE, "scheduler.resample=0.5", head=HEAD)
    for point in explored(search, POINT):
        assert ("objective.beta" in point) == (point["objective.accuracy"] != "at")
        run = search.trial_config(point)
        assert run.objective.preference == (point["k1"], 1 - point["k1"])  # derived anew
    inactive = {k: v for k, v in POINT.items() if k != "objective.beta"}
    back = explored(search, inactive | {"objective.accuracy": "at"})
    drawn = [p["objective.beta"] for p in back if p["objective.accuracy"] != "at"]
    assert drawn
    assert all(1 <= beta <= 10 for beta in drawn)


def test_a_move_that_no_run_accepts_is_not_made(load, monkeypatch):
    search = load(SPACE, "scheduler.resample=0", head=HEAD)
    accepts = SearchConfig.trial_config

    def strict(self, params):
        check(params["optimizer.lr"] <= 0.1, "optimizer.lr", params["optimizer.lr"], "at most 0.1")
        return accepts(self, params)

    monkeypatch.setattr(SearchConfig, "trial_config", strict)
    found = explored(search, POINT)
    assert {p["optimizer.lr"] for p in found} == {0.1 * 0.8, 0.1}
    assert {p["k1"] for p in found} == {0.1 * 0.8, 0.1 * 1.2}


def test_the_same_dice_explore_the_same_way(load):
    search = load(SPACE, head=HEAD)
    assert explored(search, POINT, 5) == explored(search, POINT, 5)


@pytest.mark.parametrize(
    "parameter",
    [
        FloatParameter(low=0.0, high=2.0),
        FloatParameter(low=1e-4, high=1.0, log=True),
        FloatParameter(low=0.0, high=1.0, step=0.25),
        IntParameter(low=1, high=9, step=2),
        IntParameter(low=1, high=64, log=True),
        ChoiceParameter(values=["a", "b"]),
    ],
)
def test_every_value_is_one_of_the_space(parameter):
    dice = random.Random(0)
    values = [draw(parameter, dice) for _ in range(300)]
    assert all(parameter.contains(value) for value in values)
    assert all(parameter.contains(moved(parameter, value, dice)) for value in values)
    assert len(set(values)) >= min(len(getattr(parameter, "values", [])) or 5, 5)


def test_logarithmic_draws_are_uniform_in_the_logarithm():
    dice = random.Random(0)
    for parameter in (
        FloatParameter(low=1e-4, high=1.0, log=True),
        IntParameter(low=1, high=10_000, log=True),
    ):
        middle = (parameter.low * parameter.high) ** 0.5
        below = sum(draw(parameter, dice) < middle for _ in range(2000)) / 2000
        assert below == pytest.approx(0.5, abs=0.05)


# --- what is refused -------------------------------------------------------------------------

LR = """
parameters:
  optimizer.lr: {type: float, low: 0.001, high: 0.5, log: true}
baselines:
  paper: {optimizer.lr: 0.1}
"""


def space_with(name, entry, extra=""):
    return f"parameters:\n  {name}: {entry}\n{extra}" + LR.replace("\nparameters:\n", "")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["searcher.name=tpe"], r"searcher\.name = 'tpe': random, quasi_random or grid with"),
        (["searcher.name=nsga2"], r"searcher\.name = 'nsga2': random, quasi_random or grid"),
        (["num_trials=1"], r"num_trials = 1: at least 2 with scheduler pbt"),
        (["scheduler.interval=6"], r"scheduler\.interval = 6: an exchange comes before the last"),
        (
            ["ladder.rungs=[{epoch: 1, num_steps: 2}, {epoch: 3}]"],
            r"scheduler\.name = 'pbt': asha, hyperband, pareto or none with evaluation rungs",
        ),
        (["warm_start=[earlier]"], r"warm_start = "),
    ],
)
def test_settings_that_make_no_sense_with_pbt(load, overrides, message):
    load(LR, head=HEAD)
    with pytest.raises(ConfigError, match=message):
        load(LR, *overrides, head=HEAD)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("seed", "{type: int, low: 0, high: 9}"),
        ("model.width", "{type: choice, values: [4, 8]}"),
        ("optimizer.name", "{type: choice, values: [sgd, adamw]}"),
        ("data.train_size", "{type: int, low: 200, high: 300}"),
    ],
)
def test_settings_that_a_network_keeps(load, name, entry):
    space = space_with(name, entry).replace("paper: {", f"paper: {{{name}: {first(entry)}, ")
    with pytest.raises(ConfigError, match=rf"parameters\.{name}.*keeps this one"):
        load(space, head=HEAD.replace("overrides: {training.epochs: 6}", ""))


def first(entry):
    """The lower end of an entry, or its first value."""
    words = entry.replace("[", " ").replace(",", " ").replace("]", " ").split()
    return words[words.index("low:" if "low:" in words else "values:") + 1]


def test_a_derived_setting_that_a_network_keeps(load):
    width = 'model.width: {type: derived, expression: "4 * w"}\n  '
    space = space_with("w", "{type: int, low: 1, high: 2}", f"  {width.rstrip()}\n")
    space = space.replace("paper: {", "paper: {w: 1, ")
    with pytest.raises(ConfigError, match=r"parameters\.model\.width.*keeps this one"):
        load(space, head=HEAD)


def test_a_grid_of_seeds_and_what_is_derived_from_it_may_stay(load):
    entry = "{type: grid, values: [1, 2]}"
    derived = '  model.width: {type: derived, expression: "4 * w"}\n'
    search = load(space_with("w", entry, derived), head=HEAD)
    assert search.total_trials == 12
