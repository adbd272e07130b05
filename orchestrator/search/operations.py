"""A search seen and steered from any machine that sees its storage, or only MLflow."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.campaign import searches
from orchestrator.compare import RunRecord, load_runs
from orchestrator.config import RunConfig, tracking_uri
from orchestrator.driver import control, lease
from orchestrator.search import status
from orchestrator.search.trial import NUMBER, trial_folder_name
from orchestrator.tracking import Event, Journal
from orchestrator.tracking.events import check_run_id

UNSEEN = "MLflow knows this search, but its storage {} is not to be seen from here"


def look(name: str, config: RunConfig) -> dict[str, Any]:
    """The status of a search: its driver's, or as much of it as MLflow knows.

    Args:
        name: of the search.
        config: where storage and MLflow are.

    Raises:
        MorelError: neither knows a search of that name; a campaign's searches are named.
    """
    check_run_id(name)
    found = _from_storage(f"{config.storage_path}/{name}")
    if found is not None:
        return found
    campaign = searches.look(name, config)
    if campaign is not None:
        raise MorelError(
            f"{name} is a campaign: name one of its searches, {searches.named(campaign)}"
        )
    runs = _runs(name, config)
    folder = next(run for run in runs if run.kind == "search").tags.get("morel.storage", "")
    return (_from_storage(folder) if folder else None) or _from_mlflow(name, folder, runs)


def _from_storage(folder: str) -> dict[str, Any] | None:
    """What the driver has left there, and who holds the lease at present."""
    found = status.read(folder)
    if found is None:
        return None
    holds = lease.holder(folder)
    return found | {"holder": None if holds is None else dataclasses.asdict(holds)}


def folder_of(found: dict[str, Any]) -> str:
    """The folder of a search that was looked at; raises `MorelError` if it is out of sight."""
    if found.get("driver") is False:
        raise MorelError(UNSEEN.format(found["folder"] or "(unknown)"))
    return str(found["folder"])


def _runs(name: str, config: RunConfig) -> list[RunRecord]:
    uri, experiment = tracking_uri(config), config.tracking.experiment
    where = f"no search {name!r} in {config.storage_path} (storage_path=…)"
    try:
        runs = load_runs(uri, experiment)
    except MorelError as error:
        raise MorelError(f"{where}, and MLflow cannot be asked: {error}") from None
    searches = [run for run in runs if run.kind == "search"]
    if not any(run.run_id == name for run in searches):
        known = ", ".join(run.run_id for run in sorted(searches, key=lambda r: -r.started)[:5])
        raise MorelError(f"{where} or MLflow's experiment {experiment!r}; there: {known or 'none'}")
    return [run for run in runs if name in (run.run_id, run.search)]


def _from_mlflow(name: str, folder: str, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What the runs of a search tell, in the form of its status."""
    whole = next(run for run in runs if run.kind == "search")
    trials = [_trial(run) for run in runs if run.kind == "trial"]
    return {
        "name": name,
        "driver": False,
        "state": whole.tags.get("morel.state", whole.status.lower()),
        "folder": folder,
        "total_trials": int(whole.params.get("search.num_trials", len(trials))),
        "counts": dict(Counter(str(trial["state"]) for trial in trials)),
        "best": None,
        "cost": {
            "wall_seconds": whole.metrics.get("cost.wall_seconds"),
            **{
                key: sum(run.metrics.get(f"cost.{key}", 0.0) for run in runs if run.kind == "trial")
                for key in ("cpu_seconds", "gpu_seconds")
            },
        },
        "trials": sorted(trials, key=lambda trial: trial["number"]),
    }


def _trial(run: RunRecord) -> dict[str, Any]:
    clean, robust = run.clean("holdout"), next(iter(run.robust("holdout").values()), None)
    number, _, label = run.name.partition(" ")
    return {
        "number": int(run.tags.get(NUMBER, number)),
        "run_id": run.run_id,
        "label": label,
        "state": run.tags.get("morel.state", run.status.lower()),
        "why": run.tags.get("morel.stop_reason", ""),
        "standing": "",
        "rung": None,
        "epoch": run.epochs or 0,
        "num_epochs": None,
        "clean_accuracy": clean and clean.value,
        "robust_accuracy": robust and robust.value,
        "robust_accuracy_low": robust and robust.low,
        "robust_accuracy_high": robust and robust.high,
        "held_seconds": run.seconds or 0.0,
        "folder": None,
    }


# --- steering ------------------------------------------------------------------------------------


def stop(name: str, numbers: Sequence[int], config: RunConfig) -> list[str]:
    """Ask the driver to pause the search, or to stop some trials; returns what was asked.

    A single run and a campaign can be paused alone.

    Raises:
        MorelError: no driver is there to hear it, or a trial is unknown or has ended.
    """
    own = f"{config.storage_path}/{name}"
    campaign = searches.look(name, config)
    if campaign is not None and not numbers:
        return _stop_campaign(campaign)
    if not numbers and status.read(own) is None and lease.holder(own) is not None:
        control.ask_pause(own)  # a single run
        return [f"{name} is asked to pause: it is saved with its next report"]
    found = look(name, config)
    folder = folder_of(found)
    quiet = status.silence(found)
    if found["state"] in status.ENDED or quiet is not None:
        heard = "" if quiet is None else f"; no driver has been heard of for {quiet:.0f} s"
        raise MorelError(f"{name}: nothing to stop: the search is {found['state']}{heard}")
    if not numbers:
        control.ask_pause(folder)
        again = (
            f"the command of {found['parent']}"
            if found.get("parent")
            else f"the same command, with name={name},"
        )
        return [f"{name} is asked to pause: running trials are saved, {again} goes on"]
    ended = {
        trial["number"]: trial["state"]
        for trial in found["trials"]
        if trial["state"] not in ("running", "waiting")
    }
    for number in numbers:
        if not 1 <= number <= found["total_trials"]:
            raise MorelError(f"trial {number}: {name} has trials 1 to {found['total_trials']}")
        if number in ended:
            raise MorelError(f"trial {number} of {name} has ended already: {ended[number]}")
    for number in numbers:
        control.ask_stop(folder, number)
    return [f"trial {number} of {name} is asked to end with its next report" for number in numbers]


def _stop_campaign(found: Mapping[str, Any]) -> list[str]:
    """Ask a campaign's driver to pause; raises `MorelError` if there is none."""
    name = found["name"]
    if found["holder"] is None:
        raise MorelError(f"{name}: nothing to stop: no driver of the campaign is at work")
    control.ask_pause(found["folder"])
    return [
        f"{name} is asked to pause: running trials of its search are saved, the same command "
        "goes on"
    ]


# --- what happened -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing that happened."""

    time: float
    """Unix seconds."""
    run_id: str
    number: int | None
    """Of the trial; None: the search itself."""
    text: str

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        who = "search" if self.number is None else f"trial {self.number}"
        return f"{when}  {who:<10}{self.text}"


def logs(name: str, number: int | None, config: RunConfig) -> Iterator[Line]:
    """What the journal of a search tells, in its order; of one trial, or of all.

    Raises:
        MorelError: no such search or trial, or its storage is out of sight.
    """
    folder = folder_of(look(name, config))
    numbers: dict[str, int] = {}
    said = False
    for event in Journal(f"{folder}/journal").events():
        if event.kind == "start" and event.payload["parent"] == name:
            first = event.payload["name"].partition(" ")[0]
            numbers[event.run_id] = int(event.payload["tags"].get(NUMBER, first))
        mine = numbers.get(event.run_id)
        text = _text(event)
        if text and (number is None or number == mine):
            said = True
            yield Line(time=event.time, run_id=event.run_id, number=mine, text=text)
    if number is not None and not said:
        known = ", ".join(str(n) for n in sorted(numbers.values())) or "none"
        raise MorelError(f"trial {number}: {name} has none of that number yet; there: {known}")


def _text(event: Event) -> str:
    """An event in words; empty for what is of no interest here."""
    payload = event.payload
    if event.kind == "start":
        return f"started: {payload['name']}"
    if event.kind == "epoch":
        shown = {
            key.removeprefix("holdout."): f"{100 * value:.1f} %"
            for key, value in sorted(payload["metrics"].items())
            if key.startswith("holdout.") and not key.endswith(("_low", "_high", ".images"))
        }
        if "loss.total" in payload["metrics"]:
            shown["loss"] = f"{payload['metrics']['loss.total']:.4g}"
        return ", ".join([f"epoch {payload['epoch']}", *(f"{k} {v}" for k, v in shown.items())])
    if event.kind == "final":
        state = payload["tags"].get("morel.state", payload["status"].lower())
        return f"{state}: {payload['stop_reason']}"
    return ""


def error_text(name: str, number: int, config: RunConfig) -> str | None:
    """The tracebacks that a trial has left, oldest first; None if there is none."""
    found = look(name, config)
    folder = folder_of(found)
    for trial in found["trials"]:
        if trial["number"] == number:
            inside = trial["folder"] or trial_folder_name(trial["run_id"].rpartition("/")[2])
            return storage.read_text(f"{folder}/{inside}/error.txt")
    return None
