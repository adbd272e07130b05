"""Frames and figures of runs in a real MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

import orchestrator
from morel_core.errors import MorelError
from orchestrator.compare import load_all

PGD = "pgd20_linf_8-255"
POINTS = {"robust": (0.7, 0.5), "clean": (0.9, 0.3), "dominated": (0.65, 0.25)}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three runs of two epochs."""
    address = f"sqlite:///{tmp_path_factory.mktemp('notebook')}/mlflow.db"
    client = MlflowClient(address)
    experiment = client.create_experiment("papers")
    for name, (clean, robust) in POINTS.items():
        tags = {"morel.run_id": name, "morel.kind": "train"}
        run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        client.log_param(run, "objective.alpha", clean)
        client.log_param(run, "seed", 1)
        for epoch in (1, 2):
            for key, value in (("holdout.clean", clean), (f"holdout.robust.{PGD}", robust)):
                client.log_metric(run, key, value * epoch / 2, step=epoch)
        for key, value in (("best.holdout.clean", clean), (f"best.holdout.robust.{PGD}", robust)):
            for end, shift in (("", 0.0), ("_low", -0.05), ("_high", 0.05)):
                client.log_metric(run, key + end, value + shift)
        client.set_terminated(run)
    return address


def test_results_are_a_frame_with_intervals(uri: str) -> None:
    frame = orchestrator.results("papers", uri=uri)
    assert list(frame.index) == ["robust", "clean", "dominated"]
    assert frame.loc["robust", "robust_accuracy"] == 0.5
    assert frame.loc["robust", "robust_accuracy_low"] == 0.45
    assert frame["test_clean_accuracy"].isna().all()
    assert frame["params.objective.alpha"].tolist() == [0.7, 0.9, 0.65]
    assert frame["on_front"].tolist() == [True, True, False]
    assert "params.seed" not in frame  # does not differ
    picked = orchestrator.results("papers", uri=uri, where=["clean_accuracy > 0.8"])
    assert list(picked.index) == ["clean"]
    none = orchestrator.results("papers", uri=uri, where=["clean_accuracy > 1"])
    assert none.empty
    assert list(none.columns) == [c for c in frame.columns if not c.startswith("params.")]
    assert orchestrator.front_figure(none).axes
    with pytest.raises(MorelError, match="'paper' is not in"):
        orchestrator.results("paper", uri=uri)


def test_curves_have_an_epoch_a_row(uri: str) -> None:
    frame = orchestrator.curves("clean", "papers", uri=uri)
    assert frame.index.tolist() == [1, 2]
    assert frame["holdout.clean"].tolist() == [0.45, 0.9]
    with pytest.raises(KeyError, match="there are"):
        orchestrator.curves("another", "papers", uri=uri)


def test_figures_can_be_drawn(uri: str, tmp_path: Path) -> None:
    front = orchestrator.front_figure(orchestrator.results("papers", uri=uri))
    (axes,) = front.axes
    line = axes.get_lines()[-1]
    assert line.get_xdata() == pytest.approx([70, 90])
    assert line.get_ydata() == pytest.approx([50, 30])
    curves = orchestrator.curves_figure(orchestrator.curves("clean", "papers", uri=uri))
    assert len(curves.axes[0].get_lines()) == 2
    for figure in (front, curves):
        figure.savefig(tmp_path / "figure.png")


def test_a_search_is_found_in_whichever_experiment_it_is(uri: str) -> None:
    client = MlflowClient(uri)
    tags = {"morel.run_id": "hunt", "morel.kind": "search", "morel.search": "hunt"}
    client.create_run(client.create_experiment("others"), tags=tags)
    both = ["papers", "others"]
    assert [run.run_id for run in load_all(uri, both, ["hunt"])] == ["hunt"]
    assert len(load_all(uri, both)) == len(POINTS) + 1
    with pytest.raises(MorelError, match="search 'hnt' is not in experiment 'papers, others': did"):
        load_all(uri, both, ["hnt"])
