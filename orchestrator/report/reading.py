"""Reads what MLflow holds, once.

A part that cannot be read is missing from the report, not an error: `Recorded.gaps` says why.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from morel_core.errors import MorelError
from orchestrator.compare.runs import RunRecord, load_runs, of_search
from orchestrator.compare.table import comparison_table
from orchestrator.report.data import Measured, Recorded, Step, Trial, robust_first
from orchestrator.tracking.connection import open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from orchestrator.campaign.report import Report

TOP = 4
"""So many of the best trials have curves and evaluation records in the report."""


def load(uri: str, experiment: str, search: str | None = None) -> Recorded:
    """Read an experiment's newest search or campaign, or the one of that name.

    Args:
        uri: the tracking URI.
        experiment: its name. One with trainings alone is reported as a whole.
        search: name of a search or campaign.

    Raises:
        MorelError: MLflow does not answer, or nothing of that name is there.
    """
    everything = load_runs(uri, experiment)
    tops = [run for run in everything if not run.trained and run.parent_mlflow_id is None]
    name = search or (tops[-1].run_id if tops else None)
    runs = of_search(everything, name, experiment) if name else everything
    if not any(run.trained for run in runs):
        raise MorelError(
            f"experiment {experiment!r} has no trained run yet: morel tune or morel train records "
            "one; morel status NAME tells how a search is"
        )
    subject = next((run for run in runs if not run.trained and run.run_id == name), None)
    reader = _Reader(open_client(uri, create=False))
    attack = _deciding_attack(runs, subject)
    trials = _trials(reader, runs, attack)
    of_campaign = subject is not None and subject.kind == "campaign"
    campaign = reader.campaign(subject) if subject and of_campaign else None
    chosen = _best_replicate(campaign) if campaign else ""
    chosen = chosen or (subject.tags.get("morel.winner_run", "") if subject else "")
    definition = reader.yaml(subject) if subject else {}
    winner, provisional = _winner(trials, chosen, definition)
    shown = _shown(trials, winner)
    return Recorded(
        uri=uri,
        experiment=experiment,
        subject=subject,
        runs=runs,
        trials=trials,
        winner=winner,
        provisional=provisional,
        definition=definition,
        config=reader.yaml(winner.run) if winner else {},
        evaluations=[
            found for trial in _evaluated(trials, shown) for found in reader.evaluations(trial.run)
        ],
        curves={trial.run.run_id: reader.curves(trial.run) for trial in shown},
        campaign=campaign,
        others=[run.run_id for run in tops if subject is None or run.run_id != subject.run_id],
        gaps=reader.gaps,
    )


def _deciding_attack(runs: Sequence[RunRecord], subject: RunRecord | None) -> str:
    """The attack of the last rung; of trainings that the most runs share."""
    if subject is not None and subject.tags.get("morel.attack.evaluation"):
        return subject.tags["morel.attack.evaluation"]
    named = [run.tags.get("morel.attack.evaluation", "") for run in runs if run.kind == "train"]
    return max(named, key=named.count, default="")


def _trials(reader: _Reader, runs: Sequence[RunRecord], attack: str) -> list[Trial]:
    found: list[Trial] = []
    singles = [run for run in runs if run.trained]
    several = len({run.search for run in singles}) > 1
    varied = {row.run_id: row.params for row in comparison_table(singles).rows}
    for index, run in enumerate(singles, start=1):
        given = run.tags.get("morel.number", "")
        number = int(given) if given.isdecimal() else index
        name = run.tags.get("morel.baseline") or f"trial {number}"
        if run.kind != "trial":
            name = run.name
        elif run.tags.get("morel.phase") == "replicates":
            name = f"{run.search} seed {run.tags.get('morel.seed', '?')}"
        elif several:  # of a campaign, whose searches count their trials each
            name = f"{run.search} {name}"
        found.append(
            Trial(
                run=run,
                number=index if several else number,
                name=name,
                point=_point(run) or {k: _value(v) for k, v in varied[run.run_id].items()},
                steps=reader.steps(run),
                attack=attack,
            )
        )
    return sorted(found, key=lambda trial: trial.number)


def _point(run: RunRecord) -> dict[str, Any]:
    text = run.tags.get("morel.point")
    try:
        content = json.loads(text) if text else {}
    except ValueError:  # cut off: MLflow takes 8,000 characters
        return {}
    if not isinstance(content, dict):
        return {}
    found = cast("dict[str, Any]", content)
    return {k: v for k, v in found.items() if not isinstance(v, float) or math.isfinite(v)}


def _value(text: str) -> Any:
    """A parameter as MLflow has it, which is text: a number where it is one."""
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def _best_replicate(campaign: Report) -> str:
    """Run id of the first network of the method with the best mean of the primary number."""
    means = {
        row.method: mean.mean for row in campaign.methods if (mean := row.means[campaign.primary])
    }
    best = max(means, key=means.__getitem__, default=None)
    runs = [run for row in campaign.methods if row.method == best for run in row.replicates]
    return next((run.run_id for run in runs if run.test), "")


def _winner(
    trials: Sequence[Trial], chosen: str, definition: Mapping[str, Any]
) -> tuple[Trial | None, bool]:
    """The trial of the run id ``chosen``; else the best so far, and True."""
    for trial in trials:
        if chosen and trial.run.run_id == chosen:
            return trial, False
    could = [trial for trial in trials if trial.eligible]
    objective = definition.get("search", {}).get("objective", {})
    if objective.get("metric") == "clean_accuracy":
        return max(could, key=lambda t: t.clean.value if t.clean else 0.0, default=None), True
    return min(could, key=robust_first, default=None), True


def _shown(trials: Sequence[Trial], winner: Trial | None) -> list[Trial]:
    """The winner, the best few, verified ones too, and the baselines: curves are drawn of them."""
    ranked = sorted(trials, key=robust_first)
    verified = [trial for trial in ranked if trial.verified]
    chosen = [*([winner] if winner else []), *verified[:TOP], *ranked[:TOP]]
    chosen += [trial for trial in trials if trial.baseline][:TOP]
    return list({trial.run.run_id: trial for trial in chosen}.values())


def _evaluated(trials: Sequence[Trial], shown: Sequence[Trial]) -> list[Trial]:
    """Those whose evaluations are read: the shown, and all that were verified or tested."""
    again = ("verified.", "test.")
    measured = [t for t in trials if any(key.startswith(again) for key in t.run.metrics)]
    return list({trial.run.run_id: trial for trial in [*shown, *measured]}.values())


class _Reader:
    """Histories and artifacts, or a gap."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self.gaps: list[str] = []

    def steps(self, run: RunRecord) -> list[Step]:
        """The epochs of a run, in order."""
        if "epoch" not in run.metrics:
            return []
        seconds = {key: dict(self._history(run, key)) for key in ("seconds", "seconds_evaluation")}
        times = {m.step: m.timestamp / 1000 for m in self._entries(run, "epoch")}
        return [
            Step(
                epoch=epoch,
                time=time,
                training_s=seconds["seconds"].get(epoch, 0.0),
                evaluation_s=seconds["seconds_evaluation"].get(epoch, 0.0),
            )
            for epoch, time in sorted(times.items())
        ]

    def curves(self, run: RunRecord) -> dict[str, list[tuple[int, float]]]:
        """Held-out accuracies of each epoch, by metric.

        Later evaluations of the held-out split are recorded under the same names, at step 0.
        """
        keys = [
            key
            for key in sorted(run.metrics)
            if (key == "holdout.clean" or key.startswith("holdout.robust."))
            and not key.endswith(("_low", "_high"))
        ]
        found = {key: [(e, v) for e, v in self._history(run, key) if e > 0] for key in keys}
        return {key: points for key, points in found.items() if points}

    def _history(self, run: RunRecord, key: str) -> list[tuple[int, float]]:
        found = {m.step: m.value for m in self._entries(run, key) if math.isfinite(m.value)}
        return sorted(found.items())

    def _entries(self, run: RunRecord, key: str) -> list[Any]:
        from mlflow.exceptions import MlflowException

        if key not in run.metrics:
            return []
        try:
            return self._client.get_metric_history(run.mlflow_id, key)
        except MlflowException as error:
            self._gap(run, key, error)
            return []

    def evaluations(self, run: RunRecord) -> list[Measured]:
        """The evaluations of a run, those on more images last."""
        if not any(key.partition(".")[2].startswith("robust") for key in run.metrics):
            return []
        paths = self._files(run, "evaluation")
        found = [
            measured
            for path in sorted(paths)
            if path.endswith(".json") and (measured := self._evaluation(run, path, paths))
        ]
        return sorted(found, key=lambda each: len(each.record["outcomes"]["clean"]["correct"]))

    def _evaluation(self, run: RunRecord, path: str, paths: set[str]) -> Measured | None:
        text = self.text(run, path)
        if text is None:
            return None
        try:
            content = json.loads(text)
            record = content.get("evaluation", content)
            _check(record)
            findings = content.get("findings") or content.get("warnings") or []
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._gap(run, path, error)
            return None
        table = path.removesuffix(".json") + ".parquet"
        labels = self._labels(run, table) if table in paths else None
        if labels is not None and len(labels) != len(record["outcomes"]["clean"]["correct"]):
            labels = None
        return Measured(
            run_id=run.run_id, file=path, record=record, findings=findings, labels=labels
        )

    def _labels(self, run: RunRecord, path: str) -> list[int] | None:
        from pyarrow import ArrowException, parquet

        try:
            with self._download(run, path) as file:
                return parquet.read_table(file, columns=["label"])["label"].to_pylist()
        except (ArrowException, OSError, KeyError) as error:
            self._gap(run, path, error)
            return None

    def yaml(self, run: RunRecord) -> dict[str, Any]:
        """``config.yaml`` of a run; empty where it cannot be read."""
        from omegaconf import OmegaConf

        text = self.text(run, "config.yaml")
        try:
            content: Any = OmegaConf.to_container(OmegaConf.create(text or "{}"), resolve=False)
        except Exception as error:  # yaml's errors have no class in common
            self._gap(run, "config.yaml", error)
            return {}
        return content if isinstance(content, dict) else {}

    def campaign(self, run: RunRecord) -> Report | None:
        """The report of a campaign that came to its end."""
        if "report.json" not in self._files(run):
            return None
        from orchestrator.campaign.tables import from_json

        text = self.text(run, "report.json")
        try:
            return from_json(text) if text else None
        except (ValueError, KeyError, TypeError) as error:
            self._gap(run, "report.json", error)
            return None

    def _files(self, run: RunRecord, folder: str | None = None) -> set[str]:
        from mlflow.exceptions import MlflowException

        try:
            return {str(file.path) for file in self._client.list_artifacts(run.mlflow_id, folder)}
        except (MlflowException, OSError) as error:
            self._gap(run, folder or "its files", error)
            return set()

    def text(self, run: RunRecord, path: str) -> str | None:
        """A text artifact; None where there is none."""
        try:
            with self._download(run, path) as file:
                return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._gap(run, path, error)
            return None

    def _download(self, run: RunRecord, path: str) -> _Download:
        return _Download(self._client, run.mlflow_id, path)

    def _gap(self, run: RunRecord, what: str, error: Exception) -> None:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        self.gaps.append(f"{what} of {run.run_id} cannot be read: {reason}")


def _check(record: Any) -> None:
    """Raise ValueError, KeyError or TypeError unless this is the record of an evaluation."""
    outcomes = record["outcomes"]
    images = len(outcomes["clean"]["correct"])
    if not images or any(len(each["correct"]) != images for each in outcomes.values()):
        raise ValueError("not an outcome for each image")
    for each in [*outcomes.values(), *record["worst_case"]]:
        for key in ("accuracy", "low", "high", "eps"):
            float(each[key])
    for each in outcomes.values():
        float(each["seconds"])
    _ = record["split"], record["indices"]


class _Download:
    """An artifact as a local file, as long as the context lasts; raises OSError."""

    def __init__(self, client: MlflowClient, mlflow_id: str, path: str) -> None:
        self._client, self._mlflow_id, self._path = client, mlflow_id, path
        self._folder = tempfile.TemporaryDirectory(prefix="morel-report-")

    def __enter__(self) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.download_artifacts(self._mlflow_id, self._path, self._folder.name)
        except MlflowException as error:
            self._folder.cleanup()
            raise OSError(str(error)) from error

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()
