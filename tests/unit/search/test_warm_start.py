"""What a search takes from earlier ones: which trials, with which values, and why not others."""

import pytest
from optuna.trial import TrialState

from morel_core.errors import MorelError
from orchestrator.compare import RunRecord
from orchestrator.search import warm_start
from orchestrator.search.searcher import SpaceSearcher
from orchestrator.tracking import records
from orchestrator.tracking.mlflow_tracker import _param_text

SPACE = """
parameters:
  k1: {type: float, low: 0.0, high: 1.0}
  objective.preference: {type: derived, expression: "[k1, 1 - k1]"}
  objective.accuracy: {type: choice, values: [trades, loat]}
  objective.loat_theta: {type: float, low: 0.1, high: 1, when: {objective.accuracy: loat}}
  training.batch_size: {type: int, low: 16, high: 64, step: 16}
  objective.morel: {type: grid, values: [true, false]}
baselines:
  paper: {k1: 0.1, objective.accuracy: trades, training.batch_size: 64}
"""
POINT = {
    "k1": 0.5,
    "objective.accuracy": "trades",
    "training.batch_size": 32,
    "objective.morel": True,
}
DATA = {"name": "digits", "fingerprint": "ab" * 32, "num_classes": 10, "sizes": {}, "source": ""}


@pytest.fixture
def search(load):
    return load(SPACE, "warm_start=[old]", "num_trials=4", "searcher.startup_trials=2")


@pytest.fixture
def earlier(monkeypatch, search):
    """Put runs into MLflow's place: ``earlier(record, ...)``."""

    def put(*runs, dataset="ab" * 18, name="old"):
        head = RunRecord(
            **common(f"{name}", kind="search"), params={}, metrics={}, tags={}, dataset=dataset
        )
        known = {name: [head, *runs]}

        def load_runs(uri, experiment, asked):
            if asked not in known:
                raise MorelError(f"search {asked!r} is not in experiment {experiment!r}: …")
            return known[asked]

        monkeypatch.setattr(warm_start, "load_runs", load_runs)

    return put


def common(run_id, kind="trial"):
    return {
        "run_id": run_id, "mlflow_id": run_id, "parent_mlflow_id": None, "name": run_id,
        "kind": kind, "search": "old", "status": "FINISHED", "started": 0.0, "ended": 9.0,
    }  # fmt: skip


def record(search, point=None, *, params=None, tags=None, robust=0.5, clean=0.9, **metrics):
    """A trial's run as the driver records it; ``params`` replaces recorded texts."""
    point = POINT | (point or {})
    attack = records.evaluation_label(search.base)
    config = search.trial_config(point)
    helpers = {f"search.{key}": value for key, value in point.items() if "." not in key}
    texts = {k: _param_text(v) for k, v in (records.params(config) | helpers).items()}
    measured = {"epoch": 4.0, "train.seconds": 12.0}
    for prefix, drop in (("holdout", 0.1), ("best.holdout", 0.0)):
        measured |= {f"{prefix}.clean": clean - drop, f"{prefix}.robust.{attack}": robust - drop}
    return RunRecord(
        **common("old/t"),
        params={k: v for k, v in (texts | (params or {})).items() if v is not None},
        metrics=measured | metrics,
        tags={"morel.state": "finished", "morel.attack.evaluation": attack} | (tags or {}),
    )


def refused(search, earlier, run, **more):
    earlier(run, **more)
    known = warm_start.known_trials(search, DATA)
    assert known.trials == []
    (line,) = known.lines
    return line.removeprefix("warm start: 0 of 1 trials of old; not taken: 1 ")


def test_a_finished_trial_is_known_with_its_raw_values_and_numbers(search, earlier):
    earlier(
        record(search), record(search, {"objective.accuracy": "loat", "objective.loat_theta": 1.0})
    )
    known = warm_start.known_trials(search, DATA)
    assert known.lines == ["warm start: 2 of 2 trials of old"]
    first, second = known.trials
    assert first.params == POINT
    assert type(first.params["training.batch_size"]) is int
    assert second.params["objective.loat_theta"] == 1.0
    report = first.report
    assert (report["epoch"], report["num_epochs"], report["time_total_s"]) == (4, 4, 12.0)
    assert (report["best_robust_accuracy"], report["robust_accuracy"]) == (0.5, 0.4)
    assert (report["best_clean_accuracy"], report["clean_accuracy"]) == (0.9, 0.8)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tags": {"morel.state": "stopped"}}, "not trained to their own end"),
        (
            {"tags": {"morel.pbt.lineage": "epoch 2 from trial 001"}},
            "of settings that changed on the way",
        ),
        ({"tags": {"morel.attack.evaluation": "pgd5"}}, "measured with pgd5, not pgd20_linf_0.1"),
        ({"params": {"search.k1": "1.5"}}, "outside the range of k1"),
        ({"params": {"search.k1": None}}, "without a value of k1"),
        ({"params": {"training.batch_size": "33"}}, "outside the range of training.batch_size"),
        ({"params": {"objective.accuracy": "mart"}}, "outside the range of objective.accuracy"),
        ({"params": {"objective.morel": "1"}}, "outside the range of objective.morel"),
        ({"params": {"training.epochs": "9"}}, "with training.epochs = 9, not 4"),
        ({"params": {"model.name": "resnet18"}}, "with model.name = resnet18, not digits_cnn"),
    ],
)
def test_what_is_not_comparable_is_refused_with_its_reason(search, earlier, change, why):
    assert refused(search, earlier, record(search, **change)) == why


def test_other_data_is_refused_where_the_fingerprint_is_known(search, earlier):
    assert refused(search, earlier, record(search), dataset="cd" * 18) == "on other data"
    earlier(record(search), dataset=None)
    assert len(warm_start.known_trials(search, DATA).trials) == 1


def test_a_trial_without_a_best_epoch_is_refused(search, earlier):
    run = record(search)
    for key in [key for key in run.metrics if key.startswith("best.")]:
        del run.metrics[key]
    assert refused(search, earlier, run) == "without accuracies of a best epoch"


def test_inactive_parameters_and_other_fixed_settings_do_not_matter(search, earlier):
    earlier(record(search, params={"objective.loat_theta": "7", "optimizer.lr": "0.5"}))
    assert warm_start.known_trials(search, DATA).trials[0].params == POINT


def test_reasons_are_counted(search, earlier):
    stopped, outside = {"tags": {"morel.state": "stopped"}}, {"params": {"search.k1": "2"}}
    runs = [record(search), record(search, **stopped), record(search, **stopped)]
    earlier(*runs, record(search, **outside))
    assert warm_start.known_trials(search, DATA).lines == [
        "warm start: 1 of 4 trials of old; not taken: 2 not trained to their own end, "
        "1 outside the range of k1"
    ]


def test_an_unknown_search_is_an_error(search, earlier):
    earlier(name="other")
    with pytest.raises(MorelError, match="'old' is not in experiment 'morel'"):
        warm_start.known_trials(search, DATA)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
@pytest.mark.parametrize("metric", ["robust_accuracy", "tradeoff"])
def test_the_searcher_learns_from_them_and_does_not_count_them(
    load, earlier, tmp_path, sampler, metric
):
    options = [f"searcher.name={sampler}", f"objective.metric={metric}"]
    options += ["searcher.startup_trials=2"] if sampler == "tpe" else []
    options += ["searcher.population_size=2"] if sampler == "nsga2" else []
    constrained = "objective.constraints=[clean_accuracy >= 0.95]"
    search = load(SPACE, "warm_start=[old]", "num_trials=4", constrained, *options)
    points = [{"k1": 0.2}, {"k1": 0.3, "training.batch_size": 48}]
    earlier(*(record(search, point) for point in points))
    searcher = SpaceSearcher(search, warm_start.known_trials(search, DATA).trials)
    told = searcher._study.get_trials()
    assert [t.state for t in told] == [TrialState.COMPLETE] * 2
    assert told[1].params["training.batch_size"] == 48
    assert told[0].values == ([0.4] if metric == "robust_accuracy" else [0.9, 0.5])
    assert told[0].constraints["clean_accuracy >= 0.95"] > 0
    first = searcher.suggest("0")
    assert (first["index"], first["baseline"]) == (0, "paper")

    searcher.save(str(tmp_path / "state"))
    restored = SpaceSearcher(search)
    restored.restore(str(tmp_path / "state"))
    rest = [restored.suggest(str(number)) for number in range(1, search.total_trials)]
    assert rest == [searcher.suggest(str(number)) for number in range(1, search.total_trials)]
    assert len(restored._study.get_trials()) == 2 + search.total_trials
    assert restored.suggest("more") == SpaceSearcher.FINISHED


def test_known_trials_take_the_place_of_the_start(search, load, earlier):
    """With two known ones the model is in use from the first drawn point on."""
    earlier(record(search, {"k1": 0.2}), record(search, {"k1": 0.3}, robust=0.6))

    def drawn(known):
        searcher = SpaceSearcher(search, known)
        configs = [searcher.suggest(str(number)) for number in range(3)]
        return configs[2]["params"]["k1"]

    assert drawn(warm_start.known_trials(search, DATA).trials) != drawn([])
