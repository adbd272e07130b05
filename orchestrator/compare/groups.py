"""Runs that differ in their seed alone, as one line: mean, interval over seeds, paired tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

from morel_core.errors import ConfigError
from morel_core.statistics import FEWEST_PAIRS, MeanT, PairedT, holm, mean_t, paired_t
from orchestrator.compare.runs import (
    RunRecord,
    measured_differently,
    rounded,
    shared_attacks,
    varied_params,
)

SEED, PHASE = "seed", "morel.phase"
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
    """Robust accuracy less the baseline's over the seeds that both have, three at least."""
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
    runs: Sequence[RunRecord],
    by: Sequence[str],
    baseline: str | None = None,
    attack: str | None = None,
) -> Grouped:
    """Group trainings and trials by settings.

    Test numbers are taken if all measured runs have them, else held-out ones; of the attacks in the
    ball that runs were judged in the one that most share, of several the strongest.

    Args:
        runs: left out are searches and campaigns, the tuning of a campaign where its replicates are
            among them, and what has not come to an end of its own: it has fewer epochs than others.
        by: settings, or method, baseline or search.
        baseline: name of a group, which all others are tested against.
        attack: take this one, of the test set if a run was measured with it there.

    Raises:
        ConfigError: a setting that no run has, an attack that none was measured with, or no such
            group.
    """
    members = _members(runs)
    for key in by:
        if members and not any(_setting(run, key) for run in members):
            raise ConfigError("--group-by", key, f"a setting of these runs, or {', '.join(TAGS)}")
    ended = [run for run in members if run.whole]
    measured = [run for run in ended if run.robust("holdout") or run.robust("test")]
    tested = [run for run in measured if run.robust("test")]
    if attack is None:
        split: Split = "test" if tested and len(tested) == len(measured) else "holdout"
    else:
        split = "test" if any(attack in run.robust("test") for run in tested) else "holdout"
    attack = shared_attacks(measured, split, attack)[0] if measured else ""
    lines: defaultdict[str, list[RunRecord]] = defaultdict(list)
    for run in measured:
        if attack in run.robust(split):
            lines[", ".join(_setting(run, key) or "–" for key in by)].append(run)
    names = _short_names(list(lines))
    lines = defaultdict(list, {names[name]: of for name, of in lines.items()})
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
        notes=[
            *_notes(groups, split, len(ended) - sum(map(len, lines.values())), baseline),
            *_left_out(runs, members, ended),
            *_differences(lines),
        ],
    )


def _members(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs without searches and campaigns, and without tuning where there are replicates."""
    found = [run for run in runs if run.trained]
    replicated = any(run.tags.get(PHASE) == "replicates" for run in found)
    return [run for run in found if not (replicated and run.tags.get(PHASE) == "tuning")]


def _left_out(
    runs: Sequence[RunRecord], members: Sequence[RunRecord], ended: Sequence[RunRecord]
) -> list[str]:
    notes: list[str] = []
    tuning = sum(run.trained for run in runs) - len(members)
    if tuning:
        notes.append(f"{tuning} trial(s) of tuning are left out: replicates alone are compared.")
    if len(members) > len(ended):
        notes.append(
            f"{len(members) - len(ended)} run(s) are left out: still at work, stopped early, "
            "failed or diverged."
        )
    return notes


def _differences(lines: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """What runs of one group differ in beside their seed, and how groups were measured."""
    notes: list[str] = []
    for name, of in lines.items():
        varied = [key for key in varied_params(of) if key != SEED]
        if varied:
            notes.append(f"Runs of {name} differ in {', '.join(varied)}, not in their seed alone.")
    return notes + measured_differently([run for of in lines.values() for run in of])


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Long numbers cut to four digits, unless that makes two groups one."""
    short = {name: ", ".join(map(rounded, name.split(", "))) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def _setting(run: RunRecord, key: str) -> str | None:
    return run.tags.get(TAGS[key]) if key in TAGS else run.params.get(key)


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
        if group is not against and len(seeds) >= FEWEST_PAIRS:
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
            f"p is corrected for the number of groups (Holm). It takes {FEWEST_PAIRS} seeds."
        )
    return notes
