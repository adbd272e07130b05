"""Each scheduler for real: who is stopped, and networks that change hands."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import recorded
import torch
from mlflow.artifacts import load_text
from test_search_run import SMALL, search, space

from morel_core.checkpoint import load_network, load_progress
from orchestrator.driver import control
from orchestrator.search.population import Population
from orchestrator.search.result import SearchResult
from orchestrator.search.trial import Trial
from orchestrator.tune import tune

LR: dict[str, Any] = {"optimizer.lr": {"type": "float", "low": 1e-9, "high": 0.2, "log": True}}


def baselines(**values: float) -> dict[str, Any]:
    return {name: {"optimizer.lr": value} for name, value in values.items()}


@pytest.mark.parametrize(
    ("settings", "seed", "reasons"),
    [
        # By this seed nil is in the bracket that begins with epoch 1, tiny in that with epoch 3,
        # and good ones are in both.
        (
            {"name": "hyperband", "reduction_factor": 3, "brackets": 2},
            5,
            ("HYPERBAND stopped it at epoch 1", "HYPERBAND stopped it at epoch 3"),
        ),
        (
            {"name": "pareto", "reduction_factor": 3},
            0,
            ("PARETO stopped it at epoch 1: dominated by 3 of 3", "PARETO stopped it at epoch 1: "),
        ),
        ({"name": "median"}, 0, ("MEDIAN stopped it at epoch 1",) * 2),
    ],
    ids=["hyperband", "pareto", "median"],
)
def test_the_hopeless_are_stopped_and_told_why(
    local_ray: Any,
    shared_storage: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    seed: int,
    reasons: tuple[str, str],
) -> None:
    name = settings["name"]
    file = space(
        tmp_path,
        name,
        overrides=SMALL | {"training.epochs": 4},
        scheduler=settings,
        seed=seed,
        num_trials=5,
        max_concurrent=1,  # the good ones come first, so that it is known who stops where
        parameters=LR,
        baselines=baselines(paper=0.1, half=0.05, high=0.15, nil=1e-9, tiny=1e-8),
    )
    result = tune(search(shared_storage, file, name))
    stopped = {trial.baseline: trial for trial in result.trials if trial.state == "stopped"}
    for hopeless, reason in zip(("nil", "tiny"), reasons, strict=True):
        trial = stopped[hopeless]
        assert trial.reason.startswith(reason)
        tags = recorded.one(shared_storage, trial.run_id).data.tags
        assert tags["morel.stop_reason"] == trial.reason
    assert result.winner is not None
    assert result.winner.state == "finished"


# --- population-based training ---------------------------------------------------------------


def population(storage: Path, folder: Path, name: str, workers: int, **points: float) -> Any:
    """A search whose learning rate is 0 after the exchange at epoch 1: then networks stay."""
    fixed = {"training.epochs": 2, "optimizer.schedule": "piecewise"}
    fixed |= {"optimizer.milestones": [1], "optimizer.factors": [0.0]}
    file = space(
        folder,
        name,
        overrides=SMALL | fixed,
        searcher={"name": "random"},
        scheduler={"name": "pbt", "interval": 1, "quantile": 0.5, "resample": 0.0},
        num_trials=len(points),
        resources={"workers": workers},
        parameters=LR,
        baselines=baselines(**points),
    )
    return search(storage, file, name)


def network(folder: str) -> dict[str, torch.Tensor]:
    """Its parameters: BatchNorm goes on to count, whatever the learning rate."""
    state = load_network(Path(folder), "last")
    counted = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value for name, value in state.items() if not name.endswith(counted)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all parameters are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def check_exploited(
    result: SearchResult, storage: Path, loser: Trial, donor: Trial, donors_checkpoint: str
) -> None:
    """The loser has the donor's parameters, its past, near its settings; its record says so."""
    assert loser.state == donor.state == "finished"
    assert loser.checkpoint is not None
    assert donor.checkpoint is not None
    assert same(network(loser.checkpoint), network(donors_checkpoint))
    assert loser.params["optimizer.lr"] in (
        pytest.approx(0.8 * donor.params["optimizer.lr"]),
        pytest.approx(1.2 * donor.params["optimizer.lr"]),
    )
    histories = [load_progress(Path(t.checkpoint or ""))["history"] for t in (loser, donor)]
    assert histories[0][0] == histories[1][0]

    run = recorded.one(storage, loser.run_id)
    assert run.data.tags["morel.pbt.lineage"] == f"epoch 1 from trial {donor.number:03d}"
    # Its own first epoch stays on its record: the donor's is on the donor's.
    history = recorded.client(storage).get_metric_history(run.info.run_id, "pbt.optimizer.lr")
    first = result.search.space.baseline_params(str(loser.baseline))["optimizer.lr"]
    expected = [(1, pytest.approx(first)), (2, pytest.approx(loser.params["optimizer.lr"]))]
    assert [(m.step, m.value) for m in history] == expected
    own = recorded.client(storage).get_metric_history(run.info.run_id, "loss.total")[0].value
    assert own != histories[0][0]["loss.total"]
    stages = json.loads(load_text(f"{run.info.artifact_uri}/pbt.json"))
    assert [(s["trial"], s["first_epoch"], s["last_epoch"]) for s in stages] == [
        (donor.number, 1, 1),
        (loser.number, 2, None),
    ]
    assert stages[1]["overrides"]["optimizer.lr"] == loser.params["optimizer.lr"]


def test_after_an_exchange_a_network_is_its_donors(
    local_ray: Any, shared_storage: Path, tmp_path: Path
) -> None:
    """Three trials on two CPUs: the third begins when one of the others waits."""
    config = population(shared_storage, tmp_path, "pbt", 1, paper=0.1, nil=1e-9, half=0.05)
    result = tune(config)
    paper, nil, half = result.trials
    (exchange,) = Population.read(f"{shared_storage}/pbt").exchanges
    assert {n: place.donor for n, place in exchange.places.items()} == {1: None, 2: 1, 3: None}
    donated = exchange.places[1].checkpoint
    check_exploited(result, shared_storage, nil, paper, donated)
    assert half.checkpoint is not None
    assert same(network(half.checkpoint), network(exchange.places[3].checkpoint))
    assert not same(network(half.checkpoint), network(donated))
    assert recorded.one(shared_storage, half.run_id).data.tags["morel.pbt.lineage"] == ""
    assert result.winner is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_an_exchange_a_network_of_two_workers_is_its_donors(
    local_ray: Any, shared_storage: Path, tmp_path: Path
) -> None:
    """Two trials of two workers on two CPUs: they take turns, and meet at the exchange."""
    result = tune(population(shared_storage, tmp_path, "pbt_two", 2, paper=0.1, nil=1e-9))
    paper, nil = result.trials
    (exchange,) = Population.read(f"{shared_storage}/pbt_two").exchanges
    assert exchange.places[2].donor == 1
    pointer = json.loads(Path(exchange.places[1].checkpoint, "pointer.json").read_text())
    check_exploited(result, shared_storage, nil, paper, pointer["checkpoint"])


# --- trials of several workers ---------------------------------------------------------------


def test_a_trial_of_two_workers_leaves_its_driver_and_cpus_to_the_next(
    local_ray: Any, shared_storage: Path, tmp_path: Path
) -> None:
    """On two CPUs a trial can only train once the workers of the one before are gone."""
    file = space(
        tmp_path,
        "pairs",
        overrides=SMALL | {"training.epochs": 6},
        num_trials=2,
        resources={"workers": 2},
    )
    control.ask_stop(f"{shared_storage}/pairs", 1)
    first, second = tune(search(shared_storage, file, "pairs")).trials
    assert first.reason == f"stopped by morel stop at epoch {first.epoch}"
    assert first.epoch < 6
    assert (second.state, second.epoch) == ("finished", 6)
    assert second.last["pid"] == first.last["pid"]
    assert load_progress(Path(second.checkpoint or ""))["epoch"] == 6
    run = recorded.one(shared_storage, second.run_id)
    assert recorded.steps(shared_storage, run, "loss.total") == list(range(1, 7))
    deadline = time.time() + 10
    while local_ray.available_resources().get("CPU") != 2 and time.time() < deadline:
        time.sleep(0.1)
    assert local_ray.available_resources()["CPU"] == 2
