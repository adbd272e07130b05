"""Run configs: recipe file + ``key=value`` overrides → one frozen, checked `RunConfig`.

YAML cannot execute anything here: `orchestrator.settings.interpolation` says what is replaced in
it, and names choose from registries, never from import paths.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from morel_core.config import ExperimentConfig
from morel_core.errors import ConfigError, check
from orchestrator.messages.masking import masked_address
from orchestrator.settings.building import build, in_source
from orchestrator.settings.jobs import check_absolute, check_database, check_environment
from orchestrator.settings.yaml_files import find_file, parse_overrides, read_yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# What decides where and how fast a run goes, but not its numbers.
NOT_SCIENTIFIC = ("name", "storage_path", "scaling", "tracking", "cluster", "checkpoint")
NOT_SCIENTIFIC_DATA = ("root", "download")
NOT_SCIENTIFIC_EVALUATION = ("asynchronous",)


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """Workers of one training run; Ray starts one process for each."""

    num_workers: int | list[int] = 1
    """Processes that share each batch. [min, max]: as many of these as there is room for, fewer
    when a node leaves and more when one joins, with the same batch."""
    cpus_per_worker: int = 1
    """CPUs reserved for each."""
    gpus_per_worker: float = 0.0
    """GPUs for each; 0 trains on CPUs."""
    max_failures: int = 3
    """How often in a row, without an epoch in between, lost workers are begun anew from the last
    checkpoint; nodes that were preempted do not count. For a trial: how often in all."""
    hang_timeout_s: float = 300.0
    """Seconds without a sign of life after which a worker of several counts as lost."""

    def __post_init__(self) -> None:
        asked = self.num_workers
        if isinstance(asked, list):
            ordered = len(asked) == 2 and 1 <= asked[0] <= asked[1]
            check(ordered, "num_workers", asked, "a number, or [min, max] with 1 <= min <= max")
        else:
            check(asked >= 1, "num_workers", asked, "must be >= 1")
        check(self.max_failures >= 0, "max_failures", self.max_failures, "must be >= 0")
        check(self.hang_timeout_s > 0, "hang_timeout_s", self.hang_timeout_s, "seconds > 0")
        check(self.cpus_per_worker >= 1, "cpus_per_worker", self.cpus_per_worker, "must be >= 1")
        check(self.gpus_per_worker >= 0, "gpus_per_worker", self.gpus_per_worker, "must be >= 0")

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change along the run."""
        return isinstance(self.num_workers, list)

    @property
    def min_workers(self) -> int:
        """The fewest that train."""
        return self.num_workers[0] if isinstance(self.num_workers, list) else self.num_workers

    @property
    def max_workers(self) -> int:
        """The most that train."""
        return self.num_workers[1] if isinstance(self.num_workers, list) else self.num_workers

    @property
    def in_words(self) -> str:
        """Such as ``2`` or ``1 to 4``."""
        least, most = self.min_workers, self.max_workers
        return f"{least} to {most}" if self.elastic else str(most)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where MLflow records."""

    uri: str | None = None
    """MLflow tracking URI; default: MLFLOW_TRACKING_URI, else sqlite:///<storage_path>/mlflow.db."""
    experiment: str = "morel"
    """MLflow experiment that the run is recorded in."""

    def __post_init__(self) -> None:
        check_no_credentials("uri", self.uri, "MLFLOW_TRACKING_URI")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Which Ray to use."""

    address: str | None = None
    """Address of a running Ray; default: RAY_ADDRESS, else a local Ray for this command alone."""
    lease_s: float = 30.0
    """A driver elsewhere that was not heard of for so long is taken for dead, and replaced."""

    def __post_init__(self) -> None:
        check_no_credentials("address", self.address, "RAY_AUTH_TOKEN_PATH")
        check(self.lease_s >= 3, "lease_s", self.lease_s, "seconds >= 3")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run saves itself. The last and the best checkpoint are kept."""

    every_seconds: float = 300.0
    """Save when this long has passed since the last save, beside the end of the run."""

    def __post_init__(self) -> None:
        check(self.every_seconds >= 0, "every_seconds", self.every_seconds, "seconds >= 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig(ExperimentConfig):
    """An experiment, and where it runs and is recorded."""

    name: str | None = None
    """Name of the run: the same name resumes it. Default: data, method, seed and time; of a search
    its file and time."""
    storage_path: str = "~/morel_runs"
    """Folder or s3:// / gs:// URI of checkpoints and journals; every node must see it."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("name", self.name)
        check_no_credentials("storage_path", self.storage_path, "AWS_SECRET_ACCESS_KEY")
        object.__setattr__(self, "storage_path", absolute_storage(self.storage_path))
        check_absolute("data.root", self.data.root)
        check_absolute("data.extra", self.data.extra)
        check_database("tracking.uri", self.tracking.uri)
        check_environment()
        slices = self.training.micro_batches
        check(
            self.training.batch_size >= 2 * self.scaling.max_workers * slices,
            "training.batch_size",
            self.training.batch_size,
            f"at least 2 images for each of scaling.num_workers = {self.scaling.num_workers}"
            + (f" in each of training.micro_batches = {slices}" if slices > 1 else ""),
        )
        check(
            self.objective.accuracy != "custom",
            "objective.accuracy",
            self.objective.accuracy,
            "a callable of your own is given in code: morel_core.Trainer(config, accuracy=…)",
        )


def check_name(key: str, name: str | None) -> None:
    """A name becomes a folder: letters, digits and ``._-`` only; raises `ConfigError`."""
    check(
        name is None or NAME.fullmatch(name) is not None,
        key,
        name,
        "letters, digits, '.', '_' and '-' only, at most 100, not starting with a mark",
    )


def check_no_credentials(key: str, address: str | None, variable: str) -> None:
    """Raise `ConfigError` if an address holds a password: configs are recorded as they are."""
    shown = masked_address(address or "")
    check(
        shown == (address or ""),
        key,
        shown,
        f"must hold no credentials, which would be recorded: leave them to the environment, "
        f"in {variable}",
    )


def absolute_storage(path: str) -> str:
    """``path`` made absolute; a relative one is refused in a Ray job, whose folder is a cache."""
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    if "://" in path:
        _check_uri(path)
        return path.rstrip("/")
    check_absolute("storage_path", path)
    return str(Path(path).expanduser().absolute())


def _check_uri(path: str) -> None:
    """A folder's name is put behind it: there is no place for a store's options."""
    check(
        re.fullmatch(r"[a-z0-9]+://[\w.-]+(/[\w.=+-]+)*/?", path) is not None,
        "storage_path",
        path,
        "scheme://bucket/folder and nothing else: a store's options come from the environment "
        "(AWS_ENDPOINT_URL, AWS_REGION)",
    )


def tracking_uri(config: RunConfig, environment: Mapping[str, str] = os.environ) -> str:
    """The MLflow URI of a run: config, else environment, else SQLite beside the storage."""
    uri = config.tracking.uri or environment.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    if "://" in config.storage_path:
        raise ConfigError(
            "tracking.uri",
            None,
            f"needed with storage_path = {config.storage_path!r}: http://host:port or sqlite:////path.db",
        )
    return f"sqlite:///{config.storage_path}/mlflow.db"


# --- mapping → RunConfig -------------------------------------------------------------------------


def put(mapping: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``mapping["a"]["b"]`` for ``"a.b"``; renaming a section drops its old name's settings."""
    *sections, leaf = dotted.split(".")
    for section in sections:
        if not isinstance(mapping.get(section), dict):
            mapping[section] = {}
        mapping = mapping[section]
    if leaf == "name" and sections in (["data"], ["model"]) and mapping.get("name") != value:
        mapping.clear()
    mapping[leaf] = value


def names_first(values: Mapping[str, Any]) -> list[str]:
    """The keys; those that rename a section first, so that the others reach its new settings."""
    return sorted(values, key=lambda key: (not key.endswith(".name"), key))


def compose(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a recipe (name or file) with ``key=value`` overrides, checked.

    Raises:
        MorelError: no such recipe, or broken YAML.
        ConfigError: the first setting that is wrong, where it stands, and what is allowed.
    """
    path = find_file("recipes", recipe)
    mapping = read_yaml(path)
    values = parse_overrides(overrides)
    for key in names_first(values):
        put(mapping, key, values[key])
    try:
        return build(RunConfig, mapping)
    except ConfigError as error:
        given_here = any(overlap(error.key, key) for key in values)
        source = "the command line" if given_here else str(path)
        raise ConfigError(error.key, error.value, error.allowed + in_source(source)) from None


def overlap(key: str, other: str) -> bool:
    """Whether one dotted key is the other, or a section that holds it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def with_overrides(config: RunConfig, values: Mapping[str, object]) -> RunConfig:
    """A copy of ``config`` with dotted keys replaced, checked again; raises `ConfigError`."""
    touched = {key.partition(".")[0] for key in values}  # only these are built again
    before = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    mapping = to_dict({name: value for name, value in before.items() if name in touched})
    for key in names_first(values):
        put(mapping, key, values[key])
    same = {name: value for name, value in before.items() if name not in touched}
    return build(RunConfig, mapping, same=same)


# --- RunConfig → mapping -------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values (lists for tuples), ready for YAML or JSON."""
    return json.loads(json.dumps(config, default=_values))


def _values(section: Any) -> dict[str, Any]:
    return {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` → ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def scientific(config: ExperimentConfig) -> dict[str, Any]:
    """What decides the numbers, nested; without name, place and workers."""
    mapping = {k: v for k, v in to_dict(config).items() if k not in NOT_SCIENTIFIC}
    for section, left_out in (
        ("data", NOT_SCIENTIFIC_DATA),
        ("evaluation", NOT_SCIENTIFIC_EVALUATION),
    ):
        mapping[section] = {k: v for k, v in mapping[section].items() if k not in left_out}
    return mapping


def run_key(config: ExperimentConfig) -> str:
    """Hash of `scientific`: twins share it."""
    text = json.dumps(scientific(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
