"""Runs side by side, from MLflow alone.

Reads the names that training records: ``best.holdout.clean``, ``best.holdout.robust.<attack>``
(the best epoch on the held-out split), ``holdout.*`` (each epoch), ``test.*`` (winners), all with
``_low`` and ``_high`` beside them for the 95 % interval.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from morel_core.errors import ConfigError, MorelError
from morel_core.registry import suggestion
from orchestrator.config import NOT_SCIENTIFIC
from orchestrator.masking import masked, masked_address
from orchestrator.tracking.connection import open_client
from orchestrator.tracking.parameters import all_params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from rich.table import Table

Sort = Literal["robust_accuracy", "clean_accuracy", "name", "epochs", "seconds"]

_PAGE = 1_000
_LONG_NUMBER = re.compile(r"\d+\.\d+(e-?\d+)?")
_BIASED = (
    "Held-out accuracies are those of each run's best epoch, chosen on the same images: they are "
    "biased upwards, the more so for the best run of a search. Test accuracies are not."
)
_UNFINISHED = "* latest epoch of a run that has recorded no best epoch."
_ATTACKS_DIFFER = (
    "The runs were measured with different attacks: robust accuracies compare only within one "
    "attack, and rows are sorted within it."
)


@dataclass(frozen=True)
class Score:
    """An accuracy in [0, 1] with its 95 % interval, where one was recorded."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """In per cent: ``"53.1 [50.9, 55.3]"``."""
        if self.low is None or self.high is None:
            return f"{100 * self.value:.1f}"
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class RunRecord:
    """One of our runs as MLflow has it."""

    run_id: str
    mlflow_id: str
    parent_mlflow_id: str | None
    name: str
    kind: str
    """search, trial, train or campaign."""
    search: str | None
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    started: float
    """Unix seconds."""
    ended: float | None
    params: dict[str, str]
    """A trial's with those of its search, which its own run need not have."""
    metrics: dict[str, float]
    tags: dict[str, str]
    dataset: str | None = None
    """First 36 characters of its data's fingerprint, if that was recorded."""

    @property
    def stop_reason(self) -> str:
        """Why it stopped, or that it has not."""
        return self.tags.get("morel.stop_reason") or self.status.lower()

    @property
    def epochs(self) -> int | None:
        """Epochs trained so far."""
        return int(self.metrics["epoch"]) if "epoch" in self.metrics else None

    @property
    def seconds(self) -> float | None:
        """Time spent training, else from start to end."""
        elapsed = None if self.ended is None else self.ended - self.started
        return self.metrics.get("train.seconds", elapsed)

    @property
    def selected(self) -> bool:
        """Whether the held-out numbers are those of the best epoch, not of the latest."""
        return "best.holdout.clean" in self.metrics or bool(self._robust("best.holdout."))

    def clean(self, split: Literal["holdout", "test"]) -> Score | None:
        """Accuracy on unattacked images of ``split``."""
        return self._score(f"{self._prefix(split)}clean")

    def robust(self, split: Literal["holdout", "test"]) -> dict[str, Score]:
        """Accuracy under each attack that was measured on ``split``, by the attack's name."""
        return self._robust(self._prefix(split))

    def _prefix(self, split: Literal["holdout", "test"]) -> str:
        return "best.holdout." if split == "holdout" and self.selected else f"{split}."

    def _robust(self, prefix: str) -> dict[str, Score]:
        prefix += "robust."
        return {
            key.removeprefix(prefix): score
            for key in sorted(self.metrics)
            if key.startswith(prefix)
            and not key.endswith(("_low", "_high"))
            and (score := self._score(key))
        }

    def _score(self, key: str) -> Score | None:
        if key not in self.metrics:
            return None
        return Score(
            self.metrics[key], self.metrics.get(f"{key}_low"), self.metrics.get(f"{key}_high")
        )


@dataclass(frozen=True)
class Row:
    """One run in the table; ``None`` is what was not measured."""

    name: str
    run_id: str
    kind: str
    search: str | None
    clean_accuracy: Score | None
    robust_accuracy: Score | None
    attack: str | None
    test_clean_accuracy: Score | None
    test_robust_accuracy: Score | None
    test_attack: str | None
    selected: bool
    """Held-out numbers of the best epoch (True) or of the latest (False)."""
    epochs: int | None
    seconds: float | None
    stopped: str
    status: str
    baseline: str | None
    method: str | None
    """Of a campaign."""
    params: dict[str, str]
    """Those that differ between the runs of the table."""


@dataclass(frozen=True)
class Comparison:
    """Rows in the order asked for, and what a reader must know about the numbers."""

    rows: list[Row]
    params: list[str] = field(default_factory=lambda: list[str]())
    """Keys that differ between the runs, in order."""
    notes: list[str] = field(default_factory=lambda: list[str]())


def load_runs(uri: str, experiment: str, search: str | None = None) -> list[RunRecord]:
    """Every run of ours in an MLflow experiment, oldest first.

    Args:
        uri: the tracking URI.
        experiment: its name.
        search: only this search and its trials, or all of this campaign. Where several searches
            have used the name, the one that began last.

    Raises:
        MorelError: MLflow does not answer, or the experiment or search is unknown.
    """
    client = open_client(uri, create=False)
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage != "active":
            names = sorted(e.name for e in client.search_experiments())
            raise MorelError(
                f"experiment {experiment!r} is not in {masked_address(uri)}: "
                f"{suggestion(experiment, names)}"
            )
        runs = sorted(_with_all_params(_all_runs(client, found.experiment_id)), key=_order)
    except MlflowException as error:
        raise MorelError(f"{masked_address(uri)}: {masked(str(error)).splitlines()[0]}") from error
    return runs if search is None else _of_search(runs, search, experiment)


def _all_runs(client: MlflowClient, experiment_id: str) -> list[RunRecord]:
    runs: list[RunRecord] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], max_results=_PAGE, page_token=token)
        runs.extend(_record(run) for run in page if "morel.run_id" in run.data.tags)
        token = page.token
        if not token:
            return runs


def _with_all_params(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs; trials with the parameters that only the run of their search has, too."""
    searches = {run.mlflow_id: run.params for run in runs if run.kind == "search"}
    return [
        replace(run, params=all_params(run.params, searches.get(run.parent_mlflow_id or "", {})))
        if run.kind == "trial"
        else run
        for run in runs
    ]


def _order(run: RunRecord) -> tuple[float, bool, str]:
    """By start; MLflow counts milliseconds, so a search may begin in that of its first trials."""
    return run.started, run.kind != "search", run.run_id


def _record(run: Run) -> RunRecord:
    tags: dict[str, str] = run.data.tags
    return RunRecord(
        run_id=tags["morel.run_id"],
        mlflow_id=run.info.run_id,
        parent_mlflow_id=tags.get("mlflow.parentRunId"),
        name=run.info.run_name or tags["morel.run_id"],
        kind=tags.get("morel.kind", "train"),
        search=tags.get("morel.search"),
        status=run.info.status,
        started=run.info.start_time / 1000,
        # MLflow keeps the old end of a run that was resumed.
        ended=run.info.end_time / 1000
        if run.info.end_time and run.info.status != "RUNNING"
        else None,
        params=run.data.params,
        metrics=run.data.metrics,
        tags=tags,
        dataset=next((d.dataset.digest for d in run.inputs.dataset_inputs), None)
        if run.inputs
        else None,
    )


def _of_search(runs: list[RunRecord], search: str, experiment: str) -> list[RunRecord]:
    campaigns = [run for run in runs if run.tags.get("morel.campaign") == search]
    members = [run for run in runs if run.search == search] or campaigns
    if not members:
        known = sorted({run.search for run in runs if run.search})
        raise MorelError(
            f"search {search!r} is not in experiment {experiment!r}: {suggestion(search, known)}"
        )
    parents = [run for run in members if run.kind == "search"]
    if campaigns or len(parents) < 2:
        return members
    last = parents[-1].mlflow_id
    return [run for run in members if last in (run.mlflow_id, run.parent_mlflow_id)]


def comparison_table(runs: Sequence[RunRecord], sort: str = "robust_accuracy") -> Comparison:
    """The trials and trainings among ``runs`` as rows; searches and campaigns have no numbers.

    The highest accuracy comes first, otherwise the lowest value or the first name; what was not
    measured comes last. Robust accuracies of different attacks are never ranked against each other.
    Raises `ConfigError` for a ``sort`` that there is not.
    """
    if sort not in get_args(Sort):
        raise ConfigError("sort", sort, f"one of {', '.join(get_args(Sort))}")
    shown_runs = [run for run in runs if run.kind not in ("search", "campaign")]
    params = _varied(shown_runs)
    holdout_attacks = _by_frequency(run.robust("holdout") for run in shown_runs)
    test_attacks = _by_frequency(run.robust("test") for run in shown_runs)
    rows = [_row(run, params, holdout_attacks, test_attacks) for run in shown_runs]
    rows.sort(key=_sort_key(sort, holdout_attacks))

    notes: list[str] = []
    if any(row.selected for row in rows):
        notes.append(_BIASED)
    if any(not row.selected and row.clean_accuracy for row in rows):
        notes.append(_UNFINISHED)
    if len({row.attack for row in rows if row.attack}) > 1:
        notes.append(_ATTACKS_DIFFER)
    return Comparison(rows, params, notes)


def _varied(runs: Sequence[RunRecord]) -> list[str]:
    """Settings that differ, without a run's name, place and workers.

    Nor with its ladder, a long list: what each number was measured with has a column.
    """
    keys = dict.fromkeys(key for run in runs for key in run.params)
    return [
        key
        for key in keys
        if key.partition(".")[0] not in NOT_SCIENTIFIC
        and key != "evaluation.rungs"
        and len({run.params.get(key) for run in runs}) > 1
    ]


def _by_frequency(measured: Iterable[dict[str, Score]]) -> list[str]:
    """Attacks, the one that most runs share first."""
    counts = Counter(attack for scores in measured for attack in scores)
    return [attack for attack, _ in counts.most_common()]


def _row(
    run: RunRecord, params: list[str], holdout_attacks: list[str], test_attacks: list[str]
) -> Row:
    holdout, test = run.robust("holdout"), run.robust("test")
    attack = next((name for name in holdout_attacks if name in holdout), None)
    test_attack = next((name for name in test_attacks if name in test), None)
    return Row(
        name=run.name,
        run_id=run.run_id,
        kind=run.kind,
        search=run.search,
        clean_accuracy=run.clean("holdout"),
        robust_accuracy=holdout[attack] if attack else None,
        attack=attack,
        test_clean_accuracy=run.clean("test"),
        test_robust_accuracy=test[test_attack] if test_attack else None,
        test_attack=test_attack,
        selected=run.selected,
        epochs=run.epochs,
        seconds=run.seconds,
        stopped=run.stop_reason,
        status=run.status,
        baseline=run.tags.get("morel.baseline"),
        method=run.tags.get("morel.method"),
        params={key: run.params[key] for key in params if key in run.params},
    )


def _sort_key(sort: str, attacks: list[str]) -> Callable[[Row], tuple[Any, ...]]:
    def key(row: Row) -> tuple[Any, ...]:
        if sort == "name":
            return (row.name,)
        value = getattr(row, sort)
        if value is None:
            return (len(attacks), math.inf, row.name)
        if sort == "robust_accuracy":
            return (attacks.index(row.attack or ""), -value.value, row.name)
        number = -value.value if isinstance(value, Score) else value
        return (0, number, row.name)

    return key


# Rendering


def _columns(table: Comparison) -> list[tuple[str, Callable[[Row], str]]]:
    """Heading and cell of every column that has anything in it."""

    def score(value: Score | None, mark: str = "") -> str:
        return f"{value}{mark}" if value else ""

    def held_out(row: Row, value: Score | None) -> str:
        return score(value, "" if row.selected else "*")

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("name", lambda row: row.name),
        ("clean % held-out [95 %]", lambda row: held_out(row, row.clean_accuracy)),
        ("robust % held-out [95 %]", lambda row: held_out(row, row.robust_accuracy)),
        ("attack", lambda row: row.attack or ""),
    ]
    if any(row.test_clean_accuracy or row.test_robust_accuracy for row in table.rows):
        columns += [
            ("clean % test [95 %]", lambda row: score(row.test_clean_accuracy)),
            ("robust % test [95 %]", lambda row: score(row.test_robust_accuracy)),
            ("test attack", lambda row: row.test_attack or ""),
        ]
    columns += [
        ("epochs", lambda row: "" if row.epochs is None else str(row.epochs)),
        ("seconds", lambda row: "" if row.seconds is None else f"{row.seconds:.1f}"),
        ("why it stopped", lambda row: row.stopped),
    ]
    if any(row.baseline for row in table.rows):
        columns.append(("baseline", lambda row: row.baseline or ""))
    if any(row.method for row in table.rows):
        columns.append(("method", lambda row: row.method or ""))
    columns += [(key, lambda row, key=key: _short(row.params.get(key, ""))) for key in table.params]
    return columns


def _short(text: str) -> str:
    """A parameter for reading: fractions with 4 significant digits; CSV and JSON have them all."""
    if not any(mark in text for mark in ".e"):
        return text
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def render_rich(table: Comparison, title: str | None = None) -> Table:
    """For a terminal: what all rows share stands below, with the notes, as the caption.

    The settings that differ share one column by the last part of their names; the other formats
    give each a column of its own.
    """
    from rich.markup import escape
    from rich.table import Table

    several = len({row.search for row in table.rows}) > 1
    rich_table = Table(title=title, caption_justify="left", title_justify="left")
    for heading in ("run", "clean %", "robust % [95 %]", "epochs", "seconds"):
        right = heading != "run"
        rich_table.add_column(
            escape(heading), justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    rich_table.add_column("why it stopped", overflow="fold")
    if table.params:
        rich_table.add_column("settings that differ", overflow="fold", ratio=1)
    for row in table.rows:
        mark = "" if row.selected else "*"
        cells = [
            _short_name(row, with_search=several),
            "" if row.clean_accuracy is None else f"{100 * row.clean_accuracy.value:.1f}{mark}",
            f"{row.robust_accuracy}{mark}" if row.robust_accuracy else "",
            "" if row.epochs is None else str(row.epochs),
            "" if row.seconds is None else f"{row.seconds:.0f}",
            row.stopped,
        ]
        cells += [_settings(row, table.params)] if table.params else []
        rich_table.add_row(*(escape(cell) for cell in cells))
    tested = [_test_line(row, with_search=several) for row in table.rows if row.test_clean_accuracy]
    notes = [_attacks_line(table), *tested, *table.notes]
    rich_table.caption = escape("\n".join(note for note in notes if note))
    return rich_table


def _test_line(row: Row, *, with_search: bool) -> str:
    """A run's numbers on the test set: few runs have them, so they stand below the table."""
    line = f"Test set, {_short_name(row, with_search=with_search)}: clean {row.test_clean_accuracy}"
    return f"{line}, robust {row.test_robust_accuracy} ({row.test_attack})."


def _settings(row: Row, params: Sequence[str]) -> str:
    """``alpha=0.1 temperature=0.05``; long numbers are cut, the other formats have them whole."""

    return " ".join(
        f"{key.rpartition('.')[2]}={_LONG_NUMBER.sub(_cut, row.params[key])}"
        for key in params
        if key in row.params and not key.startswith("search.")  # what others were derived from
    )


def _cut(number: re.Match[str]) -> str:
    return f"{float(number[0]):.3g}"


def _short_name(row: Row, *, with_search: bool) -> str:
    """A trial by its number and, if it is one, its baseline: its settings have a column."""
    if row.kind != "trial":
        return row.name
    number = row.name.partition(" ")[0]
    place = f"{row.search}/{number}" if with_search else number
    return f"{place} {row.baseline or ''}".strip()


def _attacks_line(table: Comparison) -> str:
    """The attacks behind the held-out robust accuracies."""
    attacks = sorted({row.attack for row in table.rows if row.attack})
    return f"Held-out accuracies of each run's best epoch; attack: {', '.join(attacks)}."


def to_markdown(table: Comparison) -> str:
    """A GitHub table, and the notes below it."""
    columns = _columns(table)

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(heading for heading, _ in columns), line("---" for _ in columns)]
    lines += [line(cell(row) for _, cell in columns) for row in table.rows]
    lines += ["", *(note.replace("*", "\\*") + "\n" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def to_csv(table: Comparison) -> str:
    """Unrounded numbers, a column each; accuracies in [0, 1], an empty cell for None."""
    records = [_flat(row, table.params) for row in table.rows]
    stream = io.StringIO()
    if records:
        writer = csv.DictWriter(stream, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return stream.getvalue()


def to_json(table: Comparison) -> str:
    """One document: ``rows``, ``params`` and ``notes``; accuracies in [0, 1]."""
    return json.dumps(asdict(table), indent=2)


def _flat(row: Row, params: list[str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for key, value in asdict(row).items():
        if key.endswith("_accuracy"):
            score = value or {"value": None, "low": None, "high": None}
            record |= {key: score["value"], f"{key}_low": score["low"]}
            record[f"{key}_high"] = score["high"]
        elif key != "params":
            record[key] = value
    return record | {f"params.{key}": row.params.get(key) for key in params}
