"""Campaign files: the same terms for every method, and what is wrong said in one line."""

import pytest
from campaign_files import content

from morel_core.errors import ConfigError, MorelError
from orchestrator.campaign.definition import load_campaign, plan
from orchestrator.search.space import load_search
from orchestrator.validate import validate

TUNING = content()["tuning"]
PARAMETERS = TUNING["parameters"]


def tuning(**keys):
    return {**TUNING, **keys}


def parameters(**entries):
    return tuning(parameters={**PARAMETERS, **entries})


# --- the searches --------------------------------------------------------------------------------


def test_each_method_has_a_search_of_its_own(load):
    campaign = load("name=mine", "training.epochs=3", "tuning.seed=7")
    assert list(campaign.searches) == ["plain", "morel"]
    for method, search in campaign.searches.items():
        assert search.base.name == f"mine-{method}"
        assert search.parent == "mine"
        assert search.tags["morel.campaign"] == "mine"
        assert search.tags["morel.method"] == method
        assert (search.total_trials, search.seed, search.base.seed) == (2, 7, 7)
        assert search.base.training.epochs == 3
        assert search.final.trials == "none"  # tuning leaves the test set alone
    assert [s.base.objective.morel for s in campaign.searches.values()] == [False, True]


def test_a_method_searches_over_what_it_reads(load):
    campaign = load()
    assert list(campaign.searches["plain"].space.sampled) == ["optimizer.lr"]
    sampled = campaign.searches["morel"].space.sampled
    assert list(sampled) == ["optimizer.lr", "objective.alpha"]
    assert sampled["objective.alpha"].when == {}  # it holds: nothing is left to decide
    assert campaign.searches["morel"].space.baselines["paper"]["objective.alpha"] == 1e-5


def test_a_method_does_not_search_over_what_it_sets(load):
    methods = {"heavy": {"objective.alpha": 1.0}, "morel": {}}
    campaign = load(methods=methods, pairs={"heavy": "morel"})
    assert "objective.alpha" not in campaign.searches["heavy"].space.parameters
    assert campaign.searches["heavy"].base.objective.alpha == 1.0
    assert "objective.alpha" in campaign.searches["morel"].space.parameters


def test_with_a_parameter_go_those_that_depend_on_it(load):
    weights = {
        "k1": {"type": "float", "low": 0.0, "high": 0.5, "when": {"objective.morel": True}},
        "objective.preference": {"type": "derived", "expression": "[k1, 1 - k1]"},
        "objective.scalarisation": {
            "type": "choice", "values": ["weighted_sum", "smooth_chebyshev"],
            "when": {"objective.morel": True},
        },
        "objective.mu": {
            "type": "float", "low": 0.01, "high": 1.0,
            "when": {"objective.scalarisation": "smooth_chebyshev"},
        },
    }  # fmt: skip
    campaign = load(tuning=parameters(**weights) | {"baselines": {"paper": {"k1": 0.1}}})
    plain, morel = campaign.searches["plain"].space, campaign.searches["morel"].space
    assert list(plain.parameters) == ["optimizer.lr"]
    assert set(weights) <= set(morel.parameters)
    # A condition on what is searched itself stays with the search.
    assert morel.sampled["objective.mu"].when == {"objective.scalarisation": "smooth_chebyshev"}
    assert "k1" not in plain.baselines["paper"]
    assert morel.baselines["paper"]["k1"] == 0.1


def test_helpers_that_nobody_reads_any_more_go_too(load):
    weights = {
        "k1": {"type": "float", "low": 0.0, "high": 0.5},
        "objective.preference": {"type": "derived", "expression": "[k1, 1 - k1]"},
    }
    methods = {"even": {"objective.preference": [0.5, 0.5]}, "morel": {}}
    campaign = load(
        methods=methods,
        pairs={"even": "morel"},
        tuning=parameters(**weights) | {"baselines": {"paper": {"k1": 0.1}}},
    )
    assert list(campaign.searches["even"].space.parameters) == ["optimizer.lr", "objective.alpha"]


def test_replicates_train_the_chosen_setting_with_every_seed(load):
    campaign = load("name=mine", "report_attacks=[fgsm]", "resources.cpus_per_worker=2")
    search = campaign.replicates("morel", {"optimizer.lr": 0.03, "objective.alpha": 0.5})
    planned = search.planned()
    assert search.total_trials == 3
    runs = [search.trial_config(params) for _, params in planned]
    assert [run.seed for run in runs] == [1, 2, 3]
    assert {(run.optimizer.lr, run.objective.alpha) for run in runs} == {(0.03, 0.5)}
    assert {run.name for run in runs} == {"mine-morel-seeds"}
    assert (search.final.trials, search.final.attacks) == ("all", ["pgd20", "fgsm"])
    assert (search.scheduler.name, search.ladder.verify.top, search.reuse) == ("none", 0, False)
    assert search.resources.cpus_per_worker == 2
    labels = [search.space.label_of(*point) for point in planned]
    assert labels == ["replicate seed=1", "replicate seed=2", "replicate seed=3"]


def test_without_parameters_nothing_is_tuned(load):
    campaign = load(tuning=None)
    assert not campaign.tuned
    assert plan(campaign)["trials"] == 0
    assert campaign.replicates("plain", {}).base.objective.morel is False


def test_the_plan_counts_what_would_run(load):
    planned = plan(load("training.epochs=4"))
    assert (planned["trials"], planned["replicates"]) == (4, 6)
    assert planned["epochs_at_most"] == 4 * 10
    assert planned["methods"]["morel"]["tuned"] == ["optimizer.lr", "objective.alpha"]
    assert planned["primary"] == "test.robust.pgd20_linf_0.1"


def test_clean_accuracy_can_be_primary(load):
    assert load("primary.metric=clean_accuracy").primary_metric == "test.clean"


# --- what is fixed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "seeds=[1,2]", "primary.attack=pgd10", "primary.metric=clean_accuracy",
        "report_attacks=[fgsm]", "methods.third.objective.alpha=0.1", "pairs.plain=morel",
        "methods.morel.objective.beta=5", "tuning.num_trials=3", "tuning.seed=9",
        "tuning.parameters.optimizer.lr.high=0.1", "training.epochs=3", "recipe=fashion_mnist",
        "tuning.objective.constraints=['clean_accuracy >= 0.5']",
    ],
)  # fmt: skip
def test_what_is_fixed_beforehand(load, override):
    assert load(override).fixed() != load().fixed()


def test_where_it_runs_is_not_fixed(load, tmp_path):
    elsewhere = ["name=other", f"storage_path={tmp_path}/there", "max_concurrent=1"]
    elsewhere += ["tracking.uri=http://h:1", "cluster.address=10.0.0.1:6379"]
    assert load(*elsewhere).fixed() == load().fixed()


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"methods": {"one": {}}}, r"methods = \['one'\]: at least two"),
        ({"methods": {"a b": {}, "plain": {}}}, r"methods = 'a b': letters"),
        ({"methods": {"plain": {}, "morel": {"objective.alfa": 1}}}, r"methods\.morel\.objective"),
        ({"methods": {"plain": 3, "morel": {}}}, r"methods\.plain = 3: must be a section"),
        ({"methods": {"plain": {"seed": 3}, "morel": {}}}, r"methods\.plain = 'seed'"),
        (
            {"methods": {"plain": {"training.epochs": 3}, "morel": {}}},
            r"methods\.plain = 'training\.epochs': the same for every method",
        ),
        (
            {"methods": {"plain": {"evaluation.attack.eps": 0.1}, "morel": {}}},
            r"methods\.plain = 'evaluation\.attack\.eps': what selects must be the same",
        ),
        ({"pairs": {}}, r"pairs = {}: at least one"),
        ({"pairs": {"morel": "plane"}}, r"pairs\.morel = 'plane': not a method; .*plain"),
        ({"pairs": {"morel": "morel"}}, r"pairs\.morel = 'morel': another method"),
        ({"seeds": [1]}, r"seeds = \[1\]: at least two"),
        ({"seeds": [1, 1]}, r"seeds = \[1, 1\]: at least two, all different"),
        ({"seeds": [0, 1]}, r"seeds = \[0, 1\]: without tuning\.seed = 0"),
        ({"primary": {"attack": "pgdd"}}, r"primary\.attack = 'pgdd': attack"),
        ({"primary": {"metric": "tradeoff"}}, r"primary\.metric = 'tradeoff'"),
        ({"report_attacks": ["pgd20"]}, r"report_attacks = .* not among them"),
        ({"tuning": tuning(warm_start=["old"])}, r"tuning\.warm_start = .*every method starts"),
        ({"tuning": tuning(recipe="digits")}, r"tuning\.recipe = 'digits': "),
        ({"tuning": tuning(budget={"target": 0.9})}, r"tuning\.budget\.target = 0\.9: null"),
        ({"tuning": tuning(budget={"cpu_hours": 1.0})}, r"tuning\.reuse = True: false with a"),
        ({"tuning": tuning(scheduler={"name": "pbt"})}, r"tuning\.scheduler\.name = 'pbt'"),
        ({"tuning": {"num_trials": 4}}, r"tuning\.num_trials = 4: nothing is tuned without"),
        ({"overrides": {"seed": 3}}, r"overrides\.seed = 3: the campaign's seeds"),
        (
            {"tuning": tuning(parameters={"objective.alpha": PARAMETERS["objective.alpha"]})},
            r"tuning\.parameters = \['objective\.alpha'\]: some that .*\(method plain\)",
        ),
        (
            {"tuning": parameters(**{"optimizer.lr": {"type": "float", "low": 1.0, "high": 0.1}})},
            r"tuning\.parameters\.optimizer\.lr\.low = 1\.0",
        ),
        (
            {"tuning": parameters(**{"optimizer.lr": {"type": "float", "low": 1, "high": 2}})},
            r"tuning\.baselines\.paper\.optimizer\.lr = 0\.1: .*\(method plain\)",
        ),
    ],
)  # fmt: skip
def test_mistakes(load, keys, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(**keys)
    assert "\n" not in str(caught.value)


def test_a_grid_must_not_give_one_method_more_trials(load):
    grid = {"type": "grid", "values": [1, 2]}
    methods = {"plain": {"objective.beta": 5.0}, "morel": {}}
    with pytest.raises(ConfigError, match=r"num_trials = 4: as many trials for every method"):
        load(methods=methods, tuning=parameters(**{"objective.beta": grid}))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.morel=true", r"command line: objective\.morel = True: methods\.\w+ sets it"),
        ("seed=3", r"command line: seed = 3: the campaign's seeds"),
        ("sedes=[1,2]", r"sedes = .*unknown key; did you mean .*seeds"),
        ("tuning.num_trails=3", r"command line: tuning\.num_trails = 3"),
        ("seeds=[5]", r"command line: seeds = \[5\]"),
    ],
)
def test_mistakes_on_the_command_line(load, override, message):
    with pytest.raises(ConfigError, match=message):
        load(override)


def test_a_campaign_is_no_search_and_a_search_no_campaign():
    with pytest.raises(MorelError, match="runs with morel campaign"):
        load_search("paper_comparison")
    with pytest.raises(MorelError, match="runs with morel tune"):
        load_campaign("smoke")


# --- the files that come along -------------------------------------------------------------------


def test_paper_comparison():
    campaign = load_campaign("paper_comparison")
    tuned = {m: set(search.space.sampled) for m, search in campaign.searches.items()}
    for method in ("trades", "mart", "loat", "at"):
        objective = campaign.searches[method].base.objective
        assert (objective.accuracy, objective.morel) == (method, False)
        assert campaign.searches[f"morel-{method}"].base.objective.accuracy == method
        assert campaign.pairs[f"morel-{method}"] == method
        # MOREL searches over its own two weights beside all that the plain method searches over.
        assert tuned[f"morel-{method}"] - tuned[method] == {"k1", "objective.alpha"}
        assert ("objective.beta" in tuned[method]) == (method != "at")
    assert len({search.total_trials for search in campaign.searches.values()}) == 1
    for search in campaign.searches.values():
        paper = search.trial_config(search.space.baselines["paper"])
        assert (paper.objective.beta, paper.objective.alpha) == (6.0, 1e-5)
        assert paper.objective.preference == pytest.approx((0.1, 0.9))


def test_paper_comparison_takes_the_papers_recipe():
    campaign = load_campaign(
        "paper_comparison",
        [
            *("recipe=cifar10_resnet18_large_batch", "tuning.parameters.optimizer.lr.low=0.003"),
            *("resources.gpus_per_worker=1", "report_attacks=[autoattack]"),
        ],
    )
    assert campaign.base.data.name == "cifar10"
    assert {s.resources.gpus_per_worker for s in campaign.searches.values()} == {1}


def test_ablation_changes_one_part_at_a_time():
    campaign = load_campaign("ablation")
    full = campaign.searches["full"].base
    assert (full.objective.morel, full.objective.alignment, full.model.attention) == (True,) * 3
    assert (full.objective.alpha, full.objective.features) == (1e-5, "natural")
    assert campaign.pairs == {m: "full" for m in campaign.methods if m != "full"}
    bases = {method: search.base for method, search in campaign.searches.items()}
    assert not bases["plain"].objective.morel
    assert bases["alignment_only"].objective.alpha == 0
    assert not bases["contrastive_only"].objective.alignment
    assert not bases["no_attention"].model.attention
    assert bases["both_features"].objective.features == "both"


def test_validate_checks_campaigns():
    (checked,) = validate(["ablation"])
    assert checked["kind"] == "campaign"
    assert checked["summary"].startswith("campaign, 8 methods of 'digits', 0 trials of tuning")
