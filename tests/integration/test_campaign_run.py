"""`morel campaign` for real: two methods, three seeds; interrupted, finished, repeated."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import recorded
import yaml
from test_search_run import SMALL

from morel_core.errors import MorelError
from orchestrator.campaign import run
from orchestrator.campaign.definition import CampaignConfig, load_campaign
from orchestrator.campaign.run import CampaignResult, run_campaign
from orchestrator.cli import main
from orchestrator.compare import comparison_table, load_runs
from orchestrator.driver.ending import Paused
from orchestrator.search import status
from orchestrator.search.operations import stop
from orchestrator.search.space import SearchConfig

CAMPAIGN: dict[str, Any] = {
    "recipe": "digits",
    "overrides": SMALL | {"training.epochs": 1},
    "methods": {"plain": {"objective.morel": False}, "morel": {"objective.morel": True}},
    "pairs": {"morel": "plain"},
    "seeds": [3, 4, 5],
    "primary": {"attack": "pgd5"},
    "report_attacks": ["fgsm"],
    "tuning": {
        "num_trials": 2,
        "scheduler": {"name": "none"},
        "parameters": {"optimizer.lr": {"type": "choice", "values": [0.1, 0.05]}},
    },
}
SEARCHES = ["small-plain", "small-morel", "small-plain-seeds", "small-morel-seeds"]
PGD = "test.robust.pgd5_linf_0.1"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("campaigns") / "small.yaml"
    path.write_text(yaml.safe_dump(CAMPAIGN, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def campaign(file: str, shared_storage: Path) -> CampaignConfig:
    return load_campaign(file, [f"storage_path={shared_storage}"])


@pytest.fixture(scope="module")
def result(local_ray: Any, campaign: CampaignConfig, shared_storage: Path) -> CampaignResult:
    """A campaign that was paused before its last search, then finished by the same command."""
    ran: list[str] = []
    tune = run.tune

    def until_the_last(search: SearchConfig, **rest: Any) -> Any:
        ran.append(str(search.base.name))
        if search.base.name == SEARCHES[-1] and len(ran) == len(SEARCHES):
            stop("small", [], campaign.base)
        return tune(search, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "tune", until_the_last)
        with pytest.raises(Paused, match="the same command goes on"):
            run_campaign(campaign)
        assert status.read(f"{shared_storage}/{SEARCHES[-1]}")["state"] == "paused"
        assert recorded.one(shared_storage, "small").info.status == "KILLED"
        finished = run_campaign(campaign)
    assert ran == [*SEARCHES, SEARCHES[-1]]  # what was over did not run again
    return finished


def test_report_is_what_mlflow_holds(result: CampaignResult, shared_storage: Path) -> None:
    by_method: dict[str, list[float]] = {}
    for method in CAMPAIGN["methods"]:
        query = f"tags.`morel.method` = '{method}' AND tags.`morel.phase` = 'replicates'"
        runs = recorded.runs(shared_storage, f"{query} AND tags.`morel.kind` = 'trial'")
        runs.sort(key=lambda run: int(run.data.tags["morel.seed"]))
        assert [run.data.params["seed"] for run in runs] == ["3", "4", "5"]
        assert {run.data.tags["morel.campaign"] for run in runs} == {"small"}
        assert all(set(result.report.metrics) <= run.data.metrics.keys() for run in runs)
        by_method[method] = [run.data.metrics[PGD] for run in runs]
    assert len(result.report.metrics) == 3  # clean, under PGD, under FGSM
    for row in result.report.methods:
        mean = row.means[PGD]
        assert mean is not None
        values = by_method[row.method]
        assert (mean.mean, mean.deviation) == pytest.approx((fmean(values), stdev(values)))
        assert row.tuning is not None
        assert row.tuning.trials == 2
        assert row.tuning.cost.cpu_seconds > 0
    (pair,) = result.report.comparisons
    first, second = by_method["morel"], by_method["plain"]
    assert pair.primary is not None
    assert pair.primary.difference == pytest.approx(fmean(first) - fmean(second))
    assert result.report.complete
    assert result.recorded


def test_tuning_never_meets_the_test_set(result: CampaignResult, shared_storage: Path) -> None:
    runs = recorded.runs(shared_storage, "tags.`morel.phase` = 'tuning'")
    assert len(runs) == 2 * 3  # each method's search and its two trials
    assert not any(key.startswith("test.") for run in runs for key in run.data.metrics)
    assert {run.data.params["seed"] for run in runs if "seed" in run.data.params} == {"0"}


def test_searches_hang_below_the_campaign(result: CampaignResult, shared_storage: Path) -> None:
    parent = recorded.one(shared_storage, "small")
    below = recorded.runs(shared_storage, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.data.tags["morel.run_id"] for run in below} == set(SEARCHES)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["morel.fixed.sha256"] == result.report.registration.sha256
    artifacts = {f.path for f in recorded.client(shared_storage).list_artifacts(parent.info.run_id)}
    assert {"config.yaml", "fixed_beforehand.json", "report.md", "report.json"} <= artifacts
    written = json.loads((shared_storage / "small" / "report.json").read_text())
    assert written["comparisons"][0]["sentence"] == result.report.comparisons[0].sentence
    fixed = json.loads((shared_storage / "small" / "fixed_beforehand.json").read_text())
    assert fixed["fixed"]["seeds"] == [3, 4, 5]
    # Written down before the first trial began.
    first = min(run.info.start_time for run in below)
    assert parent.info.start_time <= first


def test_compare_shows_a_whole_campaign(result: CampaignResult, shared_storage: Path) -> None:
    runs = load_runs(f"sqlite:///{shared_storage}/mlflow.db", "morel", "small")
    rows = comparison_table(runs).rows
    assert sorted(row.method or "" for row in rows) == ["morel"] * 5 + ["plain"] * 5
    assert {row.search for row in rows} == set(SEARCHES)


def test_report_page_has_the_methods_table(
    result: CampaignResult, shared_storage: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small.html"
    command = ["report", "--search", "small", "--no-pictures", "--out", str(out)]
    assert main([*command, f"storage_path={shared_storage}"]) == 0
    page = out.read_text()
    assert "has the highest mean of the primary number" in page
    assert result.report.comparisons[0].sentence.partition(" (")[0] in page
    assert "small-plain-seeds seed 3" in page


def test_repeated_it_runs_nothing_and_says_the_same(
    result: CampaignResult,
    file: str,
    shared_storage: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {run.info.run_id for run in recorded.runs(shared_storage, "")}
    monkeypatch.setattr(run, "tune", lambda *_, **__: pytest.fail("a search ran again"))
    capsys.readouterr()
    assert main(["campaign", file, f"storage_path={shared_storage}", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"]["comparisons"][0]["sentence"] == result.report.comparisons[0].sentence
    assert {run.info.run_id for run in recorded.runs(shared_storage, "")} == before


def test_what_was_fixed_cannot_be_changed_later(
    result: CampaignResult, file: str, shared_storage: Path
) -> None:
    for override in ("primary.attack=pgd4", "seeds=[3,5]", "methods.third.objective.alpha=1"):
        other = load_campaign(file, [f"storage_path={shared_storage}", override])
        with pytest.raises(MorelError, match="holds another run, which differs in"):
            run_campaign(other)
