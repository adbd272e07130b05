"""The tracker that writes into MLflow.

Idempotent by a cursor: each run carries the sequence number of its last applied event as the tag
``morel.seq``, written by the same call as that event's numbers. What a crash leaves half done is
done again with the same timestamps, and MLflow keeps one row of each.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from morel_core.errors import MorelError
from orchestrator.messages.masking import masked, masked_address
from orchestrator.tracking.connection import open_client, sqlite_path
from orchestrator.tracking.events import (
    DatasetPayload,
    EpochPayload,
    Event,
    FinalPayload,
    ProgressPayload,
    RegisterPayload,
    StartPayload,
    ViewPayload,
)
from orchestrator.tracking.files import gather
from orchestrator.tracking.logged_model import GONE, log_model
from orchestrator.tracking.note import TAG as NOTE
from orchestrator.tracking.note import linked, merged
from orchestrator.tracking.registry import register
from orchestrator.tracking.saved_view import saved_view, view_page

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag

RUN_ID = "morel.run_id"
STARTED = "morel.started"
SEQ = "morel.seq"
NONFINITE = "morel.nonfinite_metrics"

_PARAM_CHARS = 6_000
_TAG_CHARS = 8_000
_PARAMS_PER_CALL = 100
_METRICS_PER_CALL = 900  # 1,000 with the tags beside them
_TAGS_PER_CALL = 90

# The server's verdict on the request itself; anything else may be otherwise a minute later.
_FINAL_VERDICTS = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
    "INVALID_STATE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
)

T = TypeVar("T")


@dataclass
class _Recorded:
    """What is known of one of our runs in MLflow."""

    mlflow_id: str
    cursor: int
    status: str
    nonfinite: int


class MlflowTracker:
    """Applies events to one MLflow experiment. Made by `connect`, used by one thread.

    A run of ours is found again by the tags ``morel.run_id`` and ``morel.started`` (the time of
    its first event), so that a restart appends to it, while another journal that happens to use
    the same name gets a run of its own.
    """

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self._runs: dict[str, _Recorded] = {}

    @classmethod
    def connect(cls, uri: str, experiment: str) -> MlflowTracker:
        """A tracker of ``experiment``, which is made if need be, in the MLflow at ``uri``.

        Initialises a fresh SQLite database: call it in the driver, before anything else uses it.
        Raises `MorelError` within 10 seconds if there is no such MLflow.
        """
        client = open_client(uri, create=True)
        from mlflow.exceptions import MlflowException

        try:
            return cls(client, _experiment_id(client, uri, experiment))
        except MlflowException as error:
            raise MorelError(
                f"tracking.experiment = {experiment!r} cannot be opened in {masked_address(uri)}: "
                f"{masked(str(error)).splitlines()[0]}"
            ) from error

    def apply(self, event: Event) -> bool:
        """See `Tracker`. Raises ConnectionError while MLflow is out of reach."""
        with _verdicts():
            recorded = self._recorded(event)
            if event.seq <= recorded.cursor:
                return False
            if event.kind == "start":
                self._start(recorded, event, cast(StartPayload, event.payload))
            elif event.kind == "epoch":
                self._epoch(recorded, event, cast(EpochPayload, event.payload))
            elif event.kind == "progress":
                self._progress(recorded, event, cast(ProgressPayload, event.payload))
            elif event.kind == "view":
                self._view(recorded, event, cast(ViewPayload, event.payload))
            elif event.kind == "register":
                self._register(recorded, event, cast(RegisterPayload, event.payload))
            else:
                self._final(recorded, event, cast(FinalPayload, event.payload))
            recorded.cursor = event.seq
        return True

    def reject(self, event: Event, reason: str) -> None:
        """See `Tracker`: the tag ``morel.rejected`` says what is missing from the run."""
        with _verdicts():
            recorded = self._recorded(event)
            if event.kind == "final":
                status = cast(FinalPayload, event.payload)["status"]
                self._client.set_terminated(recorded.mlflow_id, status, event.milliseconds)
                recorded.status = status
            self._log(recorded, event, tags={"morel.rejected": f"{event.key}: {reason}"})
            recorded.cursor = event.seq

    def close(self) -> None:
        """See `Tracker`; MLflow's client holds nothing that must be given back."""

    def mlflow_run_id(self, run_id: str) -> str | None:
        """MLflow's own id of a run that an event was applied to, for links; else None."""
        recorded = self._runs.get(run_id)
        return recorded.mlflow_id if recorded else None

    def cursor(self, first: Event) -> int:
        """Sequence number of the last event applied to the run that began with ``first``.

        -1: none was. Raises ConnectionError while MLflow is out of reach.
        """
        with _verdicts():
            run = self._find(first.run_id, repr(first.time) if first.kind == "start" else None)
        return int(run.data.tags.get(SEQ, -1)) if run else -1

    # Finding runs

    def _recorded(self, event: Event) -> _Recorded:
        if event.run_id not in self._runs:
            started = repr(event.time) if event.kind == "start" else None
            run = self._find(event.run_id, started) or self._create(event)
            tags = run.data.tags
            self._runs[event.run_id] = _Recorded(
                mlflow_id=run.info.run_id,
                cursor=int(tags.get(SEQ, -1)),
                status=run.info.status,
                nonfinite=int(tags.get(NONFINITE, 0)),
            )
        return self._runs[event.run_id]

    def _find(self, run_id: str, started: str | None) -> Run | None:
        """Our run in MLflow; where a request that was repeated has doubled it, one of the two."""
        condition = f"tags.`{RUN_ID}` = '{run_id}'"
        if started is not None:
            condition += f" AND tags.`{STARTED}` = '{started}'"
        found = self._client.search_runs([self._experiment_id], condition)
        if started is None:  # the newest, if several journals have used the name
            return max(found, key=lambda run: run.info.start_time, default=None)
        kept = min(
            found, key=lambda r: (-int(r.data.tags.get(SEQ, -1)), r.info.run_id), default=None
        )
        for run in found:
            if run is not kept and SEQ not in run.data.tags:
                self._client.delete_run(run.info.run_id)
        return kept

    def _create(self, event: Event) -> Run:
        started = repr(event.time)
        tags = {RUN_ID: event.run_id, STARTED: started}
        name = event.run_id
        if event.kind == "start":
            payload = cast(StartPayload, event.payload)
            name = payload["name"]
            tags |= self._parent_tags(payload["parent"])
        run = self._client.create_run(
            self._experiment_id, start_time=event.milliseconds, tags=tags, run_name=name
        )
        # MLflow's client repeats a request whose answer was lost: look again before going on.
        return self._find(event.run_id, started) or run

    def _parent_tags(self, parent: str | None) -> dict[str, str]:
        if parent is None:
            return {}
        tags = {"morel.parent": parent}
        known = self.mlflow_run_id(parent)
        if known is None and (run := self._find(parent, None)):
            known = run.info.run_id
        return tags | ({"mlflow.parentRunId": known} if known else {})

    # Applying events

    def _start(self, recorded: _Recorded, event: Event, payload: StartPayload) -> None:
        from mlflow.entities import Param

        params = [
            Param(key, _param_text(value)[:_PARAM_CHARS])
            for key, value in payload["params"].items()
        ]
        for chunk in _chunks(params[:-_PARAMS_PER_CALL], _PARAMS_PER_CALL):
            self._client.log_batch(recorded.mlflow_id, params=chunk)
        self._client.log_dict(recorded.mlflow_id, payload["config"], "config.yaml")
        if payload["dataset"]:
            self._log_dataset(recorded, payload["dataset"])
        self._log(recorded, event, tags=payload["tags"], params=params[-_PARAMS_PER_CALL:])

    def _epoch(self, recorded: _Recorded, event: Event, payload: EpochPayload) -> None:
        self._goes_on(recorded)
        epoch = payload["epoch"]
        self._log(recorded, event, metrics=payload["metrics"] | {"epoch": epoch}, step=epoch)

    def _progress(self, recorded: _Recorded, event: Event, payload: ProgressPayload) -> None:
        self._goes_on(recorded)
        self._log_files(recorded, payload["artifacts"], {})  # one that is gone: the next has it
        self._log(recorded, event, metrics=payload["metrics"], step=payload["step"])

    def _goes_on(self, recorded: _Recorded) -> None:
        """The run is not over, whatever was recorded before."""
        if recorded.status != "RUNNING":  # resumed after an end
            self._client.update_run(recorded.mlflow_id, status="RUNNING")
            recorded.status = "RUNNING"

    def _view(self, recorded: _Recorded, event: Event, payload: ViewPayload) -> None:
        key, value = saved_view(event.run_id, payload, recorded.mlflow_id, event.milliseconds)
        self._client.set_experiment_tag(self._experiment_id, key, value)
        self._log(recorded, event)

    def _register(self, recorded: _Recorded, event: Event, payload: RegisterPayload) -> None:
        register(self._client, recorded.mlflow_id, payload)
        self._log(recorded, event)

    def _final(self, recorded: _Recorded, event: Event, payload: FinalPayload) -> None:
        tags = {
            **payload["tags"],
            "morel.status": payload["status"],
            "morel.stop_reason": payload["stop_reason"],
        }
        if payload["note"] is not None:
            there = self._client.get_run(recorded.mlflow_id).data.tags.get(NOTE)
            tags[NOTE] = merged(linked(payload["note"], self._page), there)
        missing = self._log_files(recorded, payload["artifacts"], payload["texts"])
        if payload["model"]:
            try:
                log_model(
                    self._client,
                    self._experiment_id,
                    recorded.mlflow_id,
                    payload["model"],
                    event=f"{event.run_id}#{event.seq}",
                )
            except GONE:
                missing.append(payload["model"]["path"])
        if missing:
            tags["morel.missing_artifacts"] = ", ".join(missing)
        # Before the numbers, whose call moves the cursor: an end must not be lost behind it.
        self._client.set_terminated(recorded.mlflow_id, payload["status"], event.milliseconds)
        recorded.status = payload["status"]
        self._log(recorded, event, metrics=payload["metrics"], tags=tags)

    def _page(self, kind: str, name: str) -> str | None:
        """Where MLflow shows a run of ours, or the saved view of a search."""
        if kind == "view":
            return view_page(self._experiment_id, name)
        known = self.mlflow_run_id(name)
        if known is None and (run := self._find(name, None)):
            known = run.info.run_id
        return f"#/experiments/{self._experiment_id}/runs/{known}" if known else None

    def _log_files(
        self, recorded: _Recorded, artifacts: dict[str, str], texts: dict[str, str]
    ) -> list[str]:
        """Log files and texts, by artifact path; returns those that are not there any more."""
        with tempfile.TemporaryDirectory(prefix="morel-") as folder:
            missing = gather(Path(folder), artifacts, texts)
            if any(Path(folder).iterdir()):
                self._client.log_artifacts(recorded.mlflow_id, folder)
        return missing

    def _log_dataset(self, recorded: _Recorded, dataset: DatasetPayload) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = {"num_classes": dataset["num_classes"], **dataset["sizes"]}
        entity = Dataset(
            name=dataset["name"],
            digest=dataset["fingerprint"][:36],
            source_type="http" if dataset["source"].startswith("http") else "local",
            source=json.dumps({"uri": dataset["source"]}),
            profile=json.dumps(profile),
        )
        context = InputTag("mlflow.data.context", "training")
        self._client.log_inputs(recorded.mlflow_id, [DatasetInput(entity, [context])])

    def _log(
        self,
        recorded: _Recorded,
        event: Event,
        *,
        metrics: dict[str, float] | None = None,
        tags: dict[str, str] | None = None,
        params: Sequence[Param] = (),
        step: int = 0,
    ) -> None:
        """Log, and move the cursor with the last call."""
        from mlflow.entities import Metric, RunTag

        metrics = metrics or {}
        finite: list[Metric] = [
            Metric(key, float(value), event.milliseconds, step)
            for key, value in metrics.items()
            if math.isfinite(value)
        ]
        nonfinite = recorded.nonfinite + len(metrics) - len(finite)
        entries: list[RunTag] = [
            RunTag(key, str(value)[:_TAG_CHARS]) for key, value in (tags or {}).items()
        ]
        if nonfinite:
            entries.append(RunTag(NONFINITE, str(nonfinite)))
        for chunk in _chunks(entries[:-_TAGS_PER_CALL], _TAGS_PER_CALL):
            self._client.log_batch(recorded.mlflow_id, tags=chunk)
        batches = list(_chunks(finite, _METRICS_PER_CALL)) or [[]]
        for batch in batches[:-1]:
            self._client.log_batch(recorded.mlflow_id, metrics=batch)
        last_tags = [*entries[-_TAGS_PER_CALL:], RunTag(SEQ, str(event.seq))]
        self._client.log_batch(
            recorded.mlflow_id, metrics=batches[-1], params=params, tags=last_tags
        )
        recorded.nonfinite = nonfinite


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Beside the database: MLflow's default is a folder of wherever the process was started.
        path = sqlite_path(uri)
        location = (path.parent / "mlartifacts").as_uri() if path else None
        return client.create_experiment(name, artifact_location=location)
    if experiment.lifecycle_stage != "active":
        raise MorelError(
            f"tracking.experiment = {name!r} was deleted in MLflow: choose another name, or bring "
            f"it back with `mlflow experiments restore -x {experiment.experiment_id}`"
        )
    return experiment.experiment_id


@contextmanager
def _verdicts() -> Generator[None]:
    """MLflow's errors as `MorelError` (never again) or ConnectionError (later)."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except MlflowException as error:
        if error.error_code in _FINAL_VERDICTS:
            raise MorelError(f"MLflow refuses it: {masked(str(error)).splitlines()[0]}") from error
        raise ConnectionError(masked(str(error))) from error
    except RequestException as error:  # some are ValueErrors: an unreadable answer, for one
        raise ConnectionError(masked(str(error))) from error


def _param_text(value: Any) -> str:
    """``value`` as it would be written after ``key=`` on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _chunks(entries: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (entries[start : start + size] for start in range(0, len(entries), size))
