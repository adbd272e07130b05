"""``morel tune --dry-run``: the first trials, what they need, what all of them would cost at most.

Nothing is started, and nothing is written, neither to the storage nor to MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from morel_core.data import Dataset, load_data
from morel_core.errors import MorelError
from orchestrator.cluster import cluster_address, local_resources
from orchestrator.config import flatten, to_dict
from orchestrator.search.budget import Cost
from orchestrator.search.cost import Passes, run_passes, time_pass
from orchestrator.search.searcher import SpaceSearcher
from orchestrator.search.space import SearchConfig
from orchestrator.search.warm_start import KnownTrial, known_trials
from orchestrator.settings.fits import check_fits
from orchestrator.tracking import records
from orchestrator.tune import fitting

SHOWN = 5


def dry_run(search: SearchConfig) -> dict[str, Any]:
    """A search before it is run, plain.

    Points are those that the searcher would propose if no trial of its own told it anything: those
    of its first trials are the real ones.

    Returns:
        ``warm_start``, what it learns from, in words; ``trials``, the first ones with their whole
        config and its ``difference`` from the base; ``plan``, what runs at a time on what;
        ``cost``, with ``seconds`` of one trial after the other, of the search's resources together,
        and without early stopping.

    Raises:
        MorelError: the data is not there, or too small, or a search of ``warm_start`` is unknown.
    """
    data = load_data(search.base.data)
    check_fits(search.base, data)
    known = known_trials(search, records.dataset_record(search.base, data))
    proposed = _proposed(search, known.trials)
    return {
        "name": search.name,
        "warm_start": known.lines,
        "total_trials": search.total_trials,
        "trials": [_trial(search, trial) for trial in proposed[:SHOWN]],
        "plan": (planned := plan(search)),
        "cost": _cost(search, proposed, data, planned),
    }


def _proposed(search: SearchConfig, known: Sequence[KnownTrial]) -> list[dict[str, Any]]:
    searcher = SpaceSearcher(search, known)
    return [searcher.suggest(str(number)) for number in range(search.total_trials)]


def _trial(search: SearchConfig, proposed: Mapping[str, Any]) -> dict[str, Any]:
    params, base = proposed["params"], flatten(to_dict(search.base))
    entry = {
        "number": proposed["index"] + 1,
        "label": search.space.label_of(proposed["baseline"], params),
        "params": params,
    }
    try:
        config = to_dict(search.trial_config(params))
    except MorelError as error:  # a point that no run can have
        return entry | {"error": str(error)}
    resolved = flatten(config)
    different = {key: value for key, value in resolved.items() if base.get(key) != value}
    return entry | {"difference": different, "config": config}


def plan(search: SearchConfig, there: tuple[float, float] | None = None) -> dict[str, Any]:
    """What a trial takes, and how many run at a time on ``there``: (CPUs, GPUs).

    Default: of this machine, if the search runs here.
    """
    asked, address = search.resources, cluster_address(search.base)
    if there is None and address is None:
        there = local_resources()
    return {
        "cluster": address,
        "workers_per_trial": asked.workers,
        "cpus_per_trial": asked.workers * asked.cpus_per_worker,
        "gpus_per_trial": asked.workers * asked.gpus_per_worker,
        "there": dict(zip(("cpus", "gpus"), there, strict=True)) if there else None,
        "trials_at_a_time": fitting(search, *there) if there else search.max_concurrent,
    }


def _cost(
    search: SearchConfig, proposed: list[dict[str, Any]], data: Dataset, plan: Mapping[str, Any]
) -> dict[str, Any]:
    passes = [p for trial in proposed if (p := _passes(search, trial, data)) is not None]
    workers = search.resources.workers
    cost: dict[str, Any] = {
        "passes_per_trial": sum(p.training + p.evaluation for p in passes) / max(1, len(passes)),
        "impossible_trials": len(proposed) - len(passes),
        "seconds_per_pass": None,
    }
    gpu_missing = search.resources.gpus_per_worker and not local_resources()[1]
    if gpu_missing or not passes:
        return cost
    pace = time_pass(search.base, data)
    seconds = sum(p.seconds(pace, workers) for p in passes)
    at_a_time = plan["trials_at_a_time"]
    return cost | {
        "seconds_per_pass": pace,
        "seconds_per_trial": seconds / len(passes),
        "seconds": seconds,
        "wall_seconds": seconds / at_a_time if at_a_time else None,
        **{key.removeprefix("cost."): v for key, v in search.resources.cost(seconds).items()},
    }


def _passes(search: SearchConfig, trial: Mapping[str, Any], data: Dataset) -> Passes | None:
    try:
        run = search.trial_config(trial["params"])
    except MorelError:
        return None
    return run_passes(run, len(data.train), len(data.holdout))


# --- in words ------------------------------------------------------------------------------------


def lines(found: Mapping[str, Any]) -> list[str]:
    """A dry run for people: of the trials only what differs from the base."""
    told = [*found["warm_start"], *_trial_lines(found)]
    return [*told, *plan_lines(found["plan"]), *_cost_lines(found)]


def _trial_lines(found: Mapping[str, Any]) -> list[str]:
    shown = [f"{found['name']}: {found['total_trials']} trials, the first of them:"]
    for trial in found["trials"]:
        shown.append(f"trial {trial['number']} ({trial['label']})")
        if "error" in trial:
            shown.append(f"  cannot be run: {trial['error']}")
            continue
        different = trial["difference"]
        shown += [f"  {key} = {value}" for key, value in different.items()] or ["  as the base"]
    return shown


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """A `plan` for people."""
    each = f"{plan['cpus_per_trial']:g} CPUs and {plan['gpus_per_trial']:g} GPUs"
    need = f"a trial takes {plan['workers_per_trial']} worker(s), {each} together"
    if plan["there"] is None:
        return [f"{need}; the cluster at {plan['cluster']} is not asked what it has"]
    there = f"{plan['there']['cpus']:g} CPUs and {plan['there']['gpus']:g} GPUs are there"
    if not plan["trials_at_a_time"]:
        return [f"{need}; {there}: it does not fit"]
    return [f"{need}; {there}: {plan['trials_at_a_time']} trial(s) at a time"]


def _cost_lines(found: Mapping[str, Any]) -> list[str]:
    cost = found["cost"]
    shown = [f"{cost['passes_per_trial']:.3g} network passes of an image a trial"]
    if cost["impossible_trials"]:
        shown.append(f"{cost['impossible_trials']} trials have settings that no run can have")
    if cost["seconds_per_pass"] is None:
        return [*shown, "no step was timed: the trials' GPU is not here, or none can be run"]
    whole = Cost(cpu_seconds=cost["cpu_seconds"], gpu_seconds=cost["gpu_seconds"])
    wall = cost["wall_seconds"]
    shown.append(
        f"at {1e6 * cost['seconds_per_pass']:.3g} µs a pass, timed here on the base's trainer: "
        f"{timedelta(seconds=round(cost['seconds_per_trial']))} a trial, {whole} in all"
        + ("" if wall is None else f", {timedelta(seconds=round(wall))} on the clock")
    )
    return [
        *shown,
        "an upper bound at that pace: without early stopping; verification and test aside",
    ]
