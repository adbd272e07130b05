"""Tables for a terminal, Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator.compare.runs import Score, rounded
from orchestrator.compare.table import Comparison, Row

if TYPE_CHECKING:
    from rich.table import Table

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
    "±": r"$\pm$", "★": r"$\star$", "<": r"$<$", ">": r"$>$", "–": "--",
}  # fmt: skip
_LONG_NUMBER = re.compile(r"\d+\.\d+(e-?\d+)?")


def _columns(table: Comparison) -> list[tuple[str, Callable[[Row], str]]]:
    """Heading and cell of every column that has anything in it."""

    def score(value: Score | None, mark: str = "") -> str:
        return f"{value}{mark}" if value else ""

    def held_out(row: Row, value: Score | None) -> str:
        return score(value, "" if row.selected else "*")

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("name", lambda row: row.name + _marks(row)),
        ("clean % held-out [95 %]", lambda row: held_out(row, row.clean_accuracy)),
        ("robust % held-out [95 %]", lambda row: held_out(row, row.robust_accuracy)),
        ("attack", lambda row: row.attack or ""),
    ]
    if any(row.test_clean_accuracy or row.test_robust_accuracy for row in table.rows):
        columns += [
            ("clean % test [95 %]", lambda row: score(row.test_clean_accuracy)),
            ("robust % test [95 %]", lambda row: score(row.test_robust_accuracy)),
            ("test attack", lambda row: row.test_attack or ""),
        ]
    if any(row.verified_accuracy for row in table.rows):
        columns += [
            ("verified robust % [95 %]", lambda row: score(row.verified_accuracy)),
            ("verified with", lambda row: row.verified_attacks or ""),
        ]
    columns += [
        ("epochs", lambda row: "" if row.epochs is None else str(row.epochs)),
        ("seconds", lambda row: "" if row.seconds is None else f"{row.seconds:.1f}"),
        ("why it stopped", lambda row: row.stopped),
    ]
    if any(row.baseline for row in table.rows):
        columns.append(("baseline", lambda row: row.baseline or ""))
    if any(row.method for row in table.rows):
        columns.append(("method", lambda row: row.method or ""))
    columns += [
        (key, lambda row, key=key: rounded(row.params.get(key, ""))) for key in table.params
    ]
    return columns


def _marks(row: Row) -> str:
    return " +" * row.on_front + " ★" * row.winner


def render_rich(table: Comparison, title: str | None = None) -> Table:
    """For a terminal: what all rows share stands below, with the notes, as the caption.

    The settings that differ share one column by the last part of their names; the other formats
    give each a column of its own.
    """
    from rich.markup import escape
    from rich.table import Table

    several = len({row.search for row in table.rows}) > 1
    rich_table = Table(title=title, caption_justify="left", title_justify="left")
    verified = any(row.verified_accuracy for row in table.rows)
    attacks = len({row.attack for row in table.rows if row.attack}) > 1
    shown = [*["attack"] * attacks, *["verified % [95 %]"] * verified]
    for heading in ("run", "clean %", "robust % [95 %]", *shown, "epochs", "seconds"):
        right = heading not in ("run", "attack")
        rich_table.add_column(
            escape(heading), justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    rich_table.add_column("why it stopped", overflow="fold")
    if table.params:
        rich_table.add_column("settings that differ", overflow="fold", ratio=1)
    for row in table.rows:
        mark = "" if row.selected else "*"
        cells = [
            _short_name(row, with_search=several) + _marks(row),
            "" if row.clean_accuracy is None else f"{100 * row.clean_accuracy.value:.1f}{mark}",
            f"{row.robust_accuracy}{mark}" if row.robust_accuracy else "",
            *[row.attack or ""] * attacks,
            *[f"{row.verified_accuracy or ''}"] * verified,
            "" if row.epochs is None else str(row.epochs),
            "" if row.seconds is None else f"{row.seconds:.0f}",
            row.stopped,
        ]
        cells += [_settings(row, table.params)] if table.params else []
        rich_table.add_row(*(escape(cell) for cell in cells))
    tested = [_test_line(row, with_search=several) for row in table.rows if row.test_clean_accuracy]
    notes = [_attacks_line(table), *tested, *table.notes]
    rich_table.caption = escape("\n".join(note for note in notes if note))
    return rich_table


def _test_line(row: Row, *, with_search: bool) -> str:
    """A run's numbers on the test set: few runs have them, so they stand below the table."""
    line = f"Test set, {_short_name(row, with_search=with_search)}: clean {row.test_clean_accuracy}"
    robust = [f"{score} ({attack})" for attack, score in row.test_attacks.items()]
    return ", robust ".join([line, *robust]) + "."


def _settings(row: Row, params: Sequence[str]) -> str:
    """``alpha=0.1 temperature=0.05``; long numbers are cut, the other formats have them whole."""

    return " ".join(
        f"{key.rpartition('.')[2]}={_LONG_NUMBER.sub(_cut, row.params[key])}"
        for key in params
        if key in row.params and not key.startswith("search.")  # what others were derived from
    )


def _cut(number: re.Match[str]) -> str:
    return f"{float(number[0]):.3g}"


def _short_name(row: Row, *, with_search: bool) -> str:
    """A trial by its number and, if it is one, its baseline: its settings have a column."""
    if row.kind != "trial":
        return row.name
    number = row.name.partition(" ")[0]
    place = f"{row.search}/{number}" if with_search else number
    return f"{place} {row.baseline or ''}".strip()


def _attacks_line(table: Comparison) -> str:
    """The attacks behind the held-out robust accuracies."""
    attacks = sorted({row.attack for row in table.rows if row.attack})
    if not attacks:
        return "" if table.rows else "No run is like that."
    return f"Held-out accuracies of each run's best epoch; attack: {', '.join(attacks)}."


def to_markdown(table: Comparison) -> str:
    """A GitHub table, and the notes below it."""
    columns = _columns(table)
    return markdown(
        [heading for heading, _ in columns],
        [[cell(row) for _, cell in columns] for row in table.rows],
        table.notes,
    )


def to_latex(table: Comparison) -> str:
    """A ``tabular`` for the package booktabs, and the notes as comments below it."""
    columns = _columns(table)
    return latex(
        [heading for heading, _ in columns],
        [[cell(row) for _, cell in columns] for row in table.rows],
        table.notes,
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A GitHub table and its notes."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(head), line("---" for _ in head), *map(line, rows)]
    lines += ["", *(note.replace("*", "\\*") + "\n" for note in notes)]
    return "\n".join(lines).rstrip() + "\n"


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A booktabs ``tabular`` and its notes, as comments; all text is escaped."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(map(_escaped, cells)) + r" \\"

    body = [r"\toprule", line(head), r"\midrule", *map(line, rows), r"\bottomrule"]
    columns = "l" * len(head)
    lines = [rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"]
    return "\n".join([*lines, *(f"% {note}" for note in notes)]) + "\n"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def to_csv(table: Comparison) -> str:
    """Unrounded numbers, a column each; accuracies in [0, 1], an empty cell for None."""
    attacks = dict.fromkeys(attack for row in table.rows for attack in row.test_attacks)
    records = [_flat(row, table.params, attacks) for row in table.rows]
    stream = io.StringIO()
    if records:
        writer = csv.DictWriter(stream, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return stream.getvalue()


def to_json(table: Comparison) -> str:
    """One document: ``rows``, ``params`` and ``notes``; accuracies in [0, 1]."""
    return json.dumps(asdict(table), indent=2)


def _flat(row: Row, params: Iterable[str], attacks: Iterable[str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in asdict(row).items():
        if key.endswith("_accuracy"):
            score = value or {"value": None, "low": None, "high": None}
            record |= {key: score["value"], f"{key}_low": score["low"]}
            record[f"{key}_high"] = score["high"]
        elif key not in ("params", "test_attacks"):
            record[key] = value
    for attack in attacks:
        score = row.test_attacks.get(attack)
        record[f"test.robust.{attack}"] = score.value if score else None
    return record | {f"params.{key}": row.params.get(key) for key in params}


def as_text(table: Comparison, form: str) -> str | None:
    """JSON, CSV, Markdown or LaTeX; None for any other form."""
    writers = {"json": to_json, "csv": to_csv, "markdown": to_markdown, "latex": to_latex}
    return writers[form](table) if form in writers else None
