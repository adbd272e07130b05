"""Frozen, checked dataclasses from the plain values of YAML."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from morel_core.catalogue import DATASETS, MODELS
from morel_core.errors import ConfigError, MorelError
from morel_core.registry import suggestion
from orchestrator.settings.interpolation import number

T = TypeVar("T")
Scalar = str | int | float | None


def section_class(key: str, declared: Any, section: Mapping[str, Any]) -> type:
    """The dataclass of section ``key``: as declared, but chosen by name for data and model."""
    registry = {"data": DATASETS, "model": MODELS}.get(key)
    if registry is None:
        return declared
    default_name = next(f.default for f in dataclasses.fields(declared) if f.name == "name")
    return registry.get(str(section.get("name", default_name))).config_class


def build(
    cls: type[T],
    mapping: Mapping[str, Any],
    *,
    source: str = "",
    same: Mapping[str, Any] | None = None,
) -> T:
    """A frozen dataclass from plain YAML values.

    Args:
        cls: the dataclass; fields that are dataclasses are built the same way.
        mapping: nested plain values; keys left out keep their defaults.
        source: file named in errors.
        same: fields that are built already.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range, by its dotted key.
    """
    try:
        return _build(cls, mapping, same=same)
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
    attack is not ``AttackConfig()``).
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
    kinds = set(get_args(hint)) or {hint}
    if str in kinds and isinstance(value, str) and "${" not in value:
        return value  # a folder may be called 2024/11
    if kinds <= {str, NoneType} and isinstance(value, int | float):
        allowed = """text: YAML reads something else, so quote it (on a command line '"007"')"""
        raise ConfigError(key, value, allowed)
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
