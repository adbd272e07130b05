"""What a search may learn from earlier ones: their finished trials, as MLflow has them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.compare import RunRecord, load_runs
from orchestrator.compare.runs import LINEAGE
from orchestrator.config import tracking_uri
from orchestrator.search.parameters import (
    ChoiceParameter,
    DerivedParameter,
    GridParameter,
    Parameter,
    SearchSpace,
    Values,
)
from orchestrator.search.space import SearchConfig
from orchestrator.tracking import DatasetPayload, records

MUST_AGREE = ("model", "training.epochs", "evaluation.num_images")
"""Settings, or first parts of them, in which a trial must agree beside data and attack."""


class Refused(Exception):
    """Why a trial cannot be learned from, in a few words."""


@dataclass(frozen=True)
class KnownTrial:
    """A trial of an earlier search: its point in this search's space, and its last report."""

    params: Values
    report: dict[str, Any]


@dataclass(frozen=True)
class Known:
    """All that earlier searches have to say, and for people what was taken of each."""

    trials: list[KnownTrial]
    lines: list[str]


def known_trials(search: SearchConfig, dataset: DatasetPayload) -> Known:
    """The trials of ``search.warm_start`` in the search's MLflow experiment that it can learn from.

    They came to their own end, lie in the search's space with every parameter that is active, were
    measured with the same attack on the same data, and agree in `MUST_AGREE` as far as that was
    recorded. All other fixed settings are the user's to compare.

    Raises `MorelError` for a name that the experiment does not know.
    """
    taken: list[KnownTrial] = []
    lines: list[str] = []
    for name in search.warm_start:
        runs = load_runs(tracking_uri(search.base), search.base.tracking.experiment, name)
        digests = {run.dataset for run in runs if run.dataset}
        same_data = not digests or digests == {dataset["fingerprint"][:36]}
        trials = [run for run in runs if run.kind == "trial"]
        before, refusals = len(taken), Counter[str]()
        for run in trials:
            try:
                taken.append(_known(search, run, same_data=same_data))
            except Refused as refusal:
                refusals[str(refusal)] += 1
        lines.append(_line(name, len(taken) - before, len(trials), refusals))
    return Known(taken, lines)


def _line(name: str, taken: int, of: int, refusals: Mapping[str, int]) -> str:
    why = ", ".join(f"{count} {reason}" for reason, count in refusals.items())
    return f"warm start: {taken} of {of} trials of {name}" + (f"; not taken: {why}" if why else "")


def _known(search: SearchConfig, run: RunRecord, *, same_data: bool) -> KnownTrial:
    """The trial of a run; raises `Refused`."""
    if run.tags.get("morel.state") != "finished":
        raise Refused("not trained to their own end")
    if run.tags.get(LINEAGE):
        raise Refused("of settings that changed on the way")
    if not same_data:
        raise Refused("on other data")
    attack = records.evaluation_label(search.base)
    other = run.tags.get("morel.attack.evaluation", attack)
    if other != attack:
        raise Refused(f"measured with {other}, not {attack}")
    params = _point(search.space, run.params)
    _check_settings(search, params, run.params)
    return KnownTrial(params, _report(run, attack))


def _point(space: SearchSpace, recorded: Mapping[str, str]) -> Values:
    """The raw values of a trial in ``space``, in its order."""
    values: Values = {}
    for name, parameter in space.parameters.items():
        if isinstance(parameter, DerivedParameter) or not space.active(name, values):
            continue
        text = recorded.get(name, recorded.get(f"search.{name}"))
        if text is None:
            raise Refused(f"without a value of {name}")
        value = _value(parameter, text)
        if value is None:
            raise Refused(f"outside the range of {name}")
        values[name] = value[0]
    return values


def _value(parameter: Parameter, text: str) -> tuple[Any] | None:
    """A recorded value in a parameter's range, which may be None itself."""
    if isinstance(parameter, ChoiceParameter | GridParameter):
        return next(((value,) for value in parameter.values if _same(value, text)), None)
    assert not isinstance(parameter, DerivedParameter)
    value = _plain(text)
    return (value,) if parameter.contains(value) else None


def _check_settings(search: SearchConfig, params: Values, recorded: Mapping[str, str]) -> None:
    """Raise `Refused` for a setting of `MUST_AGREE` that has another value here."""
    here = records.params(search.base) | search.space.overrides(params)
    for key, value in here.items():
        concerned = {key, key.partition(".")[0]} & set(MUST_AGREE)
        if concerned and key in recorded and not _same(value, recorded[key]):
            raise Refused(f"with {key} = {recorded[key]}, not {value}")


def _same(value: Any, text: str) -> bool:
    """Whether ``text`` is how ``value`` was recorded."""
    plain = _plain(text)
    if isinstance(value, str) or isinstance(value, bool) != isinstance(plain, bool):
        return value == text
    return value == plain


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _report(run: RunRecord, attack: str) -> dict[str, Any]:
    """The run's last report, as far as a searcher reads it."""
    report: dict[str, Any] = {"epoch": run.epochs, "num_epochs": run.epochs}
    report["time_total_s"] = run.seconds
    for prefix, place in (("", "holdout"), ("best_", "best.holdout")):
        names = records.accuracy_names(place, attack)
        report |= {
            prefix + k: run.metrics[name] for k, name in names.items() if name in run.metrics
        }
    if not {"best_clean_accuracy", "best_robust_accuracy"} <= report.keys():
        raise Refused("without accuracies of a best epoch")
    return report
