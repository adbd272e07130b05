"""Search files: every kind of entry, overrides, and what a trial's run becomes."""

import dataclasses
import itertools
import pickle

import optuna
import pytest
from search_files import ALPHA

from morel_core.errors import ConfigError
from morel_core.ladder import Ladder
from orchestrator.search.settings import SchedulerConfig, VerifyConfig
from orchestrator.search.space import check_resources, load_search, split_overrides


def draw(space, fixed=None, n=40, sampler=None):
    study = optuna.create_study(sampler=sampler or optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask(), fixed or {}) for _ in range(n)]


KINDS = """
parameters:
  k1: {type: float, low: 0.0, high: 1.0}
  objective.preference: {type: derived, expression: "[k1, 1 - k1]"}
  objective.alpha: {type: float, low: 1.0e-6, high: 1.0, log: true}
  objective.beta: {type: float, low: 1.0, high: 6.0, step: 0.5}
  attack.eps: {type: float, low: "${frac:2,255}", high: 16/255}
  half: {type: derived, expression: attack.eps / 2}
  attack.step_size: {type: derived, expression: half * 0.5}
  attack.num_steps: {type: int, low: 1, high: 9, step: 2}
  training.batch_size: {type: int, low: 8, high: 256, log: true}
  objective.features: {type: choice, values: [natural, adversarial, both]}
baselines:
  paper:
    {k1: 0.1, objective.alpha: 1.0e-5, objective.beta: 6, attack.eps: "${frac:8,255}"}
"""


def test_every_sampled_kind_stays_in_its_range(load):
    space = load(KINDS).space
    points = draw(space)
    for point in points:
        assert 0 <= point["k1"] <= 1
        assert 1e-6 <= point["objective.alpha"] <= 1
        assert point["objective.beta"] * 2 == int(point["objective.beta"] * 2)
        assert 2 / 255 <= point["attack.eps"] <= 16 / 255
        assert point["attack.num_steps"] in (1, 3, 5, 7, 9)
        assert 8 <= point["training.batch_size"] <= 256
        assert all(type(value) in (int, float, str) for value in point.values())
    assert {point["objective.features"] for point in points} == {"natural", "adversarial", "both"}
    # log: as many below the geometric mean as above, roughly
    assert 10 <= sum(point["objective.alpha"] < 1e-3 for point in points) <= 30
    assert 10 <= sum(point["training.batch_size"] < 45 for point in points) <= 30


def test_derived_values_enter_the_run_and_helpers_do_not(load):
    search = load(KINDS)
    point = {"k1": 0.25, "attack.eps": 0.04, "attack.num_steps": 3}
    assert search.space.overrides(point) == {
        "attack.eps": 0.04,
        "attack.num_steps": 3,
        "objective.preference": [0.25, 0.75],
        "attack.step_size": 0.01,
    }
    config = search.trial_config(point)
    assert config.objective.preference == (0.25, 0.75)
    assert config.attack.step_size == 0.01
    assert config.training.epochs == 4


def test_baseline_has_a_value_for_everything_sampled(load):
    search = load(KINDS)
    assert search.space.baseline_params("paper") == {
        "k1": 0.1,
        "objective.alpha": 1e-5,
        "objective.beta": 6.0,
        "attack.eps": 8 / 255,
        "attack.num_steps": 5,  # these three are the recipe's
        "training.batch_size": 64,
        "objective.features": "natural",
    }
    assert type(search.space.baseline_params("paper")["objective.beta"]) is float


def test_label_is_short_plain_and_unambiguous(load):
    space = load(KINDS).space
    assert space.label({"k1": 0.1, "objective.alpha": 1e-5}) == "k1=0.1 alpha=1e-05"
    assert space.label({"a.name": "x", "b.name": 2}) == "a.name=x b.name=2"


GRID = """
parameters:
  objective.alpha: {type: float, low: 1.0e-6, high: 1.0, log: true}
  seed: {type: grid, values: [0, 1, 2]}
  objective.accuracy: {type: grid, values: [trades, at]}
baselines:
  paper: {objective.alpha: 1.0e-5}
"""


def test_grid_is_every_combination_crossed_with_the_trials(load):
    search = load(GRID)
    cells = [(cell["seed"], cell["objective.accuracy"]) for cell in search.space.grid()]
    assert cells == list(itertools.product([0, 1, 2], ["trades", "at"]))
    assert search.total_trials == 6 * 6
    fixed = {"seed": 2, "objective.accuracy": "at"}
    for point in draw(search.space, fixed, n=3):
        assert point.items() >= fixed.items()
    assert search.trial_config({"seed": 2, "objective.accuracy": "at"}).seed == 2


CONDITIONAL = """
parameters:
  objective.loat_theta: {type: float, low: 0.1, high: 1, when: {objective.accuracy: loat}}
  objective.loat_gamma: {type: float, low: 0.1, high: 1, when: {objective.loat_lore: true}}
  objective.loat_lore: {type: choice, values: [true, false], when: {objective.accuracy: loat}}
  objective.beta: {type: float, low: 1, high: 9, when: {objective.accuracy: [trades, loat]}}
  objective.accuracy: {type: choice, values: [trades, loat, at]}
baselines:
  paper: {}
  loat: {objective.accuracy: loat, objective.loat_lore: true, objective.loat_gamma: 0.5}
"""


def test_conditional_parameters_are_drawn_only_where_they_are_used(load):
    space = load(CONDITIONAL).space
    points = draw(space, n=60)
    for point in points:
        accuracy = point["objective.accuracy"]
        assert ("objective.beta" in point) == (accuracy in ("trades", "loat"))
        assert ("objective.loat_theta" in point) == (accuracy == "loat")
        assert ("objective.loat_lore" in point) == (accuracy == "loat")
        # the parent itself may be inactive
        assert ("objective.loat_gamma" in point) == point.get("objective.loat_lore", False)
        assert space.overrides(point).keys() == point.keys()
    assert sum("objective.loat_gamma" in point for point in points) > 3
    assert space.baseline_params("paper") == {"objective.accuracy": "trades", "objective.beta": 6.0}
    assert space.baseline_params("loat")["objective.loat_theta"] == 1.0
    assert space.conditional


def test_condition_on_a_grid_parameter(load):
    search = load(
        """
parameters:
  objective.accuracy: {type: grid, values: [at, loat]}
  objective.loat_theta: {type: float, low: 0.1, high: 1, when: {objective.accuracy: loat}}
  objective.alpha: {type: float, low: 0, high: 1}
baselines: {paper: {objective.loat_theta: 0.5}}
"""
    )
    params = [params for _, params in search.planned()]
    assert params == [
        {"objective.accuracy": "at", "objective.alpha": 1e-5},
        {"objective.accuracy": "loat", "objective.alpha": 1e-5, "objective.loat_theta": 0.5},
    ]


ENUMERATED = """
parameters:
  objective.accuracy: {type: choice, values: [trades, at]}
  objective.features: {type: choice, values: [natural, both]}
  objective.loat_base: {type: choice, values: [mart, trades], when: {objective.accuracy: at}}
  seed: {type: grid, values: [0, 1]}
baselines:
  paper: {objective.accuracy: trades, objective.features: natural}
"""


def test_searcher_grid_enumerates_choices_and_repeats_nothing(load):
    search = load(ENUMERATED, "num_trials=100", "searcher.name=grid")
    planned = [params for _, params in search.planned()]
    assert search.total_trials == len(planned) == (2 + 4) * 2
    assert all(planned.count(params) == 1 for params in planned)
    assert [name for name, _ in search.planned()[:3]] == ["paper", "paper", None]
    assert planned[0] == {
        "objective.accuracy": "trades",
        "objective.features": "natural",
        "seed": 0,
    }
    with pytest.raises(ConfigError, match=r"num_trials = 2: at least 6: .* in 12 trials; name"):
        load(ENUMERATED, "num_trials=2", "searcher.name=grid")


def test_defaults_of_a_search_file(load):
    search = load(head="")
    assert search.name == "mine"
    assert search.objective.metric == "robust_accuracy"
    assert (search.searcher.name, search.searcher.startup_trials) == ("tpe", 10)
    scheduler = search.scheduler
    assert (scheduler.name, scheduler.grace_period, scheduler.reduction_factor) == ("asha", 3, 2)
    assert (search.budget.wall_time_s, search.max_concurrent, search.seed) == (None, None, 0)
    assert (search.resources.workers, search.resources.gpus_per_worker) == (1, 0.0)


@pytest.mark.parametrize(
    ("epochs", "every", "expected"), [(12, 1, 3), (13, 1, 4), (12, 2, 4), (1, 1, 1), (2, 3, 2)]
)
def test_nobody_stops_before_a_quarter_of_the_run(epochs, every, expected):
    assert SchedulerConfig(name="median").patient(epochs, every).grace_period == expected
    assert SchedulerConfig(name="asha", grace_period=2).patient(epochs, every).grace_period == 2
    assert SchedulerConfig(name="none").patient(epochs, every).grace_period is None


def test_a_search_is_frozen_and_travels(load):
    search = load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        search.num_trials = 3
    assert pickle.loads(pickle.dumps(search)) == search


def test_overrides_reach_the_search_its_parameters_and_the_run(load):
    search = load(
        KINDS,
        "num_trials=3",
        "seed=7",
        "objective.metric=clean_accuracy",
        "scheduler={name: asha, grace_period: 2}",
        "parameters.objective.alpha.high=0.5",
        "parameters.k1.high=0.5",
        "baselines.paper.objective.alpha=1e-4",
        "overrides.seed=11",
        "overrides.training.epochs=3",
        "objective.temperature=0.2",
        "resources.workers=2",
    )
    assert (search.num_trials, search.seed, search.objective.metric) == (3, 7, "clean_accuracy")
    assert search.scheduler.grace_period == 2
    assert search.space.parameters["objective.alpha"].high == 0.5
    assert search.space.parameters["k1"].high == 0.5
    assert search.space.baseline_params("paper")["objective.alpha"] == 1e-4
    assert search.base.objective.temperature == 0.2
    assert (search.base.seed, search.base.training.epochs) == (11, 3)
    assert search.base.scaling.num_workers == 2


def test_whole_entries_can_be_given_on_the_command_line(load):
    search = load(
        ALPHA,
        "parameters.objective.beta={type: float, low: 1, high: 6}",
        "baselines.light={objective.beta: 2}",
        "baselines.strong.objective.beta=5",
    )
    assert list(search.space.sampled) == ["objective.alpha", "objective.beta"]
    assert search.space.baseline_params("light") == {"objective.alpha": 1e-5, "objective.beta": 2.0}
    assert search.space.baseline_params("strong")["objective.beta"] == 5.0


def test_the_command_line_wins_over_the_files_overrides(load):
    assert load(KINDS, "training.epochs=2").base.training.epochs == 2


def test_a_new_scheduler_drops_the_old_ones_settings(load):
    head = "scheduler: {name: asha, grace_period: 2, reduction_factor: 4}\nnum_trials: 2\n"
    scheduler = load(head=head).scheduler
    assert (scheduler.name, scheduler.reduction_factor) == ("asha", 4)
    changes = ["scheduler.grace_period=3", "scheduler.name=median"]
    scheduler = load(ALPHA, *changes, head=head).scheduler
    assert (scheduler.name, scheduler.grace_period, scheduler.reduction_factor) == (
        "median",
        3,
        None,
    )


def test_split_overrides():
    ours = ["num_trials=4", "seed=1", "objective.metric=x", "scheduler.name=none", "recipe=r"]
    ours.append("parameters.objective.alpha.high=0.5")
    runs = [
        "objective.alpha=1",
        "training.epochs=2",
        "name=mine",
        "storage_path=/s",
        "attack.eps=1",
    ]
    mixed = [item for pair in zip(ours, runs, strict=False) for item in pair] + ours[len(runs) :]
    assert split_overrides(mixed) == (ours, runs)
    with pytest.raises(
        ConfigError, match="num_trails = '4': unknown key; did you mean 'num_trials'"
    ):
        split_overrides(["num_trails=4"])


def test_check_resources(load):
    search = load(head="resources: {workers: 2, gpus_per_worker: 0.5}\nnum_trials: 2\n")
    check_resources(search, available_cpus=2, available_gpus=1)
    with pytest.raises(ConfigError, match=r"asks for 2 CPUs \(2 x 1\), but there are 1: lower"):
        check_resources(search, available_cpus=1, available_gpus=1)
    with pytest.raises(ConfigError, match=r"gpus_per_worker = 0.5: one trial asks for 1 GPUs"):
        check_resources(search, available_cpus=2, available_gpus=0)


@pytest.mark.parametrize(
    "name",
    [
        "loss_weights",
        "temperature",
        "attack_strength",
        "optimisation",
        "full",
        "smoke",
        "demo",
    ],
)
def test_packaged_search(name):
    search = load_search(name)
    assert search.name == name
    assert search.source == f"search_spaces/{name}.yaml"
    assert search.description
    config = search.trial_config(
        {**search.space.baseline_params("paper"), **search.space.grid()[0]}
    )
    objective = config.objective
    assert objective.preference == pytest.approx((0.1, 0.9))
    assert (objective.alpha, objective.temperature, objective.beta) == (1e-5, 0.1, 6.0)
    assert (objective.accuracy, objective.features) == ("trades", "natural")
    assert (objective.morel, config.model.attention) == (True, True)
    recipe = load_search("smoke").base
    assert config.attack == recipe.attack
    # A ladder weakens the recipe's own attack at first; its last rung is that attack.
    assert config.evaluation == dataclasses.replace(recipe.evaluation, rungs=search.ladder.rungs)
    last = Ladder.of(config.evaluation).last
    assert (last.attack, last.num_images) == (Ladder.of(recipe.evaluation).last.attack, None)
    assert config.optimizer == recipe.optimizer


def test_trials_of_a_baseline_are_told_apart_by_the_grid(load):
    space = load(
        ALPHA.replace("baselines", "  seed: {type: grid, values: [1, 2]}\nbaselines")
    ).space
    assert space.label_of("paper", {"objective.alpha": 1e-5, "seed": 2}) == "paper seed=2"
    assert load(ALPHA).space.label_of("paper", {"objective.alpha": 1e-5}) == "paper"


def test_demo_is_eight_trials_with_early_stopping():
    search = load_search("demo")
    assert search.total_trials >= 8
    assert search.scheduler.name == "asha"
    assert set(search.space.sampled) == {
        "k1",
        "objective.alpha",
        "objective.temperature",
        "attack.eps",
    }


LADDER = """
ladder:
  rungs: [{epoch: 1, num_steps: 5, num_images: 50}, {epoch: 3}]
  verify: {top: 2}
"""


def test_a_ladder_is_the_same_for_every_trial(load):
    search = load(ALPHA + LADDER)
    assert search.ladder.verify == VerifyConfig(top=2, attacks=["autoattack"])
    rungs = search.trial_config({"objective.alpha": 0.5}).evaluation.rungs
    assert rungs == search.base.evaluation.rungs == search.ladder.rungs
    assert [(rung.epoch, rung.num_steps, rung.num_images) for rung in rungs] == [
        (1, 5, 50),
        (3, None, None),
    ]


def test_a_ladder_changes_from_the_command_line(load):
    search = load(ALPHA + LADDER, "ladder.verify.top=5", "ladder.verify.attacks=[square]")
    assert search.ladder.verify == VerifyConfig(top=5, attacks=["square"])
    assert load(ALPHA, "ladder.verify.top=1").ladder.verify.top == 1
