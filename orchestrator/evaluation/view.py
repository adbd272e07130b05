"""What a person sees of an evaluation: progress while it runs, and its tables at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from morel_core.attacks.base import size_label
from morel_core.evaluation import EvaluationResult, Finding
from morel_core.statistics import wilson_interval
from orchestrator.evaluate import Status
from orchestrator.evaluation.against import SCOPE, Comparison
from orchestrator.evaluation.outcomes import Evaluation
from orchestrator.messages.display import Display
from orchestrator.messages.wording import duration, percent

LINE_EVERY_S = 10.0  # without a terminal


class EvaluationProgress(Display):
    """One line that is redrawn on a terminal; elsewhere a line now and then, and at each end."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.said = time.monotonic()

    def update(self, status: Status) -> None:
        """Show how far an attack has come."""
        line = progress_line(status)
        if self.console.is_terminal:
            self.live.update(Text(line, overflow="ellipsis", no_wrap=True))
        now = time.monotonic()
        due = not self.console.is_terminal and now - self.said >= LINE_EVERY_S
        if status.done == status.total or (due and status.done):
            self.said = now
            self.say(line)


def progress_line(status: Status) -> str:
    """``pgd20_linf_8-255: 512/1000 images, 45.1 [40.8, 49.4] % stand, 1 min 10 s left``."""
    line = f"{status.attack}: {status.done}/{status.total} images"
    if status.done:
        low, high = wilson_interval(status.standing, status.done)
        accuracy = percent(status.standing / status.done)
        line += f", {accuracy} [{percent(low)}, {percent(high)}] % stand"
    if status.restored:
        line += f", {status.restored} of them measured before"
    if status.done == status.total:
        return line + (f", {duration(status.seconds)}" if status.seconds else "")
    if status.seconds_left is None:
        return line
    return f"{line}, {duration(status.seconds_left)} left"


# --- the end of the command ----------------------------------------------------------------------


def print_done(console: Console, done: Evaluation | Comparison) -> None:
    """The tables of an evaluation or of a comparison, and what to think of them."""
    if isinstance(done, Comparison):
        print_comparison(console, done)
    else:
        print_evaluation(console, done)


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """The accuracies, what speaks against them, and where the outcomes lie."""
    console.print(evaluation_table(evaluation.result))
    for found in evaluation.findings or ():
        print_finding(console, found)
    console.print(f"per image: {evaluation.files['parquet']}", markup=False, soft_wrap=True)


def evaluation_table(result: EvaluationResult) -> Table:
    """Every attack with its accuracy and interval, then the worst case in each ball."""
    table = Table(header_style="bold")
    for heading in ("attack", "accuracy % [95 %]", "images", "seconds"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    record = result.record()
    for name, outcome in record["outcomes"].items():
        table.add_row(
            name, accuracy(outcome), str(outcome["num_images"]), f"{outcome['seconds']:.1f}"
        )
        for stage, standing in outcome.get("stages", {}).items():
            table.add_row(f"  … after {stage}", accuracy(standing), "", "", style="dim")
    for worst in record["worst_case"]:
        if len(worst["attacks"]) > 1:
            label = f"worst of {len(worst['attacks'])}, {worst['norm']} {size_label(worst['eps'])}"
            table.add_row(label, accuracy(worst), str(worst["num_images"]), "", style="bold")
    return table


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Both networks' accuracies, their difference, and how far it reaches."""
    first, second = comparison.first, comparison.second
    table = Table(header_style="bold", title_justify="left")
    table.title = f"{first.target.name} against {second.target.name}"
    for heading in ("attack", "first %", "second %", "difference [95 %]", "p", "resolvable"):
        table.add_column(heading, justify="left" if heading == "attack" else "right")
    for name, found in comparison.differences.items():
        table.add_row(
            name,
            percent(first.result[name].accuracy),
            percent(second.result[name].accuracy),
            f"{signed(found.difference)} [{signed(found.low)}, {signed(found.high)}]",
            f"{found.p_value:.2g}",
            percent(comparison.detectable[name]),
        )
    console.print(table)
    images = len(first.labels)
    console.print(
        f"difference: first less second, in points, on the same {images} images; p: McNemar's "
        f"exact test; resolvable: what {images} images would find in 4 of 5 cases.\n"
        f"This {SCOPE}.",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    for evaluation in (first, second):
        for found in evaluation.findings or ():
            console.print(f"{evaluation.target.name}:", markup=False, end=" ")
            print_finding(console, found)


def print_finding(console: Console, found: Finding) -> None:
    """A warning with its reason."""
    text = f"warning ({found.code}): {found.reason}"
    console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def accuracy(record: Mapping[str, Any]) -> str:
    """``53.1 [50.9, 55.3]`` in per cent."""
    low, high = percent(record["low"]), percent(record["high"])
    return f"{percent(record['accuracy'])} [{low}, {high}]"


def signed(difference: float) -> str:
    """In points: ``+1.2``."""
    return f"{100 * difference:+.1f}"
