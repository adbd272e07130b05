"""Attacks by name: single ones in a given ball, and sets that are customary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from morel_core.attacks.autoattack import AutoAttack, AutoAttackPart, Part
from morel_core.attacks.base import Attack
from morel_core.attacks.pgd import PGD
from morel_core.config import AttackConfig, Norm
from morel_core.errors import ConfigError, MorelError

Preset = Literal["quick", "paper", "standard"]

KNOWN = (
    "pgdN (as in pgd20), cwN, each with xR for R restarts, @STEP (@0.003, @2/255) and _worst for "
    "the worst iterate (as in pgd20x5@2/255_worst), fgsm, apgd-ce, apgd-dlr, apgd-t, fab, fab-t, "
    "square, squareN (of N queries), autoattack, autoattack_plus"
)
STEPS = re.compile(
    r"(?P<kind>pgd|cw)(?P<steps>[1-9]\d*)(x(?P<restarts>[1-9]\d*))?"
    r"(@(?P<step>\d*\.?\d+)(?P<level>/255)?)?(?P<worst>_worst)?"
)
SQUARE = re.compile(r"square([1-9]\d*)")

STANDARD_EPS: dict[Norm, float] = {"linf": 8 / 255, "l2": 0.5}
"""The balls of RobustBench's CIFAR-10 leaderboards (Croce et al. 2021)."""

PUBLISHED_EPS, PUBLISHED_STEP = 0.031, 0.003
CW_DIFFERS = (
    "published: ART's CarliniLInfMethod (10 iterations, learning rate 0.01, initial constant 15), "
    "whose images are in no ball; here the margin is maximised inside of it"
)


@dataclass(frozen=True, kw_only=True)
class PublishedPGD(PGD):
    """An attack of the published evaluation (arXiv 2410.01697), named and recorded as such.

    Args:
        differs: where it is not what was published; empty if nowhere.
    """

    differs: str = ""

    @property
    def name(self) -> str:
        """As in ``paper_pgd20_linf_0.031``."""
        return f"paper_{super().name}"

    def describe(self) -> dict[str, Any]:
        """Its parameters, plain."""
        return {**super().describe(), "preset": "paper"}


def make_attacks(names: Iterable[str], ball: AttackConfig) -> dict[str, Attack]:
    """Attacks by name in a ball.

    ``pgdN`` and ``cwN`` keep the ball's step size and start; ``fgsm`` is one step of ε from the
    image itself (Goodfellow et al. 2015). A step size of its own shows in an attack's name.

    Args:
        names: as in `KNOWN`.
        ball: its norm, ε, step size and start.

    Returns:
        By the attacks' own names, in order.

    Raises:
        MorelError: a name that is none, a step size out of range, or two attacks that would be
            recorded under one name.
    """
    attacks: dict[str, Attack] = {}
    for name in names:
        attack = _make(name, ball)
        other = attacks.setdefault(attack.name, attack)
        if other.describe() != attack.describe():
            raise MorelError(
                f"attack {name!r}: another one of those asked for would be recorded under the same "
                f"name, {attack.name}, but is not the same: leave one of them out"
            )
    return attacks


def preset(name: Preset, ball: AttackConfig) -> dict[str, Attack]:
    """A customary set of attacks.

    quick: FGSM and PGD-20 at its worst iterate, in ``ball``. Seconds; an upper bound.

    standard: AutoAttack at ε = 8/255 (ℓ2: 0.5), of ``ball`` the norm alone. It counts the worst
    iterate and attacks only images that are right when clean: the number that RobustBench lists.

    paper: what the published code measures, ℓ∞ with ε = 0.031 whatever ``ball``: FGSM with one step
    of ε, PGD-20 and PGD-100 with steps of 0.003 from the image itself, cross-entropy, the last
    iterate, and CW∞. There it is an attack that ignores ε; here PGD-30 on the margin with the same
    steps, which the record says.

    Raises:
        MorelError: a name that is none.
    """
    if name == "quick":
        return make_attacks(["fgsm", "pgd20_worst"], ball)
    if name == "standard":
        return make_attacks(["autoattack"], replace(ball, eps=STANDARD_EPS[ball.norm]))
    if name == "paper":
        attacks = _published()
        return {attack.name: attack for attack in attacks}
    raise MorelError(f"preset {name!r} is unknown; known: {', '.join(get_args(Preset))}")


def at_radii(ball: AttackConfig, radii: Sequence[float]) -> list[AttackConfig]:
    """The ball at each radius, for an ε-sweep; its step size grows with it.

    Raises:
        ConfigError: a radius out of range.
    """
    share = ball.step_size / ball.eps
    return [replace(ball, eps=eps, step_size=share * eps) for eps in radii]


def _make(name: str, ball: AttackConfig) -> Attack:
    eps, norm = ball.eps, ball.norm
    if match := STEPS.fullmatch(name):
        return _steps(name, match, ball)
    if name == "fgsm":
        return PGD(eps=eps, step_size=eps, num_steps=1, norm=norm, init="none")
    if match := SQUARE.fullmatch(name):
        return AutoAttackPart(part="square", eps=eps, norm=norm, queries=int(match[1]))
    if name in get_args(Part):
        return AutoAttackPart(part=cast(Part, name), eps=eps, norm=norm)
    if name in ("autoattack", "autoattack_plus"):
        version = "plus" if name.endswith("plus") else "standard"
        return AutoAttack(eps=eps, norm=norm, version=version)
    raise MorelError(f"attack {name!r} is unknown; known: {KNOWN}")


def _steps(name: str, match: re.Match[str], ball: AttackConfig) -> PGD:
    """PGD or CW of the name's parts."""
    attack = PGD.from_config(ball, "ce")
    step_size = attack.step_size
    if match["step"]:
        step_size = float(match["step"]) / (255 if match["level"] else 1)
    try:
        return replace(
            attack,
            loss="cw" if match["kind"] == "cw" else attack.loss,
            num_steps=int(match["steps"]),
            restarts=int(match["restarts"] or 1),
            step_size=step_size,
            show_step=step_size != attack.step_size,
            iterate="worst" if match["worst"] else "last",
        )
    except ConfigError as error:
        raise MorelError(f"attack {name!r}: {error}") from error


def _published() -> list[PublishedPGD]:
    start = PublishedPGD(
        eps=PUBLISHED_EPS, step_size=PUBLISHED_STEP, num_steps=20, init="none", iterate="last"
    )
    return [
        replace(start, num_steps=1, step_size=PUBLISHED_EPS),
        start,
        replace(start, num_steps=100),
        replace(start, num_steps=30, loss="cw", differs=CW_DIFFERS),
    ]
