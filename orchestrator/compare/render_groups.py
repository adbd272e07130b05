"""Groups of runs as tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from morel_core.statistics import MeanT
from orchestrator.compare.groups import Group, Grouped
from orchestrator.compare.render import latex, markdown
from orchestrator.messages.wording import seeds_difference

if TYPE_CHECKING:
    from rich.table import Table


def _cells(grouped: Grouped) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: per cent, mean ± standard deviation [95 % interval of the mean]."""
    split = "held-out" if grouped.split == "holdout" else "test"
    head = [", ".join(grouped.by), f"clean % {split}", f"robust % {split}", "seeds", "runs"]
    rows = [
        [
            group.name,
            _mean(group.clean_mean, group.clean),
            _mean(group.robust_mean, group.robust),
            str(len(group.robust)),
            str(group.runs),
        ]
        for group in grouped.groups
    ]
    if grouped.baseline is not None:
        head += [f"less {grouped.baseline} [95 %]", "p"]
        rows = [[*row, *_test(group)] for row, group in zip(rows, grouped.groups, strict=True)]
    return head, rows


def _mean(mean: MeanT | None, seeds: Mapping[str, float]) -> str:
    if mean is None:
        return " ".join(f"{100 * value:.2f}" for value in seeds.values())
    center, spread = 100 * mean.mean, 100 * mean.deviation
    return f"{center:.2f} ± {spread:.2f} [{100 * mean.low:.2f}, {100 * mean.high:.2f}]"


def _test(group: Group) -> list[str]:
    p_value = "–" if group.p_holm is None else f"{group.p_holm:.2g}"
    return [seeds_difference(group.difference), p_value]


def _notes(grouped: Grouped) -> list[str]:
    return [f"Attack: {grouped.attack}. Mean ± standard deviation [95 %].", *grouped.notes]


def groups_to_rich(grouped: Grouped, title: str | None = None) -> Table:
    """For a terminal."""
    from rich.markup import escape
    from rich.table import Table

    head, rows = _cells(grouped)
    table = Table(title=title, caption_justify="left", title_justify="left")
    for heading in head:
        table.add_column(escape(heading), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    table.caption = escape("\n".join(_notes(grouped)))
    return table


def groups_to_markdown(grouped: Grouped) -> str:
    """A GitHub table and its notes."""
    return markdown(*_cells(grouped), _notes(grouped))


def groups_to_latex(grouped: Grouped) -> str:
    """A booktabs ``tabular``."""
    return latex(*_cells(grouped), _notes(grouped))


def groups_to_csv(grouped: Grouped) -> str:
    """One line a group and seed, unrounded: what all else can be computed from."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["group", "seed", "clean_accuracy", "robust_accuracy", "split", "attack"])
    for group in grouped.groups:
        for seed, robust in group.robust.items():
            numbers = [group.clean.get(seed), robust]
            writer.writerow([group.name, seed, *numbers, grouped.split, grouped.attack])
    return stream.getvalue()


def groups_to_json(grouped: Grouped) -> str:
    """Everything."""
    return json.dumps(asdict(grouped), indent=2)


def groups_as_text(grouped: Grouped, form: str) -> str | None:
    """JSON, CSV, Markdown or LaTeX; None for any other form."""
    writers = {
        "json": groups_to_json,
        "csv": groups_to_csv,
        "markdown": groups_to_markdown,
        "latex": groups_to_latex,
    }
    return writers[form](grouped) if form in writers else None
