"""Runs side by side, from MLflow alone."""

from orchestrator.compare.render import render_rich, to_csv, to_json, to_markdown
from orchestrator.compare.runs import RunRecord, Score, load_runs
from orchestrator.compare.table import Comparison, Row, comparison_table

__all__ = [
    "Comparison",
    "Row",
    "RunRecord",
    "Score",
    "comparison_table",
    "load_runs",
    "render_rich",
    "to_csv",
    "to_json",
    "to_markdown",
]
