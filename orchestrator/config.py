"""Run configs: recipe file + ``key=value`` overrides → one frozen, checked `RunConfig`.

YAML cannot execute anything here: `orchestrator.interpolation` says what is replaced in it, and
names choose from registries, never from import paths.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints
from urllib.parse import unquote, urlsplit

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from morel_core.catalogue import DATASETS, MODELS
from morel_core.config import ExperimentConfig
from morel_core.errors import ConfigError, MorelError, check
from morel_core.registry import suggestion
from orchestrator.interpolation import number
from orchestrator.jobs import check_absolute, check_database, check_environment
from orchestrator.masking import masked_address

T = TypeVar("T")
Scalar = str | int | float | None
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


# --- files ---------------------------------------------------------------------------------------


def packaged(kind: str) -> dict[str, Path]:
    """The YAML files that come with the project: ``kind`` is "recipes" or "search_spaces"."""
    # Beside this package, in a checkout as in an installation.
    folder = Path(__file__).parents[1] / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_file(kind: str, name_or_path: str) -> Path:
    """A packaged file by name, or any file by path; raises `MorelError` listing the known names."""
    known = packaged(kind)
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    raise MorelError(
        f"{kind[:-1].replace('_', ' ')} {name_or_path!r} is neither a file nor a known name: "
        f"{suggestion(name_or_path, list(known))}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises `MorelError` with the line if it is no such thing."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise MorelError(f"{path}: {' '.join(str(error).split())}") from None
    except Exception as error:  # yaml's errors share no base class with the above
        raise MorelError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise MorelError(f"{path}: must hold keys and values, not {type(content).__name__}")
    return cast(dict[str, Any], content)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``["a.b=1"]`` → ``{"a.b": 1}``, values read as YAML; raises `MorelError`."""
    values: dict[str, Any] = {}
    for item in overrides:
        key, sign, _ = item.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts) or "[" in key:
            raise MorelError(f"override {item!r}: write key=value, as in training.epochs=5")
        try:
            parsed = OmegaConf.from_dotlist([item])
            values[key.strip()] = OmegaConf.to_container(parsed, resolve=False)
        except Exception as error:
            raise MorelError(f"override {item!r}: {' '.join(str(error).split())}") from None
        for part in parts:
            values[key.strip()] = values[key.strip()][part]
    return values


# --- mapping → dataclass -------------------------------------------------------------------------


def section_class(key: str, declared: Any, section: Mapping[str, Any]) -> type:
    """The dataclass of section ``key``: as declared, but chosen by name for data and model."""
    registry = {"data": DATASETS, "model": MODELS}.get(key)
    if registry is None:
        return declared
    default_name = next(f.default for f in dataclasses.fields(declared) if f.name == "name")
    return registry.get(str(section.get("name", default_name))).config_class


def build(cls: type[T], mapping: Mapping[str, Any], *, source: str = "") -> T:
    """A frozen dataclass from plain YAML values.

    Args:
        cls: the dataclass; fields that are dataclasses are built the same way.
        mapping: nested plain values; keys left out keep their defaults.
        source: file named in errors.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range, by its dotted key.
    """
    try:
        return _build(cls, mapping)
    except ConfigError as error:
        raise ConfigError(error.key, error.value, error.allowed + in_source(source)) from None


def in_source(source: str) -> str:
    return f" (in {source})" if source else ""


def _build(
    cls: type[T],
    mapping: Mapping[str, Any],
    *,
    default: T | None = None,
    same: Mapping[str, Any] | None = None,
) -> T:
    """As `build`.

    Keys left out have the values of ``default``, which the section above may set (the evaluation's
    attack is not ``AttackConfig()``). ``same`` are fields already built.
    """
    same = same or {}
    specs = dataclasses.fields(cast(Any, cls))
    hints = _hints(cls)
    names = [spec.name for spec in specs]
    for key, value in mapping.items():
        if key not in names:
            raise ConfigError(key, value, f"unknown key; {suggestion(key, names)}")
    leaves: dict[str, Any] = {}
    nested: dict[str, Any] = {}
    for spec in specs:
        key, hint, value = spec.name, hints[spec.name], mapping.get(spec.name)
        if key in same:
            continue
        if not dataclasses.is_dataclass(hint):
            entry = next(iter(get_args(hint)), None)
            if key in mapping and get_origin(hint) is list and dataclasses.is_dataclass(entry):
                nested[key] = _build_list(key, value, cast(type, entry))
            elif key in mapping:
                leaves[key] = _leaf(key, value, hint)
            continue
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(key, value, "must be a section with keys of its own")
        section = cast(Mapping[str, Any], value or {})
        inner = getattr(default, key) if default else cast(Any, spec.default_factory)()
        try:
            child = section_class(key, hint, section)
            kept = inner if type(inner) is child and inner != child() else None
            nested[key] = _build(child, section, default=kept)
        except ConfigError as error:
            raise error if error.key == f"{key}.name" else error.within(key) from None
    values = {**typed_leaves(cls, leaves), **nested, **same}
    return cls(**values) if default is None else dataclasses.replace(cast(Any, default), **values)


def _build_list(key: str, value: Any, cls: type[T]) -> list[T]:
    """A list of sections, each as `build` makes it."""
    if not isinstance(value, list):
        raise ConfigError(key, value, "must be a list of sections")
    built: list[T] = []
    for index, section in enumerate(cast(list[Any], value)):
        place = f"{key}[{index}]"
        if not isinstance(section, Mapping):
            raise ConfigError(place, section, "must be a section with keys of its own")
        try:
            built.append(_build(cls, cast(Mapping[str, Any], section)))
        except ConfigError as error:
            raise error.within(place) from None
    return built


def _leaf(key: str, value: Any, hint: Any) -> Any:
    """``value`` without interpolations; raises `ConfigError`."""
    if (hint is str or str in get_args(hint)) and isinstance(value, str) and "${" not in value:
        return value  # a folder may be called 2024/11
    try:
        return number(value)
    except MorelError as error:
        raise ConfigError(key, value, str(error)) from None


def typed_leaves(cls: type, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """``leaves`` converted to the field types of ``cls`` by OmegaConf; raises `ConfigError`."""
    return {
        key: (_typed if isinstance(value, Scalar) else _convert)(cls, key, value)
        for key, value in leaves.items()
    }


def _convert(cls: type, key: str, value: Any) -> Any:
    """``value`` as the type of the field ``key``; raises `ConfigError`."""
    schema = _schema(cls)
    try:
        OmegaConf.update(schema, key, value, merge=False)
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0].replace("$", "")
        raise ConfigError(key, value, reason) from None
    typed: Any = schema[key]
    return OmegaConf.to_container(typed, resolve=True) if OmegaConf.is_config(typed) else typed


# A search makes thousands of configs, alike in most values; 1, 1.0 and true are told apart.
_typed = functools.lru_cache(maxsize=4096, typed=True)(_convert)
_hints = functools.cache(get_type_hints)


@functools.cache
def _schema(cls: type) -> DictConfig:
    """Where leaves of ``cls`` are set and read back; what earlier ones have left is never read."""
    schema = OmegaConf.structured(cls)
    OmegaConf.set_readonly(schema, False)
    return schema


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
    return _build(RunConfig, mapping, same=same)


# --- dataclass → mapping -------------------------------------------------------------------------


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
