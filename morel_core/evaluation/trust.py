"""Reasons to doubt a robust accuracy, from how the attacks went: `suspicious`.

What the network itself gives reason to doubt is in `morel_core.evaluation.probes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from morel_core.evaluation.outcome import EvaluationResult, Outcome
from morel_core.evaluation.probes import Finding, examine
from morel_core.statistics import binomial_tail

__all__ = ["Finding", "examine", "suspicious"]

LEVEL = 0.01
"""Of the tests below. Not 5 %: a search asks them of many trials, and a warning that an honest
network gets one time in twenty is soon ignored."""
AUTOATTACK_TOLERANCE = 0.002
"""Share of all images that Square may break after APGD-T and is not worth a warning: AutoAttack's
own bound for that (``alpha`` of its ``check_square_sr``)."""
LOSS_TOLERANCE = 0.07
"""The same after weaker attacks, which honest networks leave something to: from PGD to AutoAttack,
of which Square is a part, MART (Wang et al. 2020) loses seven points on CIFAR-10 without masking
anything."""
TARGETED = ("apgd-t", "autoattack")
MARGIN_LOSSES = ("cw", "apgd-dlr", "fab", "fab-t", *TARGETED)
"""Attacks on the difference of logits rather than on cross-entropy."""
SQUARE = "square"


@dataclass(frozen=True)
class _WhiteBox:
    """The white-box attacks of one ball, taken together."""

    standing: Tensor
    """(N,) bool: right under all of them."""
    names: str
    targeted: bool
    on_margin: bool

    @property
    def tolerance(self) -> float:
        """Share of images that a black-box attack may break beyond them."""
        return AUTOATTACK_TOLERANCE if self.targeted else LOSS_TOLERANCE


def suspicious(result: EvaluationResult) -> list[Finding]:
    """What in the outcomes says that an attack failed rather than that the network held.

    - ``black_box_breaks_survivors``: Square or a transferred attack breaks more of the images that
      all white-box attacks in the same ball left standing than honest networks let it: more than
      0.2 % of all images after a targeted attack, more than 7 % after others (exact binomial test,
      1 % level).
    - ``black_box_stronger``: Square or a transferred attack alone leaves fewer images than all
      white-box attacks together, one on the margin loss among them (exact McNemar test, one-sided,
      1 % level). Against cross-entropy alone this is no evidence: honest networks may have it.
    - ``not_converged``: PGD with more steps or more restarts, otherwise the same, has an accuracy
      outside the 95 % interval of that with fewer, which had steps enough to cross its ball.

    The first two are signs of gradient masking (Athalye et al. 2018; Carlini et al. 2019); the last
    one says which number is not to be quoted. An accuracy that falls from PGD to AutoAttack is by
    itself no finding.

    Args:
        result: of attacks on the same images; what an evaluation recorded will do.
    """
    findings: list[Finding] = []
    for norm, eps in result.balls():
        inside = [o for o in result.values() if (o.norm, o.eps) == (norm, eps)]
        white = _white_box(inside)
        if white is not None:
            for outcome in inside:
                findings += _against_white_box(outcome, white)
    return findings + list(_not_converged(result))


def _white_box(outcomes: list[Outcome]) -> _WhiteBox | None:
    """None without an iterative attack that can reach the border of its ball."""
    followed = [(o, _white_part(o)) for o in outcomes if o.white_box]
    followed = [(o, standing) for o, standing in followed if standing is not None]
    if not any(_crosses_ball(o.attack) for o, _ in followed):
        return None
    kinds = {kind for o, _ in followed for kind in _kinds(o.attack)}
    return _WhiteBox(
        standing=torch.stack([standing for _, standing in followed]).all(0),
        names=", ".join(o.name for o, _ in followed),
        targeted=not kinds.isdisjoint(TARGETED),
        on_margin=not kinds.isdisjoint(MARGIN_LOSSES),
    )


def _white_part(outcome: Outcome) -> Tensor | None:
    """(N,) bool: who stands after the white-box members; None if Square came before one of them.

    What Square breaks is not shown to the members after it: nobody knows whether they would have.
    """
    if not outcome.stages:
        return outcome.correct
    before: Tensor | None = None
    for stage, standing in outcome.stages.items():
        if stage.startswith(SQUARE):
            return before if stage == list(outcome.stages)[-1] else None
        before = standing
    return before


def _kinds(attack: dict[str, Any]) -> set[str]:
    return {str(attack.get(key)) for key in ("attack", "loss", "part")}


def _crosses_ball(attack: dict[str, Any]) -> bool:
    """Whether PGD has steps enough to get from its start to anywhere in the ball."""
    if "num_steps" not in attack:
        return True
    way = attack["eps"] * (2 if attack["init"] == "uniform" else 1)
    return attack["num_steps"] > 1 and attack["num_steps"] * attack["step_size"] >= way


def _against_white_box(outcome: Outcome, white: _WhiteBox) -> Iterator[Finding]:
    ensemble = bool(outcome.stages)
    if outcome.white_box and not (ensemble and list(outcome.stages)[-1].startswith(SQUARE)):
        return
    n = outcome.num_images
    only_black = int((white.standing & ~outcome.correct).sum())
    only_white = int((outcome.correct & ~white.standing).sum())
    evidence = {
        "num_images": float(n),
        "left_by_white_box": float(white.standing.sum()),
        "broken_by_black_box_only": float(only_black),
        "white_box_accuracy": white.standing.double().mean().item(),
    }
    by = f"Square in {outcome.name}" if ensemble else outcome.name
    if binomial_tail(only_black, n, white.tolerance) < LEVEL:
        yield Finding(
            "black_box_breaks_survivors",
            f"{by} breaks {only_black} of {n} images that {white.names} left standing, more than "
            f"the {white.tolerance:.1%} that an honest network leaves it: these follow a gradient "
            "that leads nowhere.",
            evidence | {"tolerance": white.tolerance},
        )
    if ensemble or not white.on_margin:
        return
    if binomial_tail(only_black, only_black + only_white, 0.5) < LEVEL:
        yield Finding(
            "black_box_stronger",
            f"{outcome.name}, which does not follow the network's gradient, leaves "
            f"{outcome.accuracy:.1%} of the images right and {white.names}, which do, "
            f"{evidence['white_box_accuracy']:.1%}: the gradient misleads.",
            evidence
            | {
                "black_box_accuracy": outcome.accuracy,
                "broken_by_white_box_only": float(only_white),
            },
        )


def _not_converged(result: EvaluationResult) -> Iterator[Finding]:
    pgd = [o for o in result.values() if o.attack["attack"] == "pgd" and _crosses_ball(o.attack)]
    for fewer, more in permutations(pgd, 2):
        (steps, restarts), (more_steps, more_restarts) = _effort(fewer), _effort(more)
        if _family(fewer) != _family(more) or more_steps < steps or more_restarts < restarts:
            continue
        low, high = fewer.interval
        if not low <= more.accuracy <= high:
            yield Finding(
                "not_converged",
                f"{more.name} leaves {more.accuracy:.1%} of {more.num_images} images right, "
                f"outside the 95 % interval of {fewer.name}, {fewer.accuracy:.1%} "
                f"[{low:.1%}, {high:.1%}]: the attack has not converged, and its number is no "
                "bound to quote.",
                {
                    "accuracy_fewer": fewer.accuracy,
                    "low_fewer": low,
                    "high_fewer": high,
                    "accuracy_more": more.accuracy,
                    "num_images": float(more.num_images),
                },
            )


def _effort(outcome: Outcome) -> tuple[int, int]:
    return outcome.attack["num_steps"], outcome.attack.get("restarts", 1)


def _family(outcome: Outcome) -> dict[str, Any]:
    """An attack's parameters without those that are more effort only."""
    return {k: v for k, v in outcome.attack.items() if k not in ("num_steps", "restarts")}
