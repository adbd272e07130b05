"""A campaign's report as tables, and as the files it is saved in."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from morel_core.statistics import MeanT, PairedT
from orchestrator.campaign.outcomes import Replicate, Tuning
from orchestrator.campaign.report import (
    Comparison,
    MethodRow,
    Registration,
    Report,
    metric_name,
    p_text,
)
from orchestrator.messages.wording import duration, seeds_difference
from orchestrator.search.budget import Cost


def spent(cost: Cost | None) -> str:
    """``3 min 12 s`` of GPUs, or of CPUs where none were used."""
    if cost is None:
        return "–"
    return (
        f"{duration(cost.gpu_seconds)} GPU"
        if cost.gpu_seconds
        else f"{duration(cost.cpu_seconds)} CPU"
    )


def method_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: per cent, mean ± standard deviation [95 % interval of the mean]."""

    def cell(row: MethodRow, metric: str) -> str:
        mean = row.means[metric]
        if mean is None:
            values = [100 * value for value in row.numbers(metric).values()]
            return f"{values[0]:.2f} (one seed)" if values else "–"
        center, spread = 100 * mean.mean, 100 * mean.deviation
        return f"{center:.2f} ± {spread:.2f} [{100 * mean.low:.2f}, {100 * mean.high:.2f}]"

    heading = [
        "method",
        *(f"{metric_name(m)} %{' *' if m == report.primary else ''}" for m in report.metrics),
        "seeds",
        "tuning",
        "replicates",
    ]
    rows = [
        [
            row.method,
            *(cell(row, metric) for metric in report.metrics),
            f"{row.measured} of {len(report.seeds)}",
            f"{row.tuning.trials} trials, {spent(row.tuning.cost)}" if row.tuning else "–",
            spent(row.replicates_cost),
        ]
        for row in report.methods
    ]
    return heading, rows


def comparison_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: points, first less second."""
    others = [metric for metric in report.metrics if metric != report.primary]
    heading = [
        "difference",
        f"{metric_name(report.primary)} *",
        "p",
        f"p (Holm, {len(report.comparisons)})",
        "detectable",
        "pairs",
        *(metric_name(metric) for metric in others),
    ]
    rows = [
        [
            f"{pair.first} − {pair.second}",
            seeds_difference(pair.primary),
            p_text(pair.primary.p_value) if pair.primary else "–",
            p_text(pair.p_holm) if pair.p_holm is not None else "–",
            f"{100 * pair.detectable:.2f}" if pair.detectable is not None else "–",
            f"{len(pair.seeds)} of {len(report.seeds)}",
            *(seeds_difference(pair.others[metric]) for metric in others),
        ]
        for pair in report.comparisons
    ]
    return heading, rows


def settings_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: what makes each method, and what its tuning chose."""

    def listed(values: Mapping[str, Any]) -> str:
        return ", ".join(f"{key} = {_short(value)}" for key, value in values.items()) or "–"

    heading = ["method", "is", "chosen by tuning"]
    rows = [
        [row.method, listed(row.given), listed(row.tuning.settings) if row.tuning else "–"]
        for row in report.methods
    ]
    return heading, rows


def lost_lines(report: Report) -> list[str]:
    """Every replicate without numbers, and every pair that therefore is missing."""
    lines = [f"{row.method}, {why}" for row in report.methods for why in row.lost]
    for pair in report.comparisons:
        if pair.left_out:
            seeds = ", ".join(map(str, pair.left_out))
            lines.append(f"{pair.first} − {pair.second}: left out seed {seeds}")
    return lines


def head_lines(report: Report) -> list[str]:
    """What was fixed beforehand, in sentences."""
    fixed, seeds = report.registration, ", ".join(map(str, report.seeds))
    images = "no" if report.num_images is None else f"{report.num_images}"
    return [
        f"Primary number (*): {metric_name(report.primary)} on {images} test images, each "
        f"network measured once; seeds {seeds}, the same for every method.",
        f"Fixed beforehand: {fixed.time}, SHA-256 {fixed.sha256[:16]}, commit "
        f"{_short_commit(fixed)}, code {fixed.code}.",
    ]


def _short_commit(fixed: Registration) -> str:
    commit, _, dirty = fixed.commit.partition("-")
    return f"{commit[:12]}{dirty and ' with changes'}"


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_short(entry) for entry in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- files ---------------------------------------------------------------------------------------


def to_markdown(report: Report) -> str:
    """The whole report."""
    lost = lost_lines(report)
    parts = [
        f"# {report.campaign}",
        *([report.description] if report.description else []),
        *head_lines(report),
        _markdown(*method_table(report)),
        "Per cent: mean ± standard deviation over seeds [95 % interval of the mean].",
        _markdown(*comparison_table(report)),
        "Points, first less second [95 % interval].",
        _bullets([pair.sentence for pair in report.comparisons]),
        *(["Without numbers:", _bullets(lost)] if lost else []),
        _markdown(*settings_table(report)),
        _bullets(report.notes),
        f"Device: {report.environment['device']}; torch {report.environment['version.torch']}.",
    ]
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> str:
    """The whole report, unrounded; accuracies in [0, 1]."""
    return json.dumps(dataclasses.asdict(report), indent=2)


def from_json(text: str) -> Report:
    """What `to_json` wrote; raises ValueError, KeyError or TypeError for anything else."""
    content = json.loads(text)
    parts: dict[str, Any] = {
        "registration": Registration(**content["registration"]),
        "methods": [_method(row) for row in content["methods"]],
        "comparisons": [_comparison(pair) for pair in content["comparisons"]],
    }
    return Report(**{**content, **parts})


def _method(row: dict[str, Any]) -> MethodRow:
    tuning: dict[str, Any] | None = row["tuning"]
    if tuning:
        tuning |= {"cost": Cost(**tuning["cost"])}
    cost = row["replicates_cost"]
    means = {metric: MeanT(**mean) if mean else None for metric, mean in row["means"].items()}
    parts: dict[str, Any] = {
        "tuning": Tuning(**tuning) if tuning else None,
        "replicates": [Replicate(**run) for run in row["replicates"]],
        "replicates_cost": Cost(**cost) if cost else None,
        "means": means,
    }
    return MethodRow(**{**row, **parts})


def _comparison(pair: dict[str, Any]) -> Comparison:
    def test(value: dict[str, Any] | None) -> PairedT | None:
        return PairedT(**value) if value else None

    others = {metric: test(value) for metric, value in pair["others"].items()}
    parts: dict[str, Any] = {"primary": test(pair["primary"]), "others": others}
    return Comparison(**{**pair, **parts})


def to_csv(report: Report) -> str:
    """One line a replicate, unrounded: what all else can be computed from."""
    stream = io.StringIO()
    fields = ["method", "seed", "run_id", "lost", *report.metrics, "seconds", "device"]
    writer = csv.DictWriter(stream, fields, lineterminator="\n", restval="")
    writer.writeheader()
    for row in report.methods:
        for run in row.replicates:
            numbers = {metric: run.test[metric] for metric in report.metrics if run.test}
            about = {"run_id": run.run_id, "lost": run.lost, "device": run.device}
            writer.writerow(
                {"method": row.method, "seed": run.seed, "seconds": run.seconds, **about, **numbers}
            )
    return stream.getvalue()


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    # A star would be read as the beginning of emphasis, a bar as the end of a cell.
    cells = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
