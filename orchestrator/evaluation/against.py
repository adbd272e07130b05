"""Two networks on the same images under the same attacks, by a paired test."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from morel_core.data import load_data
from morel_core.errors import MorelError
from morel_core.statistics import PairedDifference, detectable_difference, paired_difference
from orchestrator.evaluate import Request, View, evaluate_target
from orchestrator.evaluation.outcomes import Evaluation
from orchestrator.evaluation.shards import split_of
from orchestrator.evaluation.targets import Target

SCOPE = (
    "speaks of these two networks only: another seed would train others. Methods are compared over "
    "several seeds"
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two evaluations, and what the images they share say of their difference."""

    first: Evaluation
    second: Evaluation
    differences: dict[str, PairedDifference]
    """Attack → first less second."""
    detectable: dict[str, float | None]
    """Attack → the smallest difference that so many images, of which as many tell the two apart,
    resolve with a power of 80 %; None if there is none."""

    def record(self) -> dict[str, Any]:
        """Everything, plain."""
        return {
            "first": self.first.record(),
            "second": self.second.record(),
            "differences": {
                name: {**asdict(found), "detectable_difference": self.detectable[name]}
                for name, found in self.differences.items()
            },
            "scope": SCOPE,
        }


def compare_targets(
    first: Target, second: Target, request: Request, view: View | None = None
) -> Comparison:
    """Measure two targets alike, or take what is stored of them, and test their difference.

    The attacks, the chunks and the seed are those of the first; the images must be the same.

    Raises:
        MorelError: their images differ, or what `evaluate_target` raises.
    """
    check_images(first, second, request)
    # What the second was selected by while it trained has no part in this.
    evaluation = replace(first.config.evaluation, rungs=[], num_images=None)
    second = replace(second, config=replace(second.config, evaluation=evaluation))
    results = [evaluate_target(target, request, view) for target in (first, second)]
    one, two = (evaluation.result for evaluation in results)
    differences = {name: paired_difference(one[name].correct, two[name].correct) for name in one}
    return Comparison(
        first=results[0],
        second=results[1],
        differences=differences,
        detectable={name: resolvable(found) for name, found in differences.items()},
    )


def resolvable(found: PairedDifference) -> float | None:
    """The smallest difference that as many images would resolve; see `detectable_difference`."""
    discordant = found.only_first + found.only_second
    if discordant == 0:
        return None
    return detectable_difference(found.num_images, discordant / found.num_images)


def check_images(first: Target, second: Target, request: Request) -> None:
    """Raise `MorelError` unless both targets' configs give the same images of the split."""
    digests = [
        split_of(load_data(target.config.data), request.split).digest()
        for target in (first, second)
    ]
    if digests[0] != digests[1]:
        raise MorelError(
            f"--against {second.name}: its {request.split} images are not those of {first.name}: "
            f"data.name = {second.config.data.name!r} and {first.config.data.name!r}, or another "
            "data.split_seed, data.holdout or data.test_size"
        )
