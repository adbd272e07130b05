"""The searcher against a stand-in for Ray Tune: order, outcomes, save and restore."""

import math

import optuna
import optuna.samplers._tpe.sampler as tpe
import pytest
from optuna.trial import TrialState
from ray.tune.search import ConcurrencyLimiter, SearchGenerator

from orchestrator.search.searcher import UNFINISHED, SpaceSearcher
from orchestrator.search.trial import IMPOSSIBLE

SPACE = """
parameters:
  k1: {type: float, low: 0.0, high: 1.0}
  objective.preference: {type: derived, expression: "[k1, 1 - k1]"}
  objective.features: {type: choice, values: [natural, adversarial, both]}
baselines:
  paper: {k1: 0.1, objective.features: natural}
  equal: {k1: 0.5, objective.features: both}
"""
CROSSED = SPACE.replace("baselines:", "  seed: {type: grid, values: [0, 1]}\nbaselines:")
CONDITIONAL = """
parameters:
  objective.accuracy: {type: choice, values: [trades, loat]}
  objective.loat_theta: {type: float, low: 0.1, high: 1, when: {objective.accuracy: loat}}
  objective.alpha: {type: float, low: 1.0e-6, high: 1, log: true}
baselines: {paper: {}}
"""
SAMPLERS = ["tpe", "nsga2", "random", "quasi_random"]


def states(searcher):
    return [trial.state for trial in searcher._study.get_trials()]


def accuracy(config, epoch):
    """A made-up robust accuracy that grows with the epochs and peaks at k1 = 0.8."""
    k1 = config["params"].get("k1", 0.5)
    return 0.1 * epoch - (k1 - 0.8) ** 2


def finish(searcher, trial_id, config, epochs=4, num_epochs=4):
    for epoch in range(1, epochs + 1):
        result = {"robust_accuracy": accuracy(config, epoch), "epoch": epoch}
        result["num_epochs"] = num_epochs
        if epoch < epochs:
            searcher.on_trial_result(trial_id, result)
    searcher.on_trial_complete(trial_id, result)


def run(searcher, first=0, until=None):
    """Finish trials one after another; what was suggested, up to index ``until``."""
    suggested = []
    while until is None or first + len(suggested) < until:
        trial_id = f"t{first + len(suggested)}"
        config = searcher.suggest(trial_id)
        if config == SpaceSearcher.FINISHED:
            break
        suggested.append(config)
        # every third one is stopped early
        finish(searcher, trial_id, config, epochs=2 if config["index"] % 3 == 2 else 4)
    return suggested


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_baselines_first_then_samples_then_finished(load, sampler):
    search = load(SPACE, f"searcher.name={sampler}")
    searcher = SpaceSearcher(search)
    configs = run(searcher)
    assert searcher.total_trials == len(configs) == 6
    assert [config["baseline"] for config in configs] == ["paper", "equal"] + [None] * 4
    assert [config["index"] for config in configs] == list(range(6))
    assert configs[0] == {
        "params": {"k1": 0.1, "objective.features": "natural"},
        "overrides": {"objective.features": "natural", "objective.preference": [0.1, 0.9]},
        "baseline": "paper",
        "index": 0,
    }
    assert len({config["params"]["k1"] for config in configs}) == 6
    for config in configs:
        assert type(config["params"]["k1"]) is float
        assert type(config["params"]["objective.features"]) is str
        assert all(type(k) is float for k in config["overrides"]["objective.preference"])
        search.trial_config(config["params"])
    assert searcher.suggest("more") == SpaceSearcher.FINISHED
    assert len(states(searcher)) == 6


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_point_is_crossed_with_the_grid(load, sampler):
    configs = run(SpaceSearcher(load(CROSSED, f"searcher.name={sampler}")))
    assert len(configs) == 12
    pairs = [configs[i : i + 2] for i in range(0, 12, 2)]
    for left, right in pairs:
        assert [left["params"]["seed"], right["params"]["seed"]] == [0, 1]
        assert {**left["params"], "seed": 1} == right["params"]
        assert left["baseline"] == right["baseline"]
    assert [left["baseline"] for left, _ in pairs] == ["paper", "equal"] + [None] * 4
    assert len({left["params"]["k1"] for left, _ in pairs}) == 6


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_same_trials_other_seed_others(load, sampler):
    def points(seed):
        searcher = SpaceSearcher(load(SPACE, f"searcher.name={sampler}", f"seed={seed}"))
        return [config["params"]["k1"] for config in run(searcher)]

    assert points(3) == points(3)
    assert points(3)[2:] != points(4)[2:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_conditional_parameters_reach_the_study_only_when_active(load, sampler):
    search = load(CONDITIONAL, f"searcher.name={sampler}", "num_trials=24")
    searcher = SpaceSearcher(search)
    configs = run(searcher)
    kinds = [config["params"]["objective.accuracy"] for config in configs]
    assert {"trades", "loat"} == set(kinds)
    for config, kind, trial in zip(configs, kinds, searcher._study.get_trials(), strict=True):
        assert ("objective.loat_theta" in config["params"]) == (kind == "loat")
        assert trial.params == config["params"]


@pytest.mark.parametrize("sampler", ["quasi_random", "tpe", "nsga2", "nsga3"])
def test_first_points_are_a_sobol_sequence_whenever_trials_end(load, sampler):
    search = load(SPACE, f"searcher.name={sampler}", "num_trials=10")
    one, other = SpaceSearcher(search), SpaceSearcher(search)
    at_once = [other.suggest(f"t{i}") for i in range(10)]
    assert run(one) == at_once
    points = sorted(config["params"]["k1"] for config in at_once[2:])
    # eight points of a Sobol sequence: one in each eighth
    assert [int(8 * point) for point in points] == list(range(8))


@pytest.mark.parametrize(
    "setting", ["tpe searcher.startup_trials=4", "nsga2 searcher.population_size=4"]
)
def test_after_its_start_a_learner_leaves_the_sequence(load, setting):
    name, option = setting.split()
    points = {}
    for sampler in (name, "quasi_random"):
        options = [f"searcher.name={sampler}", "num_trials=10"]
        search = load(SPACE, *options, *([option] if sampler == name else []))
        points[sampler] = [config["params"]["k1"] for config in run(SpaceSearcher(search))]
    assert points[name][:4] == points["quasi_random"][:4]  # the baselines are among them
    assert points[name][4:] != points["quasi_random"][4:]


def test_baselines_and_grid_repetitions_are_members_of_the_first_generation(load):
    options = ["searcher.name=nsga2", "searcher.population_size=6"]
    searcher = SpaceSearcher(load(CROSSED, *options))
    run(searcher)
    sampler = searcher._study.sampler.learner
    generations = [sampler.get_trial_generation(searcher._study, t) for t in searcher._study.trials]
    assert generations == [0] * 6 + [1] * 6


def test_grid_enumerates(load):
    text = """
parameters:
  objective.accuracy: {type: choice, values: [trades, at]}
  seed: {type: grid, values: [0, 1]}
baselines: {paper: {}}
"""
    searcher = SpaceSearcher(load(text, "searcher.name=grid", "num_trials=9"))
    configs = run(searcher)
    assert searcher.total_trials == 4
    assert [tuple(config["params"].values()) for config in configs] == [
        ("trades", 0),
        ("trades", 1),
        ("at", 0),
        ("at", 1),
    ]
    assert [config["baseline"] for config in configs] == ["paper", "paper", None, None]


def test_tpe_learns(load):
    searcher = SpaceSearcher(load(SPACE, "num_trials=60", "searcher.startup_trials=8"))
    points = [config["params"]["k1"] for config in run(searcher)]
    late = points[-20:]
    by_chance = (0.8**2 + 0.2**2) / 2  # mean distance of a uniform draw to the best point
    assert sum(abs(point - 0.8) for point in late) / len(late) < by_chance / 2


def complete(searcher, result, error=False, intermediate=()):
    searcher.suggest("t")
    for epoch, value in enumerate(intermediate, 1):
        result_before = {"robust_accuracy": value, "epoch": epoch, "num_epochs": 4}
        searcher.on_trial_result("t", result_before)
    searcher.on_trial_complete("t", result, error=error)
    return searcher._study.get_trials()[0]


def last(**changes):
    return {"robust_accuracy": 0.5, "epoch": 4, "num_epochs": 4, **changes}


def test_complete_trial_carries_the_objective(load):
    trial = complete(SpaceSearcher(load(SPACE)), last(), intermediate=[0.1, 0.2, 0.3])
    assert (trial.state, trial.value, trial.constraints) == (TrialState.COMPLETE, 0.5, {})


def test_early_stopped_trial_is_told_as_unfinished_with_what_it_reached(load):
    trial = complete(SpaceSearcher(load(SPACE)), last(epoch=2, robust_accuracy=0.7), False, [0.1])
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.7)
    assert trial.constraints == {UNFINISHED: pytest.approx(1 + 1 / 2.7)}


def test_stopped_without_a_last_measurement(load):
    """Tune may stop a paused trial with no result at all, or between two measurements."""
    trial = complete(SpaceSearcher(load(SPACE)), None, intermediate=[0.1])
    assert (trial.value, trial.constraints) == (0.1, {UNFINISHED: pytest.approx(1 + 1 / 1.1)})
    result = last(epoch=3, robust_accuracy=None)
    trial = complete(SpaceSearcher(load(SPACE)), result, intermediate=[0.1, 0.2])
    assert (trial.value, trial.constraints) == (0.2, {UNFINISHED: pytest.approx(1 + 1 / 2.2)})


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (None, True),
        (last(), True),
        (None, False),
        ({}, False),
        (last(diverged=True), False),
        (last(diverged=True, epoch=2), False),
        (last(robust_accuracy=math.nan), False),
        (last(robust_accuracy=math.inf, epoch=2), False),
        (last(robust_accuracy=None), False),
        ({"epoch": 4, "num_epochs": 4}, False),
    ],
)
def test_failed_trials_are_told_so_and_never_left_running(load, result, error):
    trial = complete(SpaceSearcher(load(SPACE)), result, error)
    assert trial.state is TrialState.FAIL
    assert trial.value is None


def ranking(searcher):
    """The trials' numbers, the best in TPE's eyes first."""
    trials = searcher._study.get_trials()
    order = []
    for count in range(1, len(trials) + 1):
        below, _ = tpe._split_trials(searcher._study, trials, count)
        order += [trial.number for trial in below if trial.number not in order]
    return order


def test_rungs_do_not_compete_in_the_model(load):
    """A trial stopped at epoch 1 with a high number ranks below one that got further."""
    searcher = SpaceSearcher(load(SPACE, "num_trials=9"))
    ends = [(1, 0.99), (3, 0.01), (4, 0.0), (3, 0.02), (4, 0.1)]
    for number, (epoch, value) in enumerate(ends):
        searcher.suggest(str(number))
        searcher.on_trial_complete(str(number), last(epoch=epoch, robust_accuracy=value))
    assert ranking(searcher) == [4, 2, 3, 1, 0]


def test_out_of_patience_before_the_last_rung_is_not_compared_with_its_numbers(load):
    """A number of the cheap rung may look better than any on the last one."""
    searcher = SpaceSearcher(load(SPACE + "ladder: {rungs: [{num_steps: 1}, {epoch: 3}]}\n"))
    searcher.suggest("early")
    searcher.on_trial_complete("early", last(epoch=2, robust_accuracy=0.99, stopped_early=1.0))
    searcher.suggest("late")
    searcher.on_trial_complete("late", last(epoch=3, robust_accuracy=0.1, stopped_early=1.0))
    assert ranking(searcher) == [1, 0]
    assert searcher._study.get_trials()[1].constraints == {}


def test_a_second_end_and_late_results_change_nothing(load):
    searcher = SpaceSearcher(load(SPACE))
    trial = complete(searcher, last())
    searcher.on_trial_complete("t", last(robust_accuracy=0.9))
    searcher.on_trial_result("t", last(robust_accuracy=0.9))
    searcher.on_trial_complete("never suggested", last())
    assert searcher._study.get_trials() == [trial]


def test_a_trial_that_reports_that_it_failed_for_good_has_failed(load):
    """Its worst accuracies stand in for numbers that Tune insists on: nobody measured them."""
    searcher = SpaceSearcher(load(SPACE))
    report = {"epoch": 0, "robust_accuracy": 0.0, "failed": "MorelError: no"}
    trial = complete(searcher, report, intermediate=[0.1])
    assert (trial.state, trial.value) == (TrialState.FAIL, None)


def test_a_crashed_trial_that_runs_again_counts_anew(load):
    searcher = SpaceSearcher(load(SPACE))
    crashed = complete(searcher, None, error=True, intermediate=[0.1])
    searcher.on_trial_complete("t", None, error=True)
    searcher.on_trial_result("t", last(epoch=1, robust_accuracy=0.2))
    searcher.on_trial_complete("t", last())
    again = searcher._study.get_trials()[1]
    assert states(searcher) == [TrialState.FAIL, TrialState.COMPLETE]
    assert (again.value, again.params) == (0.5, crashed.params)
    assert searcher.suggest("next")["index"] == 1


def test_epochs_repeated_after_a_restart_are_ignored(load):
    searcher = SpaceSearcher(load(SPACE))
    searcher.suggest("t")
    for epoch, value in ((1, 0.1), (2, 0.2), (1, 0.15), (2, 0.25), (3, 0.3)):
        searcher.on_trial_result("t", last(epoch=epoch, robust_accuracy=value))
    searcher.on_trial_complete("t", last(epoch=3, robust_accuracy=0.35))
    assert searcher._study.get_trials()[0].value == 0.3


def test_clean_accuracy_as_the_objective(load):
    searcher = SpaceSearcher(load(SPACE, "objective.metric=clean_accuracy"))
    assert (searcher.metric, searcher.mode) == ("clean_accuracy", "max")
    assert searcher._study.direction is optuna.study.StudyDirection.MAXIMIZE


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cut", [1, 5, 6])
def test_restored_search_goes_on_as_if_nothing_had_happened(load, tmp_path, sampler, cut):
    """``cut`` 5 lies between the two halves of a crossed point, with a trial still running."""
    search = load(CROSSED, f"searcher.name={sampler}")
    path = str(tmp_path / "state.pkl")
    whole = SpaceSearcher(search)
    before = run(whole, until=cut)
    running = whole.suggest("running")
    whole.on_trial_result("running", last(epoch=1))
    whole.save(path)
    expected = run(whole, first=cut + 1)

    restored = SpaceSearcher(search)
    restored.restore(path)
    after = run(restored, first=cut + 1)
    assert after == expected
    indices = [config["index"] for config in [*before, running, *after]]
    assert indices == list(range(12))
    assert states(restored).count(TrialState.RUNNING) == 1
    finish(restored, "running", running)
    assert TrialState.RUNNING not in states(restored)
    assert restored.suggest("more") == SpaceSearcher.FINISHED


def test_state_through_tunes_own_wrappers(load, tmp_path):
    """Tune wraps searchers in a generator and a limiter, and saves them into a folder."""

    def wrapped():
        searcher = SpaceSearcher(load(SPACE))
        return searcher, SearchGenerator(ConcurrencyLimiter(searcher, max_concurrent=2))

    searcher, generator = wrapped()
    assert not generator.set_search_properties("robust_accuracy", "max", {})
    limiter = generator.searcher
    first, second = limiter.suggest("a"), limiter.suggest("b")
    assert limiter.suggest("c") is None
    finish(limiter, "a", first)
    generator.save_to_dir(str(tmp_path), "session")

    restored, generator = wrapped()
    generator.restore_from_dir(str(tmp_path))
    limiter = generator.searcher
    third = limiter.suggest("c")
    assert [first["index"], second["index"], third["index"]] == [0, 1, 2]
    assert third == searcher.suggest("c")
    finish(limiter, "b", second)
    assert states(restored) == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]


def test_a_point_without_a_value_is_proposed_with_the_reason(load):
    """Its bounds have one, so the search was taken; the point costs its own trial alone."""
    text = """
parameters:
  a: {type: int, low: 1, high: 3}
  objective.alpha: {type: derived, expression: "1 / (a - 2) ** 2"}
baselines: {paper: {a: 1}}
"""
    searcher = SpaceSearcher(load(text, "num_trials=12", "searcher.name=random"))
    proposed = [searcher.suggest(f"t{number}") for number in range(12)]
    impossible = [config for config in proposed if IMPOSSIBLE in config]
    assert 0 < len(impossible) < 12
    for config in proposed:
        assert (IMPOSSIBLE in config) == (config["params"]["a"] == 2)
    assert "objective.alpha = '1 / (a - 2) ** 2': " in impossible[0][IMPOSSIBLE]
    assert impossible[0]["overrides"] == {}
