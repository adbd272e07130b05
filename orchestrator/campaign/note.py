"""The note on the page of a campaign in MLflow."""

from __future__ import annotations

from orchestrator.campaign.definition import CampaignConfig
from orchestrator.campaign.report import Report
from orchestrator.campaign.tables import lost_lines, method_table
from orchestrator.notes import cell, commands, link, table


def campaign_note(campaign: CampaignConfig, report: Report) -> str:
    """What the comparison found, the methods with links to their searches, what is missing."""
    name = campaign.name
    heading, rows = method_table(report)
    linked = [[_method(row[0], report), *map(cell, row[1:])] for row in rows]
    what = f" {cell(report.description)}." if report.description else ""
    images = f"{report.num_images} test images" if report.num_images else "nothing measured yet"
    parts = [
        *(cell(comparison.sentence) for comparison in report.comparisons),
        f"**{name}**: {len(report.methods)} methods, {len(report.seeds)} seeds, {images}.{what} "
        "Mean ± standard deviation [95 % interval of the mean] over seeds; "
        "\\* is what is compared.",
        table([cell(text) for text in heading], linked),
        *(cell(line) for line in lost_lines(report)),
        commands(
            campaign.base,
            {
                f"morel report --search {name}": "one page with everything",
                f"morel compare --search {name} --group-by method": "the methods in a table",
            },
        ),
    ]
    return "\n\n".join(filter(None, parts))


def _method(method: str, report: Report) -> str:
    """Its name as a link to the search over its seeds."""
    row = next(row for row in report.methods if row.method == method)
    search = next((run.run_id.partition("/")[0] for run in row.replicates), None)
    return link(method, f"run:{search}") if search else cell(method)
