"""Which of a run's robust accuracies count: those in the ball that it was judged in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
_BALL = re.compile(r"(?:^|_)(linf|l2)_([^_]+)")


def ball(attack: str) -> str:
    """Norm and ε in an attack's recorded name, as in ``linf_8-255``; empty where there is none."""
    found = _BALL.search(attack)
    return f"{found[1]}_{found[2]}" if found else ""


def inside(by_attack: Mapping[str, T], judge: str) -> dict[str, T]:
    """What was measured in the ball of the attack ``judge``; all of it where nothing was.

    Names without a ball, such as a worst case, stay.
    """
    found = {name: value for name, value in by_attack.items() if ball(name) in ("", ball(judge))}
    return found or dict(by_attack)
