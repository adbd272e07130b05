"""What the records of evaluations say beyond one number: by radius, by class, of two networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.compare.runs import Score
from orchestrator.report.ball import Ball
from orchestrator.report.data import Measured, Recorded, Trial

Series = list[tuple[str, list[tuple[float, Score]]]]


def best_record(found: Sequence[Measured], ball: Ball) -> Measured | None:
    """The record to quote: rather of the test set, of many images and of many attacks.

    Of those that have an attack in ``ball``: others say nothing of robustness there.
    """
    return max(
        (each for each in found if ball.attacks(each)),
        key=lambda each: (
            each.record["split"].startswith("test"),
            len(_clean(each)["correct"]),
            len(each.record["outcomes"]),
        ),
        default=None,
    )


def worst_record(found: Sequence[Measured], ball: Ball) -> tuple[Score, list[str], int] | None:
    """Worst case over the attacks in ``ball`` of one evaluation, their names, its images.

    Of the evaluation on the most images, of several attacks; None if there is none.
    """
    several = [each for each in found if len(ball.attacks(each)) > 1]
    best = best_record(several, ball)
    if best is None:
        return None
    worst = next((entry for entry in best.record["worst_case"] if ball.same(entry)), None)
    return worst and (_score(worst), ball.attacks(best), len(_clean(best)["correct"]))


def by_radius(recorded: Recorded) -> Series:
    """For each trial that was measured at two radii or more: (ε, worst case) of one evaluation.

    All of one norm, the one that most have; ε = 0 are clean images.
    """
    found: dict[str, dict[str, list[tuple[float, Score]]]] = {}
    for trial in sorted(recorded.trials, key=lambda trial: trial is not recorded.winner):
        for each in recorded.measured(trial):
            for norm, points in _radii(each).items():
                if len(points) > 2:
                    name = f"{trial.name} ({each.record['split']})"
                    found.setdefault(norm, {})[name] = points
    norm = max(found, key=lambda n: len(found[n]), default=None)
    return [] if norm is None else [(f"{name}, {norm}", p) for name, p in found[norm].items()]


def _radii(each: Measured) -> dict[str, list[tuple[float, Score]]]:
    clean = _clean(each)
    points: dict[str, list[tuple[float, Score]]] = {}
    for worst in each.record.get("worst_case", []):
        start = points.setdefault(str(worst["norm"]), [(0.0, _score(clean))])
        start.append((float(worst["eps"]), _score(worst)))
    return {norm: sorted(found, key=lambda p: p[0]) for norm, found in points.items()}


def _clean(each: Measured) -> dict[str, Any]:
    return each.record["outcomes"]["clean"]


def _score(entry: dict[str, Any]) -> Score:
    return Score(entry["accuracy"], entry["low"], entry["high"])


def standing(each: Measured, ball: Ball | None = None) -> list[bool]:
    """Which images are right under every attack inside ``ball``; default: under all."""
    strings = [
        outcome["correct"]
        for outcome in each.record["outcomes"].values()
        if ball is None or ball.holds(outcome)
    ]
    return [all(bit == "1" for bit in bits) for bits in zip(*strings, strict=True)]


def per_class(each: Measured, ball: Ball) -> list[tuple[str, Score, Score]]:
    """(class, clean, robust against all attacks inside ``ball``) with Wilson's 95 % intervals."""
    from morel_core.statistics import wilson_interval

    def rate(right: Sequence[bool]) -> Score:
        low, high = wilson_interval(sum(right), len(right))
        return Score(sum(right) / len(right), low, high)

    assert each.labels is not None
    clean = [bit == "1" for bit in _clean(each)["correct"]]
    robust = standing(each, ball)
    rows: list[tuple[str, Score, Score]] = []
    for label in sorted(set(each.labels)):
        mine = [index for index, other in enumerate(each.labels) if other == label]
        rows.append((str(label), rate([clean[i] for i in mine]), rate([robust[i] for i in mine])))
    return rows


def verification(recorded: Recorded, trial: Trial) -> Measured | None:
    """The record of a trial's verification."""
    found = [e for e in recorded.measured(trial) if e.file.endswith("verified.json")]
    return found[-1] if found else None


def next_one(recorded: Recorded, winner: Trial) -> Trial | None:
    """The best of the others that were verified on the winner's images; no masked one."""
    could = [
        (trial, each)
        for trial in recorded.trials
        if trial is not winner and not trial.masking
        if (each := verification(recorded, trial)) and _same_images(recorded, winner, each)
    ]
    best = max(could, key=lambda pair: sum(deciding(pair[1], recorded.metric)), default=None)
    return best and best[0]


def _same_images(recorded: Recorded, winner: Trial, other: Measured) -> bool:
    own = verification(recorded, winner)
    return own is not None and own.record["indices"] == other.record["indices"]


def deciding(each: Measured, metric: str) -> list[bool]:
    """Which images count for a search of this metric: right when clean, or under every attack."""
    if metric == "clean_accuracy":
        return [bit == "1" for bit in _clean(each)["correct"]]
    return standing(each)


def paired(recorded: Recorded, winner: Trial, other: Trial, name: str) -> str:
    """How two verifications on the same images differ: interval, test and what it would miss.

    Empty where there are no two such.
    """
    import torch

    from morel_core.statistics import detectable_difference, paired_difference

    records = verification(recorded, winner), verification(recorded, other)
    if records[0] is None or records[1] is None or not _same_images(recorded, winner, records[1]):
        return ""
    first, second = (torch.tensor(deciding(each, recorded.metric)) for each in records if each)
    test = paired_difference(first, second)
    text = (
        f"On the {test.num_images} images of the verification it is "
        f"{100 * test.difference:+.1f} points from {name} "
        f"(95 % interval {100 * test.low:+.1f} to {100 * test.high:+.1f}, "
        f"McNemar p = {test.p_value:.2g})"
    )
    split = test.only_first + test.only_second
    if not split:
        return f"{text}: no image tells the two apart."
    smallest = detectable_difference(test.num_images, split / test.num_images)
    if smallest is None:
        return f"{text}: too few images tell the two apart for any difference to be shown."
    return f"{text}; a difference under {100 * smallest:.1f} points would mostly be missed."
