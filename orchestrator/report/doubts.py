"""What a reader must know before believing the numbers, each with what to do about it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.compare.runs import UNMASKED, RunRecord
from orchestrator.report.answer import place, quoted
from orchestrator.report.ball import ball_of
from orchestrator.report.data import Recorded, Trial

NOTHING = ("", UNMASKED)
"""Values of a tag that are no reason to doubt."""
LISTED = 12
"""So many runs of one kind of doubt are named."""


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """A warning."""

    what: str
    where: list[str]
    """Runs and what was recorded of each; empty where it is about all."""
    todo: str
    """A command, or what to think of it."""


TAGGED = {
    "morel.masking": (
        "Signs of masked gradients: attacks may have failed, rather than the network held.",
        "morel evaluate {run} --attacks autoattack{eps}{where}",
    ),
    "morel.warnings": (
        "An evaluation found reason to doubt its numbers.",
        "morel evaluate {run} --attacks apgd-ce apgd-t square autoattack{eps}{where}",
    ),
    "morel.differs": (
        "Trained otherwise than the recorded config says.",
        "morel reproduce {run}{where} on a device with more memory",
    ),
    "morel.code_changes": (
        "Resumed under other code than it was begun with (--force-code).",
        "morel reproduce {run}{where}",
    ),
    "morel.retry": (
        "Failed once and went on from its last checkpoint.",
        "{logs} shows the error",
    ),
    "morel.not_measured": (
        "Epochs were left without a measurement.",
        "the best epoch may be among them: morel reproduce {run}{where}",
    ),
    "morel.nonfinite_metrics": (
        "Some recorded numbers were not finite and are left out.",
        "{logs}; a smaller optimizer.lr or optimizer.clip_norm often helps",
    ),
    "morel.rejected": (
        "MLflow refused part of the record: numbers are missing.",
        "the journal in the run's storage folder has them",
    ),
    "morel.missing_artifacts": (
        "Files were gone before they could be recorded.",
        "morel reproduce {run}{where} makes them again",
    ),
}


def doubts(recorded: Recorded) -> list[Doubt]:
    """All of them, what concerns the winner's numbers first."""
    found = list(_about_all(recorded))
    for key, (what, todo) in TAGGED.items():
        tagged = [run for run in recorded.runs if run.tags.get(key, UNMASKED) not in NOTHING]
        if tagged:
            lines = [f"{run.run_id}: {run.tags[key]}" for run in tagged]
            todo = _filled(todo, recorded, tagged)
            found.append(Doubt(what=what, where=_listed(lines), todo=todo))
    found += _endings(recorded)
    if recorded.gaps:
        found.append(
            Doubt(
                what="Parts of the record could not be read and are missing here.",
                where=_listed(recorded.gaps),
                todo="make MLflow's artifact store reachable and repeat morel report",
            )
        )
    return found


def _about_all(recorded: Recorded) -> Iterator[Doubt]:
    if recorded.provisional and recorded.winner is not None and recorded.subject is not None:
        yield Doubt(
            what="The search has not chosen a winner: what is shown as such is the best so far.",
            where=[],
            todo=f"morel status {recorded.subject.run_id}; its command goes on with it",
        )
    yield Doubt(
        what="Held-out numbers are the largest of several noisy ones (epochs and trials chosen on "
        "the same images): they are biased upwards, the more so for the winner. Verified ones are "
        "of images that served the search too; only test images served no choice.",
        where=[],
        todo=_filled(
            "morel evaluate {run} --attacks autoattack{eps}{where} measures on the test set",
            recorded,
            recorded.runs,
        ),
    )
    cheap = [t for t in recorded.trials if not t.whole and t.any_robust]
    if cheap:
        attacks = {a for t in cheap for a in t.run.robust("holdout")} - {cheap[0].attack}
        by = f", some by other attacks ({', '.join(sorted(attacks))})" if attacks else ""
        yield Doubt(
            what=f"{len(cheap)} trials did not come to their end{by}: their numbers compare with "
            "no others and stand in no picture of accuracies.",
            where=[],
            todo=_filled(
                "morel fork {run} name=whole{where} trains one to its end",
                recorded,
                [trial.run for trial in cheap],
            ),
        )
    seeds = {run.tags.get("morel.seed") for run in recorded.runs} - {None}
    if len(seeds) == 1:
        yield Doubt(
            what="One seed: intervals are over images, and say nothing of training again.",
            where=[],
            todo=_filled(
                "morel campaign compares methods over seeds; morel fork {run} seed=1{where} adds "
                "one",
                recorded,
                recorded.runs,
            ),
        )
    commits = Counter(run.tags.get("morel.commit", "unknown") for run in recorded.runs)
    if len(commits) > 1:
        yield Doubt(
            what="The runs are of different code.",
            where=[f"{commit}: {count} runs" for commit, count in commits.most_common()],
            todo="compare only runs of one commit, or repeat the others",
        )
    dirty = [commit for commit in commits if commit.endswith("-dirty") or commit == "unknown"]
    if dirty:
        yield Doubt(
            what="The code had changes that no commit holds, or its commit is unknown.",
            where=dirty,
            todo=_filled(
                "morel.diff on a run is the hash of its changes: morel reproduce {run}{where} "
                "compares it",
                recorded,
                [run for run in recorded.runs if run.tags.get("morel.commit", "unknown") in dirty],
            ),
        )
    if int(recorded.config.get("scaling", {}).get("num_workers", 1)) > 1:
        yield Doubt(
            what="Each worker's BatchNorm sees its own slice of a batch: other numbers of workers "
            "train another network.",
            where=[],
            todo="keep scaling.num_workers when reproducing",
        )
    if int(recorded.config.get("training", {}).get("micro_batches", 1)) > 1:
        yield Doubt(
            what="training.micro_batches > 1: BatchNorm's statistics are those of slices.",
            where=[],
            todo="keep training.micro_batches when reproducing",
        )


def _endings(recorded: Recorded) -> Iterator[Doubt]:
    for states, what, todo in (
        (
            ("failed", "diverged"),
            "Failed or diverged: they have no final numbers.",
            "{logs}",
        ),
        (
            ("running", "killed", "scheduled"),
            "Not over yet, or interrupted.",
            "the search's command with the same name goes on with them",
        ),
    ):
        such = [trial for trial in recorded.trials if trial.state in states]
        if such:
            lines = [f"{trial.name}: {trial.run.stop_reason}" for trial in such]
            todo = _filled(todo, recorded, [trial.run for trial in such])
            yield Doubt(what=what, where=_listed(lines), todo=todo)


def _filled(todo: str, recorded: Recorded, runs: Sequence[RunRecord]) -> str:
    """``todo`` for the winner if it is among the runs, else for the first that was trained."""
    trained = [trial for trial in recorded.trials if trial.run in runs]
    one = recorded.winner if recorded.winner in trained else next(iter(trained), None)
    ball = ball_of(recorded)
    return todo.format(
        run=quoted(one) if one else "RUN",
        where=place(recorded),
        eps=f" --eps {ball.radius()}" if ball else "",
        logs=_logs(one, runs),
    )


def _logs(one: Trial | None, runs: Sequence[RunRecord]) -> str:
    if one is None or one.run.kind != "trial":
        return "morel logs SEARCH TRIAL"
    several = sum(run.trained for run in runs) > 1
    number = one.run.tags.get("morel.number", "")
    return f"morel logs {shlex.quote(one.run.search or '')}" + ("" if several else f" {number}")


def _listed(lines: Sequence[str]) -> list[str]:
    more = len(lines) - LISTED
    return [*lines[:LISTED], *([f"and {more} more"] if more > 0 else [])]
