"""Runs side by side, from MLflow alone."""

from orchestrator.compare.groups import Grouped, group_runs
from orchestrator.compare.render import (
    as_text,
    render_rich,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)
from orchestrator.compare.render_groups import groups_as_text, groups_to_rich
from orchestrator.compare.runs import RunRecord, Score, load_all, load_runs
from orchestrator.compare.table import Comparison, Row, comparison_table
from orchestrator.compare.where import pick

__all__ = [
    "Comparison",
    "Grouped",
    "Row",
    "RunRecord",
    "Score",
    "as_text",
    "comparison_table",
    "group_runs",
    "groups_as_text",
    "groups_to_rich",
    "load_all",
    "load_runs",
    "pick",
    "render_rich",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
]
