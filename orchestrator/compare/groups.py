"""Runs that differ in their seed alone, as one line: mean, interval over seeds, paired tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

from morel_core.errors import ConfigError
from morel_core.statistics import MeanT, PairedT, holm, mean_t, paired_t
from orchestrator.compare.runs import RunRecord

SEED = "seed"
TAGS = {"method": "morel.method", "baseline": "morel.baseline", "search": "morel.search"}
Split = Literal["test", "holdout"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that agree in the settings that were asked for; accuracies in [0, 1]."""

    name: str
    runs: int
    clean: dict[str, float]
    """Seed → accuracy on clean images; of several runs of a seed, their mean."""
    robust: dict[str, float]
    """Seed → robust accuracy."""
    clean_mean: MeanT | None
    """None with fewer than two seeds."""
    robust_mean: MeanT | None
    difference: PairedT | None = None
    """Robust accuracy less the baseline's over the seeds that both have, two at least."""
    p_holm: float | None = None
    """Corrected for being one of several."""


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """Groups, the most robust first, and what a reader must know about the numbers."""

    by: list[str]
    split: Split
    attack: str
    baseline: str | None
    groups: list[Group]
    notes: list[str] = field(default_factory=lambda: list[str]())


def group_runs(
    runs: Sequence[RunRecord], by: Sequence[str], baseline: str | None = None
) -> Grouped:
    """Group trainings and trials by settings.

    Test numbers are taken if all measured runs have them, else held-out ones.

    Args:
        runs: searches and campaigns among them are left out.
        by: settings, or method, baseline or search.
        baseline: name of a group, which all others are tested against.

    Raises:
        ConfigError: a setting that no run has, or no such group.
    """
    members = [run for run in runs if run.kind not in ("search", "campaign")]
    for key in by:
        if not any(_setting(run, key) for run in members):
            raise ConfigError("--group-by", key, f"a setting of these runs, or {', '.join(TAGS)}")
    measured = [run for run in members if run.robust("holdout") or run.robust("test")]
    split: Split = "test" if measured and all(run.robust("test") for run in measured) else "holdout"
    attack = _most_common([name for run in measured for name in run.robust(split)])
    lines: defaultdict[str, list[RunRecord]] = defaultdict(list)
    for run in measured:
        if attack in run.robust(split):
            lines[", ".join(_setting(run, key) or "–" for key in by)].append(run)
    groups = [_group(name, of, split, attack) for name, of in lines.items()]
    groups.sort(key=lambda group: -fmean(group.robust.values()))
    if baseline is not None:
        groups = _tested(groups, baseline)
    return Grouped(
        by=list(by),
        split=split,
        attack=attack,
        baseline=baseline,
        groups=groups,
        notes=_notes(groups, split, len(members) - sum(map(len, lines.values())), baseline),
    )


def _setting(run: RunRecord, key: str) -> str | None:
    return run.tags.get(TAGS[key]) if key in TAGS else run.params.get(key)


def _most_common(names: Sequence[str]) -> str:
    return max(dict.fromkeys(names), key=names.count) if names else ""


def _group(name: str, runs: Sequence[RunRecord], split: Split, attack: str) -> Group:
    clean: defaultdict[str, list[float]] = defaultdict(list)
    robust: defaultdict[str, list[float]] = defaultdict(list)
    for run in runs:
        seed = run.params.get(SEED, run.tags.get("morel.seed", "?"))
        score = run.clean(split)
        if score is not None:
            clean[seed].append(score.value)
        robust[seed].append(run.robust(split)[attack].value)
    by_seed = [{seed: fmean(values) for seed, values in d.items()} for d in (clean, robust)]
    means = [mean_t(list(d.values())) if len(d) > 1 else None for d in by_seed]
    return Group(
        name=name,
        runs=len(runs),
        clean=by_seed[0],
        robust=by_seed[1],
        clean_mean=means[0],
        robust_mean=means[1],
    )


def _tested(groups: Sequence[Group], baseline: str) -> list[Group]:
    against = next((group for group in groups if group.name == baseline), None)
    if against is None:
        known = "; ".join(group.name for group in groups)
        raise ConfigError("--baseline", baseline, f"one of the groups: {known}")
    tests: dict[str, PairedT] = {}
    for group in groups:
        seeds = sorted(set(group.robust) & set(against.robust))
        if group is not against and len(seeds) > 1:
            pairs = [[g.robust[seed] for seed in seeds] for g in (group, against)]
            tests[group.name] = paired_t(*pairs)
    corrected = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    return [
        replace(group, difference=tests.get(group.name), p_holm=corrected.get(group.name))
        for group in groups
    ]


def _notes(groups: Sequence[Group], split: Split, missing: int, baseline: str | None) -> list[str]:
    notes: list[str] = []
    if split == "holdout":
        notes.append(
            "Held-out accuracies of each run's best epoch, chosen on the same images: biased "
            "upwards. Measure the runs on the test set with morel evaluate."
        )
    if any(group.runs > len(group.robust) for group in groups):
        notes.append("Some groups have several runs of a seed: their mean counts once.")
    if any(len(group.robust) < 2 for group in groups):
        notes.append("A group with one seed has no interval: how far seeds part is not known.")
    if missing:
        notes.append(f"{missing} run(s) are left out: not measured, or with other attacks.")
    if baseline is not None:
        notes.append(
            "Difference: robust accuracy less the baseline's on the same seeds, paired t-test; "
            "p is corrected for the number of groups (Holm)."
        )
    return notes
