"""Every mistake in a search file is one line: file, key, value, what is allowed."""

import pytest
from search_files import ALPHA

from morel_core.errors import ConfigError, MorelError
from orchestrator.search.space import load_search

PAPER = "baselines: {paper: {}}\n"


def parameters(*lines: str, baselines: str = PAPER) -> str:
    return "parameters:\n" + "".join(f"  {line}\n" for line in lines) + baselines


THETA = "objective.loat_theta: {type: float, low: 0, high: 1, when: {objective.accuracy: loat}}"
TRUNK = "objective.alpha: {type: float, low: 1.0e-6, high: 1, log: true}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown keys, anywhere
        (ALPHA + "num_trails: 3", "num_trails = 3: unknown key; did you mean 'num_trials'?"),
        (ALPHA + "searcher: {nam: tpe}", "searcher.nam = 'tpe': unknown key; did you mean 'name'?"),
        (ALPHA + "objective: {metrik: x}", "objective.metrik = 'x': unknown key; did you mean"),
        (
            parameters("objective.alpha: {type: float, low: 0, hihg: 1}"),
            "parameters.objective.alpha = {'low': 0, 'hihg': 1}: type float also needs high",
        ),
        (
            parameters("objective.alpha: {type: float, low: 0, high: 1, logg: true}"),
            "parameters.objective.alpha.logg = True: unknown key; did you mean 'log'?",
        ),
        (
            parameters("objective.alpha: {type: flaot, low: 0, high: 1}"),
            "parameters.objective.alpha.type = 'flaot': did you mean 'float'? known: float, int",
        ),
        (
            parameters("objective.alpha: {low: 0, high: 1}"),
            "parameters.objective.alpha.type = None: known: float, int, choice, grid, derived",
        ),
        (
            parameters("objective.alhpa: {type: float, low: 0, high: 1}"),
            "parameters = 'objective.alhpa': not a setting of recipe runs; did you mean"
            " 'objective.alpha'?",
        ),
        (
            parameters("objectiv.alpha: {type: float, low: 0, high: 1}"),
            "did you mean 'objective.alpha'?",
        ),
        (
            parameters("attack: {type: choice, values: [a]}"),
            "parameters = 'attack': neither a setting (they have a dot: objective.alpha) nor read",
        ),
        (parameters("objective.alpha: 3"), "parameters.objective.alpha = 3: must be a section"),
        # ranges
        (
            parameters("objective.alpha: {type: float, low: 1, high: 1}"),
            "parameters.objective.alpha.low = 1.0: must be below high = 1.0",
        ),
        (
            parameters("objective.alpha: {type: float, low: 0, high: 1, log: true}"),
            "parameters.objective.alpha.low = 0.0: must be > 0 with log: true",
        ),
        (
            parameters("attack.num_steps: {type: int, low: 0, high: 5, log: true}"),
            "parameters.attack.num_steps.low = 0: must be > 0 with log: true",
        ),
        (
            parameters("attack.num_steps: {type: int, low: 1.5, high: 5}"),
            "parameters.attack.num_steps.low = 1.5: Value '1.5' of type 'float'",
        ),
        (
            parameters("attack.num_steps: {type: int, low: 1, high: 6, step: 2}"),
            "parameters.attack.num_steps.high = 6: not reached by whole steps from low; the last",
        ),
        (
            parameters("objective.alpha: {type: float, low: 0.1, high: 1, step: 0.1, log: true}"),
            "parameters.objective.alpha.step = 0.1: not with log: true",
        ),
        (
            parameters("objective.features: {type: choice, values: []}"),
            "parameters.objective.features.values = []: at least one value",
        ),
        (
            parameters("objective.features: {type: choice, values: [both, both]}"),
            "parameters.objective.features.values = 'both': listed more than once",
        ),
        (
            parameters("objective.preference: {type: choice, values: [[0.1, 0.9]]}"),
            "parameters.objective.preference.values = [0.1, 0.9]: numbers, words, true, false",
        ),
        # the run's own checks speak, whatever the way from the parameter to the setting
        (
            parameters("attack.eps: {type: float, low: 0.05, high: 8}"),
            "parameters.attack.eps.high = 8.0: must be in (0, 1]; images lie in [0, 1], so 8/255",
        ),
        (
            parameters(
                "k1: {type: float, low: 0, high: 1.5}",
                'objective.preference: {type: derived, expression: "[k1, 1 - k1]"}',
                baselines="baselines: {paper: {k1: 0.1}}",
            ),
            "parameters.k1.high = 1.5: gives objective.preference = [1.5, -0.5]: two weights",
        ),
        (
            parameters("attack.eps: {type: float, low: 0.001, high: 0.1}"),
            "parameters.attack.eps.low = 0.001: gives attack.step_size = 0.025: must be at most",
        ),
        (
            parameters("objective.features: {type: choice, values: [natural, bith]}"),
            "parameters.objective.features.values = 'bith': Invalid value 'bith', expected one of",
        ),
        (
            parameters(TRUNK, "objective.accuracy: {type: grid, values: [trades, mrat]}"),
            "parameters.objective.accuracy.values = 'mrat': Invalid value 'mrat', expected one of",
        ),
        (
            parameters(
                "objective.accuracy: {type: choice, values: [trades, loat]}",
                THETA.replace("theta", "thta"),
            ),
            "parameters.objective.loat_thta.low = 0.0: unknown key; did you mean 'loat_theta'?",
        ),
        (
            # each bound is fine with the recipe's other values; together they are not
            parameters(
                "attack.eps: {type: float, low: 0.02, high: 0.2}",
                "attack.step_size: {type: float, low: 0.01, high: 0.1}",
            ),
            "parameters = 'eps=0.02 step_size=0.1': gives attack.step_size = 0.1: must be at most",
        ),
        # what must be the same for every trial
        *(
            (
                parameters(f"{key}: {{type: choice, values: [1, 2]}}"),
                f"parameters = '{key}': what selects must be the same for every trial",
            )
            for key in ("evaluation.attack.eps", "data.holdout", "data.split_seed", "data.name")
        ),
        *(
            (
                parameters(f"{key}: {{type: choice, values: [a, b]}}"),
                f"parameters = '{key}': is not searched",
            )
            for key in ("tracking.uri", "storage_path", "name", "cluster.address")
        ),
        (
            parameters("scaling.num_workers: {type: int, low: 1, high: 2}"),
            "parameters = 'scaling.num_workers': is not searched: resources: sets the workers",
        ),
        # helper variables, expressions, conditions
        (
            parameters("k1: {type: float, low: 0, high: 1}", TRUNK),
            "parameters = 'k1': neither a setting",
        ),
        (
            parameters('objective.alpha: {type: derived, expression: "k3"}', "k1: {type: float}"),
            "parameters.k1 = {}: type float also needs low, high",
        ),
        (
            parameters(
                'objective.alpha: {type: derived, expression: "2 * k2"}',
                "k1: {type: float, low: 0, high: 1}",
            ),
            "parameters.objective.alpha.expression = '2 * k2': unknown name 'k2'; known: k1",
        ),
        (
            parameters('objective.alpha: {type: derived, expression: "open(1)"}'),
            "parameters.objective.alpha.expression = 'open(1)': 'open(1)' is not allowed; allowed:",
        ),
        (
            parameters(
                'objective.alpha: {type: derived, expression: "objective.beta"}',
                'objective.beta: {type: derived, expression: "objective.alpha"}',
            ),
            "depend on each other in a circle",
        ),
        (
            parameters(
                "k1: {type: int, low: 0, high: 3}",
                'objective.alpha: {type: derived, expression: "1 / k1"}',
                baselines="baselines: {paper: {k1: 1}}",
            ),
            "parameters.k1.low = 0: gives objective.alpha = '1 / k1': division by zero",
        ),
        (
            parameters(
                TRUNK,
                "objective.accuracy: {type: choice, values: [trades, loat]}",
                "k1: {type: float, low: 0, high: 1, when: {objective.accuracy: loat}}",
                'objective.loat_theta: {type: derived, expression: "k1"}',
            ),
            "expression = 'k1': k1 is conditional, so it may have no value",
        ),
        (
            parameters(TRUNK, "seed: {type: grid, values: [1], when: {objective.alpha: 1}}"),
            "parameters.seed.when = {'objective.alpha': 1}: a grid is crossed with every point",
        ),
        (
            parameters(TRUNK, "objective.beta: {type: float, low: 0, high: 1, when: {k1: 1}}"),
            "parameters.objective.beta.when.k1 = 1: depends on an int, choice or grid parameter;",
        ),
        (
            parameters(
                "objective.accuracy: {type: choice, values: [trades, loat]}",
                "objective.beta: {type: float, low: 0, high: 9, when: {objective.accuracy: lota}}",
            ),
            "parameters.objective.beta.when.objective.accuracy = 'lota': objective.accuracy is one",
        ),
        # baselines
        (
            parameters(TRUNK, baselines=""),
            "baselines = []: must hold 'paper', the published setting",
        ),
        (
            parameters(TRUNK, baselines="baselines: {paper: {objective.alhpa: 0.1}}"),
            "baselines.paper.objective.alhpa = 0.1: not a parameter; did you mean 'objective.al",
        ),
        (
            parameters(TRUNK, baselines="baselines: {paper: {objective.alpha: 2}}"),
            "baselines.paper.objective.alpha = 2: must be from 1e-06 to 1",
        ),
        (
            parameters(
                "objective.features: {type: choice, values: [natural, both]}",
                baselines="baselines: {paper: {objective.features: bath}}",
            ),
            "baselines.paper.objective.features = 'bath': must be one of ['natural', 'both']",
        ),
        (
            parameters(
                "k1: {type: float, low: 0, high: 1}",
                'objective.preference: {type: derived, expression: "[k1, 1 - k1]"}',
                baselines="baselines: {paper: {objective.preference: [0.1, 0.9]}}",
            ),
            "baselines.paper.objective.preference = [0.1, 0.9]: is computed from '[k1, 1 - k1]'",
        ),
        (
            parameters(
                "k1: {type: float, low: 0, high: 1}",
                'objective.preference: {type: derived, expression: "[k1, 1 - k1]"}',
            ),
            "baselines.paper.k1 = None: give a value, from 0 to 1",
        ),
        (
            parameters("attack.eps: {type: float, low: 0.2, high: 0.5}"),
            "baselines.paper.attack.eps = 0.1: the recipe's value is outside the search",
        ),
        (
            parameters(TRUNK, "seed: {type: grid, values: [0, 1]}", baselines="")
            + "baselines: {paper: {seed: 0}}",
            "baselines.paper.seed = 0: is a grid parameter, crossed with every baseline: leave",
        ),
        (
            parameters(
                "objective.accuracy: {type: choice, values: [trades, loat]}",
                THETA,
                baselines="baselines: {paper: {objective.loat_theta: 0.5}}",
            ),
            "baselines.paper.objective.loat_theta = 0.5: has no effect: it needs",
        ),
        # the search itself
        (ALPHA + "objective: {metric: loss}", "objective.metric = 'loss': Invalid value 'loss'"),
        (
            ALPHA + "objective: {mode: max}",
            "objective.mode = 'max': unknown key",
        ),
        (ALPHA + "searcher: {name: bayes}", "searcher.name = 'bayes': Invalid value 'bayes'"),
        (
            ALPHA + "searcher: {name: random, startup_trials: 3}",
            "searcher.startup_trials = 3: only with name: tpe, not random",
        ),
        (
            ALPHA + "searcher: {name: grid}",
            "parameters.objective.alpha = 'from 1e-06 to 1': searcher grid tries every value",
        ),
        (ALPHA + "budget: {wall_time_s: 0}", "budget.wall_time_s = 0.0: null or > 0"),
        (
            ALPHA + "budget: {target: 90}",
            "budget.target = 90.0: accuracies are in [0, 1]: 90 % is written 0.9",
        ),
        (
            ALPHA + "objective: {constraints: [train_seconds <= 90, clean_accuracy >= 90]}",
            "objective.constraints = 'clean_accuracy >= 90': accuracies are in [0, 1]: 90 % is wr",
        ),
        (ALPHA + "max_concurrent: 0", "max_concurrent = 0: null or >= 1"),
        (ALPHA + "resources: {workers: 0}", "resources.workers = 0: must be >= 1"),
        (ALPHA + "resources: {cpus_per_worker: 0}", "resources.cpus_per_worker = 0: must be >= 1"),
        (
            ALPHA + "resources: {gpus_per_worker: -1}",
            "resources.gpus_per_worker = -1.0: must be >= 0",
        ),
        (
            ALPHA + "recipe: digtis",
            "'digtis' is neither a file nor a known name: did you mean 'digits'",
        ),
        (
            ALPHA + "overrides: {objective.alpha: 0.1}",
            "overrides.objective.alpha = 0.1: ",
        ),
        (ALPHA + "overrides: {training.epochs: 0}", "overrides.training.epochs = 0: must be >= 1"),
        (ALPHA + "overrides: {scaling.num_workers: 2}", "set by resources.workers"),
        (
            ALPHA + "description: ${oc.env:PATH}",
            "${oc.env:PATH}: a config may read HOME, USER",
        ),
    ],
)
def test_one_line_with_file_key_value_and_what_is_allowed(load, search_file, text, message):
    with pytest.raises(MorelError) as caught:
        load(text, head="scheduler: {name: none}\n")
    said = str(caught.value)
    assert said.startswith(f"{search_file}: "), said
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("num_trials: 0\n", "num_trials = 0: must be >= 1"),
        ("scheduler: {name: asha, grace_period: 0}\n", "scheduler.grace_period = 0: must be >= 1"),
        (
            "scheduler: {name: asha, grace_period: 50}\n",
            "scheduler.grace_period = 50: at most training.epochs = 12",
        ),
        (
            "scheduler: {name: asha, reduction_factor: 1}\n",
            "scheduler.reduction_factor = 1: must be >= 2",
        ),
        (
            "scheduler: {name: median, reduction_factor: 2}\n",
            "scheduler.reduction_factor = 2: only with name: asha, hyperband, pareto, not median",
        ),
        (
            "scheduler: {name: none, grace_period: 2}\n",
            "scheduler.grace_period = 2: only with name: asha, hyperband, pareto, median, not none",
        ),
    ],
)
def test_schedule(load, head, message):
    with pytest.raises(ConfigError) as caught:
        load(head=head)
    assert message in str(caught.value)


def test_fewer_trials_than_baselines(load):
    text = parameters(TRUNK, baselines="baselines: {paper: {}, other: {objective.alpha: 0.1}}\n")
    with pytest.raises(
        ConfigError, match=r"num_trials = 1: at least the 2 baselines \(paper, other"
    ):
        load(text, "num_trials=1")


def test_nothing_left_to_sample(load):
    text = parameters("seed: {type: grid, values: [0, 1]}")
    assert load(text, "num_trials=1").total_trials == 2
    with pytest.raises(
        ConfigError, match="num_trials = 6: nothing is sampled after the 1 baselines"
    ):
        load(text)


def test_trials_of_different_lengths_are_not_compared(load):
    text = parameters("training.epochs: {type: int, low: 2, high: 12}")
    with pytest.raises(ConfigError, match=r"parameters = 'training\.epochs': is not sea"):
        load(text)


def test_hours_of_gpus_that_nobody_uses(load):
    with pytest.raises(ConfigError, match=r"budget\.gpu_hours = 1\.0: nothing here spends any"):
        load(ALPHA, "budget.gpu_hours=1")
    assert load(ALPHA, "budget.gpu_hours=1", "resources.gpus_per_worker=0.5").budget.gpu_hours == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_trials=0", "command line: num_trials = 0: must be >= 1"),
        ("num_trials=many", "command line: num_trials = 'many': Value 'many'"),
        ("parameters.objective.alpha.high=0", "must be below high = 0"),
        ("parameters.objective.alhpa.high=1", "parameters = 'objective.alhpa': did you mean"),
        ("parameters.objective.alpha.hihg=1", "hihg = 1: unknown key; did you mean 'high'?"),
        ("baselines.paper.objective.alpha=7", "command line: baselines.paper.objective.alpha = 7"),
        ("objective.alpha=0.1", "command line: objective.alpha = 0.1: "),
        ("attack.eps=8", "attack.eps = 8.0: must be in (0, 1]"),
        ("scaling.num_workers=2", "the workers of a trial are set by resources.workers"),
        ("scheduler.grace_period=2", "only with name: asha, hyperband, pareto, median, not none"),
        ("num_trials", "write key=value"),
    ],
)
def test_mistakes_on_the_command_line(load, override, message):
    with pytest.raises(MorelError) as caught:
        load(ALPHA, override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_searched_settings_cannot_also_be_fixed(load):
    with pytest.raises(ConfigError, match=r"searches over it: narrow parameters.objective.alpha"):
        load(ALPHA, "objective.alpha=0.1")


def test_unknown_search():
    with pytest.raises(MorelError, match=r"search space 'dmeo' is neither .* did you mean 'demo'"):
        load_search("dmeo")


RUNGS = "ladder: {rungs: [{epoch: 1, num_steps: 5, num_images: 50}, {epoch: 3}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ladder: {rung: []}", "ladder.rung = []: unknown key; did you mean 'rungs'?"),
        ("ladder: {rungs: 3}", "ladder.rungs = 3: must be a list of sections"),
        ("ladder: {rungs: [3]}", "ladder.rungs[0] = 3: must be a section with keys of its own"),
        (
            "ladder: {rungs: [{epochs: 1}]}",
            "ladder.rungs[0].epochs = 1: unknown key; did you mean 'epoch'?",
        ),
        ("ladder: {rungs: [{epoch: 0}]}", "ladder.rungs[0].epoch = 0: an epoch counted from 1"),
        ("ladder: {rungs: [{epoch: 2}]}", "ladder.rungs[0].epoch = 2: 1 for the first"),
        (
            "ladder: {rungs: [{num_steps: 5}, {epoch: 9}]}",
            "ladder.rungs[1].epoch = 9: at most training.epochs = 4",
        ),
        (
            "ladder: {rungs: [{num_images: 301}]}",
            "ladder.rungs[0].num_images = 301: at most data.holdout = 300",
        ),
        ("ladder: {verify: {top: -1}}", "ladder.verify.top = -1: 0 (off) or a number of"),
        (
            "ladder: {verify: {attacks: [square]}}",
            "ladder.verify.attacks = ['square']: only with top >= 1",
        ),
        (
            "ladder: {verify: {top: 1, attacks: [squares]}}",
            "ladder.verify.attacks = 'squares': attack 'squares' is unknown; known:",
        ),
        (
            "ladder: {verify: {top: 1, num_images: 301}}",
            "ladder.verify.num_images = 301: at most data.holdout = 300",
        ),
    ],
)
def test_mistakes_in_a_ladder(load, text, message):
    with pytest.raises(MorelError) as caught:
        load(ALPHA + text)
    assert message in str(caught.value)
    assert "mine.yaml: ladder." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_ladder_refuses_the_median_rule(load):
    head = "recipe: digits\noverrides: {training.epochs: 4}\nscheduler: {name: median}\n"
    load(ALPHA, head=head)
    with pytest.raises(ConfigError, match=r"median.: asha, hyperband, pareto or none with"):
        load(ALPHA + RUNGS + "}", head=head)


def test_with_a_ladder_asha_compares_measured_epochs_only(load):
    head = "recipe: digits\noverrides: {training.epochs: 8, evaluation.every: %d}\n"
    scheduler = "scheduler: {name: asha, grace_period: 2, reduction_factor: 2}\n"
    load(ALPHA + RUNGS + "}", head=head % 2 + scheduler)
    with pytest.raises(ConfigError, match=r"scheduler.grace_period = 2: .* of which 2 is one"):
        load(ALPHA + RUNGS + "}", head=head % 4 + scheduler)


def test_a_search_measures_as_it_goes(load):
    with pytest.raises(ConfigError, match=r"evaluation.asynchronous = True: false in a search"):
        load(ALPHA, "evaluation.asynchronous=true")
