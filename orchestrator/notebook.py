"""Recorded runs in a notebook: pandas frames with intervals, and figures of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.compare import Row, Score, comparison_table, load_runs, pick
from orchestrator.compare.runs import RunRecord
from orchestrator.config import RunConfig, tracking_uri
from orchestrator.tracking.connection import open_client

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SCORES = (
    "clean_accuracy",
    "robust_accuracy",
    "verified_accuracy",
    "test_clean_accuracy",
    "test_robust_accuracy",
)


def results(
    experiment: str = "morel",
    search: str | None = None,
    *,
    where: Sequence[str] = (),
    attack: str | None = None,
    uri: str | None = None,
) -> DataFrame:
    """The trials and trainings of an MLflow experiment, the most robust first.

    Args:
        experiment: its name.
        search: only this search or campaign.
        where: conditions as of ``morel compare --where``.
        attack: robust accuracies under this one, by its recorded name; default: the one that
            decided, and on the test set the strongest that most runs share.
        uri: the tracking URI; default: as commands take it, from ``MLFLOW_TRACKING_URI``.

    Returns:
        One row a run, by our run id. Accuracies in [0, 1], each with ``_low`` and ``_high`` of its
        95 % interval; NaN where nothing was measured. ``test.robust.<attack>``: each attack of the
        test set. ``params.<key>``: settings that differ.

    Raises:
        MorelError: MLflow does not answer, or the experiment or search is unknown.
        ConfigError: a condition that is none, or an attack that no run was measured with.
    """
    import pandas as pd

    runs = pick(load_runs(_uri(uri), experiment, search), where)
    table = comparison_table(runs, attack=attack)
    apart = (*SCORES, "params", "test_attacks")
    names = [field.name for field in dataclasses.fields(Row) if field.name not in apart]
    rows: list[dict[str, Any]] = []
    for row in table.rows:
        cells = {name: getattr(row, name) for name in names}
        for key in SCORES:
            score: Score = getattr(row, key) or Score(float("nan"))
            cells |= {key: score.value, f"{key}_low": score.low, f"{key}_high": score.high}
        cells |= {f"test.robust.{name}": score.value for name, score in row.test_attacks.items()}
        rows.append(cells | {f"params.{key}": _typed(row.params.get(key)) for key in table.params})
    numbers = [key + end for key in SCORES for end in ("", "_low", "_high")]
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*names, *numbers])
    frame[numbers] = frame[numbers].astype(float)
    return frame.set_index("run_id")


def curves(run_id: str, experiment: str = "morel", *, uri: str | None = None) -> DataFrame:
    """What a run recorded in each epoch: one row an epoch, one column a metric.

    Raises:
        KeyError: the experiment has no such run.
    """
    import pandas as pd

    address = _uri(uri)
    run = _one(load_runs(address, experiment), run_id)
    client = open_client(address, create=False)
    histories = {
        key: {point.step: point.value for point in client.get_metric_history(run.mlflow_id, key)}
        for key in run.metrics
        if key.startswith(("holdout.", "loss.", "gradient_share.", "lr"))
    }
    return pd.DataFrame(histories).sort_index().rename_axis("epoch")


def front_figure(frame: DataFrame, *, test: bool = False) -> Figure:
    """Clean against robust accuracy with 95 % intervals, in per cent; the Pareto front joined.

    Args:
        frame: of `results`; those are shown that were measured with the attack of its first row.
        test: the numbers of the test set in place of the held-out ones.
    """
    from matplotlib.figure import Figure

    from orchestrator.compare.pareto import front

    attack = "test_attack" if test else "attack"
    x, y = (f"{'test_' if test else ''}{kind}_accuracy" for kind in ("clean", "robust"))
    shown = frame.dropna(subset=[x, y])
    shown = shown.loc[shown[attack] == shown[attack].head(1).squeeze()] if len(shown) else shown
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for key, spread in ((x, "xerr"), (y, "yerr")):
        ends = [shown[key] - shown[f"{key}_low"], shown[f"{key}_high"] - shown[key]]
        error: Any = {spread: [100 * end.clip(lower=0) for end in ends]}
        axes.errorbar(100 * shown[x], 100 * shown[y], fmt="none", ecolor="0.8", **error)
    axes.plot(100 * shown[x], 100 * shown[y], "o", label="runs")
    points = shown[[x, y]].to_numpy().tolist()
    on_front = front(points) if test else [i for i, is_on in enumerate(shown.on_front) if is_on]
    members = sorted((points[i] for i in on_front), key=lambda point: point[0])
    line = [[100 * point[axis] for point in members] for axis in (0, 1)]
    axes.plot(*line, "-", label="Pareto front")
    axes.set_xlabel(f"clean accuracy, {'test' if test else 'held-out'} (%)")
    axes.set_ylabel(f"robust accuracy, {'test' if test else 'held-out'} (%)")
    axes.legend()
    return figure


def curves_figure(frame: DataFrame) -> Figure:
    """Held-out clean and robust accuracy over the epochs, in per cent, from `curves`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key in frame.columns:
        if key == "holdout.clean" or (key.startswith("holdout.robust.") and _is_value(key)):
            axes.plot(frame.index, 100 * frame[key], label=key.removeprefix("holdout."))
            if f"{key}_low" in frame:
                low, high = 100 * frame[f"{key}_low"], 100 * frame[f"{key}_high"]
                axes.fill_between(frame.index, low, high, alpha=0.2)
    axes.set_xlabel("epoch")
    axes.set_ylabel("held-out accuracy (%)")
    axes.legend()
    return figure


def _is_value(key: str) -> bool:
    return not key.endswith(("_low", "_high"))


def _uri(given: str | None) -> str:
    return given or tracking_uri(RunConfig())


def _one(runs: Sequence[RunRecord], run_id: str) -> RunRecord:
    for run in runs:
        if run_id in (run.run_id, run.mlflow_id, run.name):
            return run
    raise KeyError(f"{run_id}: no such run; there are {', '.join(r.run_id for r in runs[:5])}")


def _typed(text: str | None) -> Any:
    """A setting as a number where it is one."""
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text
