"""The report of a campaign: the paper's table, paired differences, and what they can resolve.

Everything is computed from the replicates' numbers on the test set. Intervals and p-values are over
seeds: they speak of training again, on the same data and the same test images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from morel_core.statistics import (
    FEWEST_PAIRS,
    LEVEL,
    MeanT,
    PairedT,
    detectable_mean_difference,
    holm,
    mean_t,
    paired_t,
)
from orchestrator.campaign.definition import CampaignConfig
from orchestrator.campaign.outcomes import MethodOutcome, Replicate, Tuning
from orchestrator.config import flatten
from orchestrator.search.budget import Cost
from orchestrator.tracking.records import environment_tags


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What was written down before the first trial."""

    sha256: str
    """Of methods, pairs, seeds, primary number, tuning and base run, as JSON."""
    time: str
    """UTC."""
    commit: str
    code: str
    """Hash of `morel_core`'s sources and torch's version."""


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One method of the table."""

    method: str
    given: dict[str, Any]
    """The dotted settings that make it."""
    tuning: Tuning | None
    replicates: list[Replicate]
    replicates_cost: Cost | None
    measured: int
    """Replicates with numbers on the test set."""
    means: dict[str, MeanT | None]
    """Recorded metric → its mean over them; None with fewer than two."""
    lost: list[str]
    """Replicates without numbers, and why."""

    def numbers(self, metric: str) -> dict[int, float]:
        """Seed → ``metric``, of the replicates that have it."""
        return {run.seed: run.test[metric] for run in self.replicates if run.test}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """First less second, over the seeds under which both have numbers."""

    first: str
    second: str
    seeds: list[int]
    left_out: list[int]
    """Seeds under which one of the two has no numbers."""
    primary: PairedT | None
    """None with fewer than three pairs."""
    p_holm: float | None
    detectable: float | None
    """Smallest true difference that so many seeds with this spread find in four of five cases; None
    if there is no primary test, or its differences are all the same."""
    others: dict[str, PairedT | None]
    """The other metrics, not corrected for being several."""
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A campaign's results."""

    campaign: str
    description: str
    registration: Registration
    primary: str
    """The metric that the comparisons are about."""
    metrics: list[str]
    seeds: list[int]
    num_images: int | None
    """Of the test set; None if nothing was measured."""
    methods: list[MethodRow]
    comparisons: list[Comparison]
    notes: list[str]
    environment: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every method has numbers under every seed."""
        return all(row.measured == len(self.seeds) for row in self.methods)


def build_report(
    campaign: CampaignConfig, registration: Registration, outcomes: Mapping[str, MethodOutcome]
) -> Report:
    """The report of what was found; a method or seed without numbers is named, never dropped."""
    rows = [_row(campaign, method, outcome) for method, outcome in outcomes.items()]
    by_method = {row.method: row for row in rows}
    images = [r.test["test.images"] for row in rows for r in row.replicates if r.test]
    environment = {
        "device": ", ".join(sorted({r.device for row in rows for r in row.replicates})),
        **{key.removeprefix("morel."): value for key, value in environment_tags().items()},
    }
    return Report(
        campaign=campaign.name,
        description=campaign.description,
        registration=registration,
        primary=campaign.primary_metric,
        metrics=campaign.metrics,
        seeds=campaign.seeds,
        num_images=int(images[0]) if images else None,
        methods=rows,
        comparisons=compare_pairs(campaign, by_method),
        notes=_notes(campaign, rows),
        environment=environment,
    )


def _row(campaign: CampaignConfig, method: str, outcome: MethodOutcome) -> MethodRow:
    found = outcome.replicates
    runs = {run.seed: run for run in found.runs} if found else {}
    measured = [run for run in runs.values() if run.test]
    if found is None:
        lost = ["no replicates: its tuning has no winner"]
    else:
        lost = [
            f"seed {seed}: {runs[seed].lost if seed in runs else 'not trained'}"
            for seed in campaign.seeds
            if seed not in runs or not runs[seed].test
        ]
    return MethodRow(
        method=method,
        given=flatten(campaign.methods[method] or {}),
        tuning=outcome.tuning,
        replicates=list(runs.values()),
        replicates_cost=found.cost if found else None,
        measured=len(measured),
        means={
            metric: mean_t([run.test[metric] for run in measured]) if len(measured) > 1 else None
            for metric in campaign.metrics
        },
        lost=lost,
    )


def compare_pairs(campaign: CampaignConfig, rows: Mapping[str, MethodRow]) -> list[Comparison]:
    """Every planned pair; a pair that cannot be compared still counts in Holm's correction."""
    tests: list[PairedT | None] = []
    shared: list[list[int]] = []
    for first, second in campaign.pairs.items():
        numbers = [rows[method].numbers(campaign.primary_metric) for method in (first, second)]
        shared.append([seed for seed in campaign.seeds if all(seed in n for n in numbers)])
        tests.append(_paired(rows[first], rows[second], campaign.primary_metric))
    corrected = holm([test.p_value if test else 1.0 for test in tests])
    comparisons: list[Comparison] = []
    for (first, second), seeds, test, p in zip(
        campaign.pairs.items(), shared, tests, corrected, strict=True
    ):
        detectable = (
            detectable_mean_difference(test.num_seeds, test.deviation)
            if test and test.spread_known
            else None
        )
        comparison = Comparison(
            first=first,
            second=second,
            seeds=seeds,
            left_out=[seed for seed in campaign.seeds if seed not in seeds],
            primary=test,
            p_holm=p if test else None,
            detectable=detectable,
            others={
                metric: _paired(rows[first], rows[second], metric)
                for metric in campaign.metrics
                if metric != campaign.primary_metric
            },
            sentence="",
        )
        text = sentence(comparison, campaign.primary_metric, len(tests))
        comparisons.append(dataclasses.replace(comparison, sentence=text))
    return comparisons


def _paired(first: MethodRow, second: MethodRow, metric: str) -> PairedT | None:
    a, b = first.numbers(metric), second.numbers(metric)
    seeds = [seed for seed in a if seed in b]
    if len(seeds) < FEWEST_PAIRS:
        return None
    return paired_t([a[s] for s in seeds], [b[s] for s in seeds])


def sentence(comparison: Comparison, metric: str, count: int) -> str:
    """What a reader may quote; ``count`` comparisons were planned."""
    first, second, test = comparison.first, comparison.second, comparison.primary
    if test is None or comparison.p_holm is None:
        return f"{first} and {second} are not compared: fewer than {FEWEST_PAIRS} seeds have both."
    what = f"{metric_name(metric)} over {test.num_seeds} seeds"
    interval = f"95 % interval {signed(test.low)} to {signed(test.high)} points"
    corrected = f" after Holm's correction for {count} comparisons" if count > 1 else ""
    p = f"p = {p_text(comparison.p_holm)}{corrected}".replace("= <", "<")
    if comparison.detectable is None:
        return (
            f"{first} less {second} is {signed(test.difference)} points in {what}, the same under "
            f"each: how far it varies over seeds is not known (sign-flip test: {p})."
        )
    if comparison.p_holm <= LEVEL:
        word = "higher" if test.difference > 0 else "lower"
        size = f"{100 * abs(test.difference):.2f} points {word}"
        return f"{first} is {size} than {second} in {what} ({interval}; {p})."
    return (
        f"No difference between {first} and {second} in {what} is shown "
        f"({signed(test.difference)} points, {interval}; {p}): differences within that interval "
        f"cannot be excluded, and one smaller than {100 * comparison.detectable:.2f} points would "
        "have been missed more often than in one of five campaigns like this."
    )


def _tuned(rows: Sequence[MethodRow]) -> str:
    trials = {row.method: row.tuning.trials for row in rows if row.tuning is not None}
    if not trials:
        return "Nothing was tuned: each method was trained as it is given."
    each = set(trials.values())
    if len(each) == 1 and len(trials) == len(rows):
        count = f"with {each.pop()} trials"
    else:
        counts = ", ".join(f"{method}: {count}" for method, count in trials.items())
        count = f"within the same budget ({counts} trials)"
    return (
        f"Each method's setting was chosen by its own search, {count}, on the held-out split; the "
        "test set served no choice."
    )


def _notes(campaign: CampaignConfig, rows: Sequence[MethodRow]) -> list[str]:
    differing = [
        f"{row.method}, seed {run.seed}: {run.differs}."
        for row in rows
        for run in row.replicates
        if run.differs
    ]
    return [
        *differing,
        _tuned(rows),
        "Intervals and p-values are over seeds (t-distribution; pairs share their seed): they "
        "speak of training again on this data, not of other test images.",
        "p is corrected by Holm's rule over all planned comparisons of the primary number; "
        "intervals and the other numbers are not, so that an interval may leave out 0 all the "
        "same.",
        "Detectable: the smallest true difference that a campaign with as many seeds and the "
        "observed spread finds in four of five cases (before Holm's correction).",
        "Replicates without numbers are left out of the means, and their pairs of the "
        "differences, which favours a method that sometimes fails.",
        "Costs are the wall time of training times the CPUs or GPUs of a trial.",
    ]


def report_metrics(report: Report) -> dict[str, float]:
    """The report's numbers for its run in MLflow."""
    metrics: dict[str, float] = {}
    for row in report.methods:
        for name, mean in row.means.items():
            if mean is not None:
                metrics |= {
                    f"mean.{row.method}.{name}": mean.mean,
                    f"std.{row.method}.{name}": mean.deviation,
                }
    for pair in report.comparisons:
        if pair.primary is not None and pair.p_holm is not None:
            key = f"difference.{pair.first}-{pair.second}.{report.primary}"
            metrics |= {key: pair.primary.difference, f"{key}_p_holm": pair.p_holm}
            if pair.primary.spread_known:
                metrics |= {f"{key}_low": pair.primary.low, f"{key}_high": pair.primary.high}
    return metrics


# --- words ----------------------------------------------------------------------------------------


def metric_name(metric: str) -> str:
    """``robust accuracy (pgd20_linf_0.1)`` for ``test.robust.pgd20_linf_0.1``."""
    attack = metric.removeprefix("test.robust.")
    return "clean accuracy" if metric == "test.clean" else f"robust accuracy ({attack})"


def signed(value: float) -> str:
    """Points with their sign: ``+1.25``."""
    return f"{100 * value:+.2f}"


def p_text(p: float) -> str:
    """``0.031``, or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
