"""What is recorded about a run, as plain data that survives a crash and a restart."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict, cast

from morel_core.errors import ConfigError

Kind: TypeAlias = Literal["start", "epoch", "progress", "view", "register", "final", "lease"]
Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]

# Run ids name folders and stand in MLflow filters: no quotes, no empty part, no way up.
_RUN_ID = re.compile(r"[\w+=@-][\w.+=@-]*(/[\w+=@-][\w.+=@-]*)*", re.ASCII)


class DatasetPayload(TypedDict):
    """The data a run used, recorded as an MLflow dataset."""

    name: str
    fingerprint: str
    """Hash of the images, labels and split; its first 36 characters are MLflow's digest."""
    num_classes: int
    sizes: dict[str, int]
    """Images in ``train``, ``holdout`` and ``test``."""
    source: str
    """Where the data comes from: a URL, a path, or the name of a generator."""


class ModelPayload(TypedDict):
    """An exported plain model, recorded as an MLflow logged model. No pickle is involved."""

    path: str
    """Folder (local path or pyarrow URI) holding ``model.pt2``, an ExportedProgram with a dynamic
    batch dimension, and beside it whatever shall travel along, such as ``model.safetensors``."""
    name: str
    input_shape: list[int]
    """(C, H, W) of one image, float32 in [0, 1]."""
    num_classes: int
    torch_version: str


class StartPayload(TypedDict):
    """A run begins."""

    name: str
    parent: str | None
    """Run id of the search that a trial belongs to."""
    params: dict[str, Any]
    """Flat, dotted key → plain value."""
    tags: dict[str, str]
    config: dict[str, Any]
    """The resolved config, nested; logged as config.yaml."""
    dataset: DatasetPayload | None


class EpochPayload(TypedDict):
    """An epoch, counted from 1, is over."""

    epoch: int
    metrics: dict[str, float]


class ProgressPayload(TypedDict):
    """How far a run has come that has no epochs of its own, such as a search."""

    step: int
    metrics: dict[str, float]
    artifacts: dict[str, str]
    """Artifact path → file (local path or pyarrow URI); recorded as it is at delivery, so that what
    waited is not older than what is known."""


class FinalPayload(TypedDict):
    """A run ends; it may start again later and then end once more."""

    status: Status
    stop_reason: str
    metrics: dict[str, float]
    tags: dict[str, str]
    artifacts: dict[str, str]
    """Artifact path → file (local path or pyarrow URI)."""
    texts: dict[str, str]
    """Artifact path → text."""
    note: str | None
    """Markdown shown on the run's page; `orchestrator.tracking.note` says what its links may be."""
    model: ModelPayload | None


class ViewPayload(TypedDict):
    """Columns and charts in which the trials of a search are looked at, by recorded names."""

    params: list[str]
    """Those that differ between trials: columns, and axes of the parallel coordinates."""
    clean: str
    """Metric: a trial's clean accuracy."""
    robust: str
    """Metric: a trial's robust accuracy, by which the trials are sorted."""
    more: list[str]
    """Metrics: further columns."""
    curves: list[str]
    """Metrics: drawn over the epochs."""
    tags: list[str]
    """Last columns."""


class RegisterPayload(TypedDict):
    """A run's logged model becomes a version of a registered model."""

    name: str
    """Of the registered model, which is made if need be."""
    description: str
    """Markdown of the version."""
    tags: dict[str, str]
    """Of the version."""
    champion: Literal["better", "always", "never"]
    """Whether the version gets the alias ``champion``: where the present one has a smaller
    ``score`` or there is none, in any case, or not at all."""
    score: float | None
    """Verified robust accuracy; None: not verified, which is never the champion."""
    protocol: str
    """How the score was measured: scores of different protocols are never compared."""


def check_run_id(run_id: str) -> None:
    """Raise `ConfigError` unless ``run_id`` is one or more safe names joined by slashes."""
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigError(
            "run_id", run_id, "names of letters, digits, . _ + = @ -, joined by / and led by no dot"
        )


@dataclass(frozen=True)
class Event:
    """One thing that happened to one run.

    Attributes:
        run_id: our persistent id, such as ``"demo-2026/trial_00003"``.
        seq: place among this run's events, from 0; assigned by the journal.
        kind: which payload this is.
        key: what makes it unique within the run: ``"start"``, ``"epoch:3"``,
            ``"progress:3:…"``, ``"view:…"``, ``"register:…"``, ``"final:…"``.
        time: unix seconds at which it was appended.
        payload: the `StartPayload`, `EpochPayload` and so on of its kind, as JSON gives it back.
        writer: number of the lease under which it was appended; 0: of none.
    """

    run_id: str
    seq: int
    kind: Kind
    key: str
    time: float
    payload: dict[str, Any]
    writer: int = 0

    @property
    def milliseconds(self) -> int:
        """``time`` as MLflow wants it."""
        return int(self.time * 1000)

    def to_json(self) -> str:
        """One line of strict JSON; NaN and infinities become ``{"$float": "nan"}``.

        Raises TypeError where the payload holds anything but plain values.
        """
        record = {
            "run_id": self.run_id,
            "seq": self.seq,
            "kind": self.kind,
            "key": self.key,
            "time": self.time,
            "payload": _escaped(self.payload),
            "writer": self.writer,
        }
        return json.dumps(record, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> Event:
        """The event of `to_json`; raises ValueError for anything else."""
        record = json.loads(line, object_hook=_unescape)
        try:
            return cls(**record)
        except TypeError as error:
            raise ValueError(f"not an event: {error}") from error


def _escaped(value: Any) -> Any:
    """``value`` with non-finite floats in a form that strict JSON can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(float(value))}
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return {key: _escaped(entry) for key, entry in items}
    if isinstance(value, (list, tuple)):
        return [_escaped(entry) for entry in cast("list[Any]", value)]
    return value


def _unescape(value: dict[str, Any]) -> Any:
    return float(value["$float"]) if value.keys() == {"$float"} else value
