"""What a person sees of a search: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.config import tracking_uri
from orchestrator.messages.display import Display
from orchestrator.messages.wording import percent, with_interval
from orchestrator.search.selection import (
    VERIFYING,
    front,
    front_rows,
    left_out,
    result_lines,
    verified_summary,
)
from orchestrator.search.trial import Trial
from orchestrator.tracking.records import evaluation_label, ladder_label
from orchestrator.training.view import print_where, test_line

if TYPE_CHECKING:
    from orchestrator.search.result import SearchResult
    from orchestrator.search.space import SearchConfig

STATES = {
    "running": "cyan",
    "finished": "green",
    "stopped": "yellow",
    "diverged": "red",
    "failed": "red",
}


def trial_table(
    trials: Sequence[Trial],
    attack: str,
    *,
    winner: Trial | None = None,
    on_front: Sequence[Trial] = (),
) -> Table:
    """All trials: the best epoch's held-out accuracies, and why each stopped."""
    members = {trial.run_id for trial in on_front}
    table = Table(title_justify="left", caption_justify="left", header_style="bold")
    with_rungs, with_verified = any(t.rung for t in trials), any(t.standing for t in trials)
    table.add_column("#", justify="right")
    table.add_column("trial", overflow="fold")
    table.add_column("clean %", justify="right")
    table.add_column("robust % [95 %]", justify="right", no_wrap=True)
    if with_rungs:
        table.add_column("rung", justify="right")
    if with_verified:
        table.add_column("verified % [95 %]", justify="right", no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("s", justify="right")
    table.add_column("why it stopped", overflow="fold")
    for trial in trials:
        mark = "+ " if trial.run_id in members else ""
        mark = "* " if winner is not None and trial.run_id == winner.run_id else mark
        ended = [trial.reason or trial.state, *_remarks(trial)]
        cells = [
            str(trial.number),
            Text(mark + trial.label),
            percent(trial.last.get("best_clean_accuracy")),
            with_interval(trial.last, "best_robust_accuracy"),
            *([str(trial.rung or "–")] if with_rungs else []),
            *([_verified_cell(trial)] if with_verified else []),
            str(trial.epoch),
            f"{trial.seconds:.0f}",
            Text("; ".join(ended), style=STATES[trial.state]),  # it may hold brackets
        ]
        table.add_row(*cells)
    table.caption = f"held-out accuracies of each trial's best epoch; attack: {attack}"
    if members:
        table.caption += "; + on the front, * winner"
    return table


def front_table(search: SearchConfig, trials: Sequence[Trial]) -> Table:
    """The front of clean and robust accuracy, the most robust trial first."""
    title = f"front of clean and robust accuracy ({evaluation_label(search.base)})"
    table = Table(title=title, title_justify="left", header_style="bold")
    rows = front_rows(search, trials)
    for heading in rows[0] if rows else ["no trial"]:
        table.add_column(Text(heading), justify="left" if heading == "trial" else "right")
    for row in rows:
        table.add_row(*map(Text, row.values()))  # a label may hold brackets
    return table


def _remarks(trial: Trial) -> list[str]:
    """What else there is to say of it: why it was run again, whose training it took over."""
    twin = [f"taken over from {trial.twin}"] if trial.twin else []
    return [*twin, *(f"again: {why}" for why in trial.retries)]


def _verified_cell(trial: Trial) -> Text:
    """A candidate's verified accuracy, marked where it means nothing."""
    if trial.verified is None:
        return Text("…" if trial.standing == VERIFYING else "failed" if trial.standing else "–")
    numbers = with_interval(trial.verified.worst_case, "accuracy")
    return Text(f"{numbers} masked", style="red") if trial.verified.masking else Text(numbers)


def _state(trial: Trial) -> str:
    """How a trial stands, in a line."""
    if not trial.last and not trial.reason:
        return "started"
    if trial.standing:
        return trial.standing
    numbers = f"epoch {trial.epoch}"
    if "robust_accuracy_low" in trial.last:  # else it diverged, or is measured beside training
        numbers += (
            f", clean {percent(trial.last['clean_accuracy'])} %"
            f", robust {with_interval(trial.last, 'robust_accuracy')} %"
        )
    return f"{trial.reason}; {numbers}" if trial.reason else numbers


class SearchProgress(Display):
    """A table that is redrawn on a terminal; elsewhere one line for each thing that happens."""

    def __init__(self, console: Console, attack: str, total: int) -> None:
        super().__init__(console)
        self.attack = attack
        self.total = total
        self.said: dict[str, str] = {}
        self.remarked: dict[str, int] = {}

    def update(self, trials: Sequence[Trial]) -> None:
        """See `orchestrator.search.trials.View`."""
        if self.console.is_terminal:
            done = sum(trial.state != "running" for trial in trials)
            table = trial_table(trials, self.attack)
            table.title = f"{done} of {self.total} trials done"
            self.live.update(table)
            return
        if not trials:
            self.console.print(f"{self.total} trials; starting Ray", highlight=False)
        for trial in trials:
            head = f"trial {trial.number}/{self.total} {trial.label}: "
            remarks = _remarks(trial)
            for remark in remarks[self.remarked.get(trial.run_id, 0) :]:
                self.say(head + remark)
            self.remarked[trial.run_id] = len(remarks)
            line = head + _state(trial)
            if self.said.get(trial.run_id) != line:
                self.said[trial.run_id] = line
                self.say(line)


# --- the end of a search -------------------------------------------------------------------------


def search_summary(result: SearchResult) -> dict[str, Any]:
    """A finished search, plain."""
    keys = ("clean_accuracy", "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high")
    search, out = result.search, left_out(result.search, result.trials)
    return {
        "name": search.base.name,
        "experiment": search.base.tracking.experiment,
        "tracking_uri": tracking_uri(search.base),
        "attack": evaluation_label(search.base),
        "seconds": result.seconds,
        "cost": vars(result.cost),
        "cut": result.cut or None,
        "recorded": result.recorded,
        "winner": result.winner.run_id if result.winner else None,
        "front": [trial.run_id for trial in front(search, result.trials)],
        "trials": [
            {
                "run_id": trial.run_id,
                "number": trial.number,
                "label": trial.label,
                "state": trial.state,
                "stop_reason": trial.reason,
                "epochs": trial.epoch,
                "seconds": trial.seconds,
                "cost": {
                    key.removeprefix("cost."): value
                    for key, value in result.search.resources.cost(trial.held).items()
                },
                "params": trial.params,
                **{key: trial.last.get(f"best_{key}") for key in keys},
                "rung": trial.rung or None,
                "left_out": out.get(trial.run_id),
                "verified": verified_summary(trial, result.winner),
                "test": trial.test,
                "untested": trial.untested or None,
            }
            for trial in result.trials
        ],
    }


def print_search(console: Console, result: SearchResult) -> None:
    """The table of trials, the winner, and where to look."""
    search, winner = result.search, result.winner
    both = search.objective.metric == "tradeoff"
    members = front(search, result.trials) if both else []
    attack = ladder_label(search.base)
    table = trial_table(result.trials, attack, winner=winner, on_front=members)
    table.title = f"{search.base.name}: {len(result.trials)} trials in {result.seconds:.0f} s"
    table.caption = f"{table.caption}; training cost {result.cost}"
    console.print(table)
    if result.cut:
        missing = search.total_trials - len(result.trials)
        console.print(f"{result.cut}: {missing} of {search.total_trials} trials were not started")
    if members:
        console.print(front_table(search, result.trials))
    for line in result_lines(search, result.trials, winner):
        console.print(line, markup=False)
    if winner is not None:
        console.print(f"On the test set: {final_line(winner)}", markup=False)
    for trial in result.trials:
        if trial is not winner and (trial.test or trial.untested):
            head = f"Test set, trial {trial.number} ({trial.label})"
            console.print(f"{head}: {final_line(trial)}", markup=False)
    print_where(console, search.base, result.recorded)


def final_line(trial: Trial) -> str:
    """A trial's numbers on the test set, or why there are none."""
    return f"not measured: {trial.untested}" if trial.untested else test_line(trial.test)
