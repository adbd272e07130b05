"""``morel sync``: what MLflow lacks of recorded runs, carried over from their journals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.config import RunConfig, absolute_storage, tracking_uri, with_overrides
from orchestrator.driver.lease import LeaseHeldError, held
from orchestrator.messages.masking import masked_address
from orchestrator.provenance.identity import FILE
from orchestrator.tracking import Event, Journal, MlflowTracker, replay


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What became of the journal of one run, search or campaign."""

    name: str
    folder: str
    uri: str
    """Of MLflow, without credentials."""
    experiment: str
    events: int
    """In the journal; those of a search's trials, too."""
    pending: int
    """Of them, those that MLflow lacked."""
    delivered: int = 0
    rejected: int = 0
    """Those that MLflow would not take: the run's tag ``morel.rejected`` says why."""
    busy: str = ""
    """Why it was let be: its driver is at work, and delivers itself."""

    def __str__(self) -> str:
        if self.busy:
            return f"{self.name}: let be: {self.busy}"
        where = f"MLflow at {self.uri}, experiment {self.experiment}"
        line = f"{self.name}: {self.pending} of {self.events} events pending for {where}"
        if self.delivered or self.rejected:
            line += f"; {self.delivered} delivered, {self.rejected} rejected"
        return line


def sync(
    targets: Sequence[str],
    config: RunConfig,
    given: Mapping[str, Any],
    *,
    dry_run: bool = False,
) -> list[Synced]:
    """Deliver what is pending, run by run; doing it again delivers nothing.

    Args:
        targets: names of runs in ``storage_path``, or their folders; none: all of them.
        config: where runs are.
        given: settings of the command line by dotted key: ``tracking.uri`` and
            ``tracking.experiment`` win over those that a run was begun with.
        dry_run: only count.

    Raises:
        MorelError: a target has no journal, or its driver is at work; or MLflow is out of reach.
            What was delivered until then stays.
    """
    folders = [_folder(target, config) for target in targets]
    journals = {folder: Journal(f"{folder}/journal") for folder in folders or _all(config)}
    first = {folder: next(journal.events(), None) for folder, journal in journals.items()}
    for folder in folders:
        if first[folder] is None:
            raise MorelError(
                f"{folder}: holds no journal: give the name of a run in storage_path="
                f"{config.storage_path}, or the folder of one"
            )
    begun = [(event.time, folder) for folder, event in first.items() if event is not None]
    done: list[Synced] = []
    for _, folder in sorted(begun):  # a campaign before its searches, which look for it
        tracking = _tracking(folder, config, given)
        try:
            with held(folder, config.cluster.lease_s):
                done.append(_deliver(folder, journals[folder], tracking, dry_run))
        except LeaseHeldError as error:
            if folders:
                raise
            done.append(_let_be(folder, tracking, str(error)))
    return done


def _folder(target: str, config: RunConfig) -> str:
    if "/" in target:
        return absolute_storage(target.rstrip("/"))
    return f"{config.storage_path}/{target}"


def _all(config: RunConfig) -> list[str]:
    """Folders of ``storage_path``; those without a journal among them."""
    return [f"{config.storage_path}/{name}" for name in storage.names(config.storage_path)]


def _tracking(folder: str, config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """``config`` with the tracking of the run: as given now, else as it was begun with."""
    noted: dict[str, Any] = json.loads(storage.read_text(f"{folder}/{FILE}") or "{}")
    values = {"storage_path": folder.rpartition("/")[0]}
    for key in ("tracking.uri", "tracking.experiment"):
        before = noted.get(key, noted.get(f"base.{key}"))
        if key not in given and before is not None:
            values[key] = before
    return with_overrides(config, values)


def _deliver(folder: str, journal: Journal, config: RunConfig, dry_run: bool) -> Synced:
    tracker = MlflowTracker.connect(tracking_uri(config), config.tracking.experiment)
    try:
        events = list(journal.events())
        found = _synced(folder, config, len(events), _pending(events, tracker))
        if dry_run or not found.pending:
            return found
        try:
            done = replay(journal, tracker)
        except (ConnectionError, OSError) as error:
            reason = (str(error).splitlines() or ["no answer"])[0]
            raise MorelError(
                f"{found.name}: MLflow at {found.uri} does not answer any more ({reason}): what "
                "was delivered stays; give the same command again for the rest"
            ) from error
    finally:
        tracker.close()
    return replace(found, delivered=done.delivered, rejected=done.rejected)


def _pending(events: Sequence[Event], tracker: MlflowTracker) -> int:
    """How many of a journal's events MLflow lacks."""
    cursors: dict[str, int] = {}
    for event in events:
        if event.run_id not in cursors:
            cursors[event.run_id] = tracker.cursor(event)
    return sum(event.seq > cursors[event.run_id] for event in events)


def _let_be(folder: str, config: RunConfig, busy: str) -> Synced:
    return replace(_synced(folder, config, 0, 0), busy=busy)


def _synced(folder: str, config: RunConfig, events: int, pending: int) -> Synced:
    return Synced(
        name=folder.rpartition("/")[2],
        folder=folder,
        uri=masked_address(tracking_uri(config)),
        experiment=config.tracking.experiment,
        events=events,
        pending=pending,
    )
