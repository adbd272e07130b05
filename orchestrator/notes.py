"""Notes on the runs' pages in MLflow, in Markdown: what it is, what came out, how to get it again.

MLflow shows the first line in its tables and the first few on a run's page, so the result comes
first. Numbers are those that are recorded, by their recorded names.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from orchestrator.compare.attacks import inside
from orchestrator.compare.runs import Score
from orchestrator.config import RunConfig

SPLITS = {
    "test": "test images",
    "verified": "held-out images, verified",
    "best.holdout": "held-out images, best epoch",
}
WORST = "worst_case"
NO_BREAK = "\u00a0"
GAP = 3 * NO_BREAK
"""The end of a cell."""


class Measured(NamedTuple):
    """One accuracy."""

    split: str
    attack: str | None
    """None: clean."""
    score: Score
    images: int | None

    @property
    def where(self) -> str:
        """Such as ``300 held-out images, best epoch``."""
        return f"{self.images} {SPLITS[self.split]}" if self.images else SPLITS[self.split]

    @property
    def how(self) -> str:
        """`where` after the attack, as in ``pgd20_linf_0.1, 359 test images``."""
        attack = "worst case of these attacks" if self.attack == WORST else self.attack
        return f"{attack}, {self.where}" if attack else self.where


def measured(metrics: Mapping[str, float]) -> list[Measured]:
    """The accuracies among recorded metrics: test before verified before search numbers."""
    return [
        Measured(split, attack, score(metrics, key), _images(metrics, split))
        for split in SPLITS
        for attack, key in [*_robust(metrics, split), (None, f"{split}.clean")]
        if key in metrics
    ]


def counted(metrics: Mapping[str, float], images: int) -> dict[str, float]:
    """``metrics`` with the number of held-out images, which is recorded where it differs alone."""
    return {"best.holdout.images": images, **metrics}


def score(metrics: Mapping[str, float], key: str) -> Score:
    """A recorded accuracy with its interval."""
    return Score(metrics[key], metrics.get(f"{key}_low"), metrics.get(f"{key}_high"))


def strongest(metrics: Mapping[str, float], *splits: str) -> Measured | None:
    """The robust accuracy that counts, of the first of ``splits`` that has one.

    It is the worst case over all attacks, or that under the attack which found most, in the ball
    that the run was trained to be judged in.
    """
    judge = next((attack for attack, _ in _robust(metrics, "best.holdout")), "")
    for split in splits:
        by_attack = {m.attack: m for m in measured(metrics) if m.split == split and m.attack}
        if by_attack:
            found = inside(by_attack, judge)
            return found.get(WORST) or min(found.values(), key=lambda m: m.score.value)
    return None


def clean(metrics: Mapping[str, float], split: str) -> Measured | None:
    """The clean accuracy of a split."""
    return next((m for m in measured(metrics) if m.split == split and not m.attack), None)


def headline(metrics: Mapping[str, float]) -> str:
    """The numbers that count most, in one sentence."""
    best = strongest(metrics, "verified", *SPLITS)
    if best is None:
        return "Nothing was measured."
    unattacked = clean(metrics, best.split)
    sentence = f"Robust accuracy {best.score} % ({best.how})"
    sentence += f", clean {unattacked.score} %" if unattacked else ""
    return f"{sentence}; {'verified' if best.split == 'verified' else 'not verified'}."


def accuracy_table(metrics: Mapping[str, float]) -> str:
    """All accuracies, with what they were measured with."""
    rows = [
        ["robust" if m.attack else "clean", str(m.score).replace(" ", NO_BREAK), m.how]
        for m in measured(metrics)
    ]
    return table(["accuracy", "% [95 %]", "measured with"], rows) if rows else ""


def renewed(note: str, before: Mapping[str, float], now: Mapping[str, float]) -> str:
    """A note that was written with the metrics ``before``, with those that there are ``now``."""
    for part in (headline, accuracy_table):
        if old := part(before):
            note = note.replace(old, part(now))
    return note


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; MLflow leaves no room between columns by itself."""
    lines = [f"| {f'{GAP} | '.join(line)}{GAP} |" for line in [heading, *rows]]
    lines.insert(1, "|" + " :--- |" * len(heading))
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text as one line, in which nothing is a mark of Markdown or ends a cell."""
    return "".join(f"\\{mark}" if mark in "|*`<" else mark for mark in " ".join(text.split()))


def link(text: str, address: str) -> str:
    """``text`` as a link."""
    return f"[{cell(text).replace('[', '(').replace(']', ')')}]({address})"


def commands(config: RunConfig, lines: Mapping[str, str]) -> str:
    """A block of commands with what each does, told where the run is recorded.

    Args:
        config: of the run.
        lines: command → what it does.
    """
    experiment = config.tracking.experiment
    where = "" if experiment == "morel" else f" tracking.experiment={shlex.quote(experiment)}"
    block = "\n".join(f"{command}{where}  # {what}" for command, what in lines.items())
    return f"```\n{block}\n```"


def method_name(config: RunConfig) -> str:
    """``MOREL on TRADES``, or the accuracy objective alone where MOREL is left out."""
    base = config.objective.accuracy.upper()
    return f"MOREL on {base}" if config.objective.morel else base


def train_note(
    config: RunConfig, metrics: Mapping[str, float], *, stop_reason: str, device: str
) -> str:
    """The note of a training run.

    Args:
        config: of the run.
        metrics: what it is recorded with at its end.
        stop_reason: why it ended.
        device: it ran on.
    """
    name = str(config.name)
    metrics = counted(metrics, config.evaluation.num_images or config.data.holdout)
    what = f"{method_name(config)}: {config.model.name} on {config.data.name}, seed {config.seed}"
    cost = f"{metrics['train.seconds']:.0f} s on {config.scaling.in_words} worker(s), {device}"
    return "\n\n".join(
        [
            headline(metrics),
            f"{what}. Ended: {stop_reason}. Cost: {cost}.",
            accuracy_table(metrics),
            commands(
                config,
                {
                    f"morel reproduce {name}": "again, and compared",
                    f"morel evaluate {name} --attacks autoattack": "a stronger attack",
                    f"morel export {name} --to FOLDER": "take the network home",
                },
            ),
        ]
    )


def _robust(metrics: Mapping[str, float], split: str) -> list[tuple[str, str]]:
    """Attack and key of each, the worst case first."""
    prefix = f"{split}.robust."
    keys = [
        key for key in metrics if key.startswith(prefix) and not key.endswith(("_low", "_high"))
    ]
    found = [(key.removeprefix(prefix), key) for key in keys]
    return sorted(found, key=lambda pair: pair[0] != WORST)


def _images(metrics: Mapping[str, float], split: str) -> int | None:
    count = metrics.get(f"{split}.images")
    return int(count) if count else None
