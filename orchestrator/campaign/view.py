"""What a person sees of a campaign: its searches as they run, its plan, its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.campaign.report import metric_name
from orchestrator.campaign.run import CampaignResult
from orchestrator.campaign.tables import comparison_table, head_lines, lost_lines, method_table
from orchestrator.config import tracking_uri
from orchestrator.search.space import SearchConfig
from orchestrator.search.trials import View
from orchestrator.search.view import SearchProgress
from orchestrator.tracking.records import ladder_label
from orchestrator.training.view import print_where


class CampaignProgress:
    """Each search as `morel tune` shows it, under a line that says which."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """See `orchestrator.campaign.run.CampaignView`."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def follow(self, text: str, search: SearchConfig) -> Generator[View | None]:
        """See `orchestrator.campaign.run.CampaignView`."""
        self.say(text)
        label = ladder_label(search.base)
        with SearchProgress(self.console, label, search.total_trials) as view:
            yield view


def print_plan(console: Console, plan: Mapping[str, Any]) -> None:
    """What a campaign would run."""
    seeds = ", ".join(map(str, plan["seeds"]))
    table = _table(
        f"{plan['name']}: {plan['trials']} trials of tuning, {plan['replicates']} replicates",
        ["method", "is", "tuned", "trials", "replicates"],
        [
            [
                method,
                ", ".join(f"{key}={value}" for key, value in about["settings"].items()) or "–",
                ", ".join(about["tuned"]) or "–",
                str(about["trials"]),
                str(about["replicates"]),
            ]
            for method, about in plan["methods"].items()
        ],
    )
    console.print(table)
    pairs = ", ".join(f"{first} − {second}" for first, second in plan["pairs"].items())
    lines = [
        f"primary number: {metric_name(plan['primary'])}; replicates are measured with "
        f"{', '.join(plan['attacks'])}",
        f"compared: {pairs}; seeds {seeds}",
        f"at most {plan['epochs_at_most']} epochs, {plan['epochs_each']} a trial; results in "
        f"{plan['storage']}",
        "nothing was started",
    ]
    _print_lines(console, lines)


def print_report(console: Console, result: CampaignResult) -> None:
    """The tables, the sentences, and where to look."""
    report, campaign = result.report, result.campaign
    _print_lines(console, head_lines(report))
    title = f"{report.campaign}: mean ± standard deviation over seeds [95 % interval]"
    console.print(_table(title, *method_table(report)))
    console.print(_table("points, first less second [95 %]", *comparison_table(report)))
    _print_lines(console, [pair.sentence for pair in report.comparisons])
    _print_lines(console, [f"without numbers: {line}" for line in lost_lines(report)])
    folder = f"{campaign.base.storage_path}/{campaign.name}"
    _print_lines(console, [f"report: {folder}/report.md (also .json and .csv)"])
    print_where(console, campaign.base, result.recorded)


def campaign_summary(result: CampaignResult) -> dict[str, Any]:
    """A finished campaign, plain, with the whole report."""
    base = result.campaign.base
    return {
        "name": result.campaign.name,
        "experiment": base.tracking.experiment,
        "tracking_uri": tracking_uri(base),
        "seconds": result.seconds,
        "complete": result.report.complete,
        "recorded": result.recorded,
        "report": dataclasses.asdict(result.report),
    }


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(title: str, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in heading:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
