"""The part of a campaign's search space that one method reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.search.parameters import (
    DerivedParameter,
    Parameter,
    Sampled,
    Values,
    allowed_values,
    is_setting,
)
from orchestrator.search.space_builder import section_of


def fit_parameters(
    parameters: Mapping[str, Parameter],
    entries: Mapping[str, Any],
    made: Mapping[str, Any],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """Entries of a search file for one method.

    What the method sets is not searched. A condition on a setting that nothing searches over is
    decided here, by the method's own run: where it does not hold, the parameter goes; with it go
    those that depend on it, and helpers that nobody reads any more.

    Args:
        parameters: of the campaign, each checked by itself.
        entries: the same as the file has them.
        made: the method's settings, by dotted key.
        run: the method's whole run, flat.
    """
    searched = {name: p for name, p in parameters.items() if name not in made}
    kept = dict(searched)
    while dropped := [n for n, p in kept.items() if not _reads(n, p, kept, searched, run)]:
        for name in dropped:
            del kept[name]
    return {name: _open(entries[name], searched) for name in kept}


def fit_baselines(
    baselines: Mapping[str, Any], parameters: Mapping[str, Parameter], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Fixed points without the values of parameters that a method does not search over."""
    gone = parameters.keys() - own.keys()
    fitted: dict[str, Any] = {}
    for name, point in baselines.items():
        given = section_of(point or {}, f"baselines.{name}")
        fitted[name] = {key: value for key, value in given.items() if key not in gone}
    return fitted


def _reads(
    name: str,
    parameter: Parameter,
    kept: Mapping[str, Parameter],
    searched: Mapping[str, Parameter],
    run: Mapping[str, Any],
) -> bool:
    """Whether a method reads a parameter, as far as ``kept`` tells."""
    if isinstance(parameter, DerivedParameter):
        return not any(read in searched and read not in kept for read in parameter.parsed.names)
    if not is_setting(name) and not _is_read(name, kept):
        return False
    for parent, condition in _when(parameter).items():
        if parent in searched:
            if parent not in kept:
                return False
        elif parent in run and run[parent] not in allowed_values(condition):
            return False
    return True


def _is_read(name: str, kept: Mapping[str, Parameter]) -> bool:
    """Whether a helper is read by another parameter."""
    return any(
        name in (other.parsed.names if isinstance(other, DerivedParameter) else _when(other))
        for other in kept.values()
    )


def _when(parameter: Parameter) -> Values:
    return parameter.when if isinstance(parameter, Sampled) else Values()


def _open(entry: Mapping[str, Any], searched: Mapping[str, Parameter]) -> dict[str, Any]:
    """An entry without the conditions that are decided."""
    undecided = {k: v for k, v in (entry.get("when") or {}).items() if k in searched}
    rest = {key: value for key, value in entry.items() if key != "when"}
    return rest | ({"when": undecided} if undecided else {})
