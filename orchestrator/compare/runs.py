"""Recorded runs, from MLflow alone.

Reads the names that training records: ``best.holdout.clean``, ``best.holdout.robust.<attack>``
(the best epoch on the held-out split), ``holdout.*`` (each epoch), ``test.*`` (winners), all with
``_low`` and ``_high`` beside them for the 95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from morel_core.errors import MorelError, check
from morel_core.registry import suggestion
from orchestrator.compare.attacks import inside
from orchestrator.config import NOT_SCIENTIFIC
from orchestrator.messages.masking import masked, masked_address
from orchestrator.tracking.connection import open_client
from orchestrator.tracking.parameters import all_params, all_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PAGE = 1_000
SPLITS: tuple[Literal["holdout", "test"], ...] = ("holdout", "test")
LINEAGE = "morel.pbt.lineage"
"""Tag of a trial under pbt: when it took over whose network, and settings near that one's."""
UNMASKED = "no evidence"
"""The tag ``morel.masking`` of a network whose verification found no masked gradients."""
ATTACK_DETAILS = tuple(f"evaluation.attack.{key}" for key in ("step_size", "init", "init_scale"))
"""What an attack's name does not tell."""


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
    def trained(self) -> bool:
        """Whether it is a training or a trial: searches and campaigns have no numbers."""
        return self.kind not in ("search", "campaign")

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
    def whole(self) -> bool:
        """Whether it came to its own end: not stopped early, failed, diverged or still at work."""
        return self.status == "FINISHED" and self.tags.get("morel.state", "finished") == "finished"

    @property
    def eligible(self) -> bool:
        """Whether it may be among the best: whole, with its search's constraints, not masked."""
        kept = self.tags.get("morel.missed", "nothing") == "nothing"
        return self.whole and kept and self.tags.get("morel.masking", UNMASKED) == UNMASKED

    @property
    def judge(self) -> str:
        """The attack whose numbers decide about it; empty where that was not recorded."""
        return self.tags.get("morel.attack.evaluation", "")

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

    def judged(self, split: Literal["holdout", "test"]) -> dict[str, Score]:
        """Of `robust` what was measured in the ball of its `judge`."""
        return inside(self.robust(split), self.judge)

    def verified(self) -> Score | None:
        """Robust accuracy that a search verified: right under every attack of its verification."""
        found = self._robust("verified.")
        return found.get("worst_case") or next(iter(found.values()), None)

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


def varied_params(runs: Sequence[RunRecord]) -> list[str]:
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


def rounded(text: str) -> str:
    """A setting for reading: fractions with 4 significant digits."""
    if not any(mark in text for mark in ".e"):
        return text
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def shared_attacks(
    runs: Sequence[RunRecord], split: Literal["holdout", "test"], attack: str | None = None
) -> list[str]:
    """Attacks by which runs are compared, the foremost first.

    On held-out images that is the one that decided about most runs; then, as on the test set, that
    in the runs' ball with which most were measured, and of several the strongest.

    ``attack``: this one alone, if it was measured on this split. Raises `ConfigError` where no run
    was measured with it at all.
    """
    if attack is not None:
        known = {name for run in runs for kind in SPLITS for name in run.robust(kind)}
        check(attack in known, "--attack", attack, suggestion(attack, sorted(known)))
        if any(attack in run.robust(split) for run in runs):
            return [attack]
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, score in run.judged(split).items():
            found.setdefault(name, []).append(score.value)
    judges = [run.judge for run in runs if split == "holdout"]
    return sorted(found, key=lambda n: (-judges.count(n), -len(found[n]), fmean(found[n]), n))


def measured_differently(runs: Sequence[RunRecord]) -> list[str]:
    """A note where accuracies do not compare although the attacks have one name; else none."""
    measured = [run for run in runs if run.robust("holdout") or run.robust("test")]
    asked = {key: {run.params.get(key) for run in measured} for key in ATTACK_DETAILS}
    asked["data"] = {run.dataset for run in measured if run.dataset}
    differing = [key for key, values in asked.items() if len(values) > 1]
    if not differing:
        return []
    return [
        f"The runs were measured differently ({', '.join(differing)}): their accuracies do not "
        "compare, and none is said to be on a front."
    ]


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
        runs = sorted(_whole(_all_runs(client, found.experiment_id)), key=_order)
    except MlflowException as error:
        raise MorelError(f"{masked_address(uri)}: {masked(str(error)).splitlines()[0]}") from error
    return runs if search is None else of_search(runs, search, experiment)


def load_all(uri: str, experiments: Sequence[str], searches: Sequence[str] = ()) -> list[RunRecord]:
    """`load_runs` of several experiments, and of several searches wherever they are.

    Raises `MorelError` for an experiment that there is not, or a search that is in none of them.
    """
    by_experiment = {name: load_runs(uri, name) for name in experiments}
    if not searches:
        return [run for runs in by_experiment.values() for run in runs]
    found: list[RunRecord] = []
    for search in searches:
        members = {name: _members(runs, search) for name, runs in by_experiment.items()}
        if not any(members.values()):
            every = [run for runs in by_experiment.values() for run in runs]
            return of_search(every, search, ", ".join(experiments))  # says so
        found += [run for runs in members.values() for run in runs]
    return found


def _all_runs(client: MlflowClient, experiment_id: str) -> list[RunRecord]:
    runs: list[RunRecord] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], max_results=_PAGE, page_token=token)
        runs.extend(_record(run) for run in page if "morel.run_id" in run.data.tags)
        token = page.token
        if not token:
            return runs


def _whole(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs; trials with the parameters and tags that only their search's run has, too."""
    searches = {run.mlflow_id: run for run in runs if run.kind == "search"}
    whole: list[RunRecord] = []
    for run in runs:
        search = searches.get(run.parent_mlflow_id or "")
        if run.kind == "trial" and search is not None:
            params, tags = all_params(run.params, search.params), all_tags(run.tags, search.tags)
            run = replace(run, params=params, tags=tags)
        whole.append(run)
    return whole


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


def of_search(runs: list[RunRecord], search: str, experiment: str) -> list[RunRecord]:
    """Those of ``runs`` that `load_runs` gives for a search; raises `MorelError` if it is none."""
    members = _members(runs, search)
    if not members:
        known = sorted({run.search for run in runs if run.search})
        raise MorelError(
            f"search {search!r} is not in experiment {experiment!r}: {suggestion(search, known)}"
        )
    return members


def _members(runs: Sequence[RunRecord], search: str) -> list[RunRecord]:
    """The runs of a campaign, or of the search of that name which began last; maybe none."""
    campaigns = [run for run in runs if run.tags.get("morel.campaign") == search]
    members = [run for run in runs if run.search == search] or campaigns
    parents = [run for run in members if run.kind == "search"]
    if campaigns or len(parents) < 2:
        return members
    last = parents[-1].mlflow_id
    return [run for run in members if last in (run.mlflow_id, run.parent_mlflow_id)]
