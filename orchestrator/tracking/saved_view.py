"""A saved view of MLflow's own page of runs: the trials of one search, their columns and charts.

MLflow keeps such a view, which a person makes with *Views › Save as new view*, as a tag of the
experiment: a JSON of the page's state, whose form is not documented. This follows version 3.17; a
version that does not understand it says so and shows the page as usual.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from orchestrator.tracking.events import ViewPayload

PREFIX = "mlflow.sharedViewState."
LONGEST = 5_000
"""Characters that MLflow's database holds in a tag of an experiment."""
AXES = 6
"""Parameters in the parallel coordinates at most: more cannot be read."""
_NAME, _DESCRIPTION = "attributes.`Run Name`", "attributes.`Description`"
_ALL_METRICS = "Model metrics"
"""MLflow's own section, of a chart for every metric."""


def saved_view(
    name: str, payload: ViewPayload, mlflow_run_id: str, milliseconds: int
) -> tuple[str, str]:
    """Key and value of the experiment's tag.

    Args:
        name: of the search, and of its view.
        payload: what is shown.
        mlflow_run_id: MLflow's id of the search's run, whose children are shown.
        milliseconds: when the search began, in unix time.

    Raises:
        ValueError: it is longer than `LONGEST`.
    """
    state = _facets(payload, mlflow_run_id) | _page(payload)
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    envelope = {
        "name": name,
        "createdAt": milliseconds,
        "updatedAt": milliseconds,
        "state": f"deflate;{base64.b64encode(packed).decode()}",
    }
    value = json.dumps(envelope)
    if len(value) > LONGEST:
        raise ValueError(f"the view of {name} is too long for MLflow: {len(value)} characters")
    return PREFIX + name, value


def view_page(experiment_id: str, name: str) -> str:
    """Where a view is seen, below the address of MLflow."""
    # MLflow opens on its pages for language models unless it is told otherwise.
    query = f"viewStateShareKey={name}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"#/experiments/{experiment_id}/runs?{query}"


def _facets(payload: ViewPayload, mlflow_run_id: str) -> dict[str, Any]:
    """Which runs are shown, in which order."""
    return {
        "searchFilter": f"tags.mlflow.parentRunId = '{mlflow_run_id}'",
        "orderByKey": f"metrics.`{payload['robust']}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
    }


def _page(payload: ViewPayload) -> dict[str, Any]:
    """Columns and charts."""
    robust, clean = payload["robust"], payload["clean"]
    metrics = [robust, clean, *payload["more"]]
    columns = [
        *(f"metrics.`{key}`" for key in metrics),
        *(f"params.`{key}`" for key in payload["params"]),
        *(f"tags.`{key}`" for key in payload["tags"]),
    ]
    parallel = {"selectedParams": payload["params"][:AXES], "selectedMetrics": [clean, robust]}
    scatter = {
        axis: {"key": key, "type": "METRIC"} for axis, key in (("xaxis", clean), ("yaxis", robust))
    }
    line = _LINE | {"metricKey": payload["curves"][0], "selectedMetricKeys": payload["curves"]}
    widths = {_NAME: 220, _DESCRIPTION: 280}
    widths |= {column: _width(column) for column in columns}
    return {
        "selectedColumns": [_DESCRIPTION, "attributes.`Duration`", *columns],
        "columnOrder": [_NAME, "runDateAndNestInfo", "duration", _DESCRIPTION, *columns],
        "columnWidths": widths,
        "compareRunCharts": [
            _chart("PARALLEL", "parameters", {**parallel, "showAllRuns": True}),
            _chart("SCATTER", "accuracies", scatter),
            _chart("LINE", "accuracies", line),
        ],
        "compareRunSections": [
            _section("parameters", "Parameters and accuracies", columns=1),
            _section("accuracies", "Clean against robust accuracy, and its course", columns=2),
            _section("all", _ALL_METRICS, columns=3) | {"display": False},
        ],
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
    }


def _width(column: str) -> int:
    """Pixels in which the column's heading can be read."""
    return 60 + 7 * len(column.partition(".")[2])


def _section(uuid: str, name: str, *, columns: int) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": True,
        "isReordered": True,
        "columns": columns,
        "cardHeight": 400,
    }


def _chart(kind: str, section: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"{section}-{kind}",
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 1_000,
        **settings,
    }


_LINE: dict[str, Any] = {
    "lineSmoothness": 0,
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "range": {},
    "xAxisKey": "step",
    "selectedXAxisMetricKey": "",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}
