"""What the exchanges of population-based training decided, and what follows for a trial.

Kept in ``scheduler/population.json`` in the search's folder, written before an exchange happens, so
that a search whose driver died goes on from there. Not beside Tune's own files: a restored Tune
writes every JSON file that it finds there back as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator import storage
from orchestrator.search.parameters import Values


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a trial goes on after an exchange."""

    trained_with: Values
    """Raw values of its parameters up to here …"""
    params: Values
    """… and from here on."""
    donor: int | None
    """Number of the trial whose network it takes over; None: it keeps its own."""
    checkpoint: str
    """Path as Ray gives it."""
    report: dict[str, Any]
    """Numbers of the report that the checkpoint followed."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One exchange: after ``epoch``, of all trials that still train, by number, from 1.

    Tune's ids would not do: a trial that a kill kept from Tune's state comes again under another.
    """

    epoch: int
    places: dict[int, Place]


@dataclass
class Population:
    """All exchanges so far, in order."""

    exchanges: list[Exchange] = field(default_factory=lambda: list[Exchange]())

    @staticmethod
    def read(folder: str) -> Population:
        """The population of the search in ``folder`` (path or URI); empty at first."""
        content = json.loads(storage.read_text(f"{folder}/scheduler/population.json") or "[]")
        return Population(
            [
                Exchange(
                    epoch=exchange["epoch"],
                    places={int(n): Place(**place) for n, place in exchange["places"].items()},
                )
                for exchange in content
            ]
        )

    def write(self, folder: str) -> None:
        """Keep it in the search's folder."""
        content = json.dumps([asdict(exchange) for exchange in self.exchanges], indent=1)
        storage.write(f"{folder}/scheduler/population.json", content.encode())

    def newest(self, number: int) -> tuple[int, Place] | None:
        """Epoch and place of a trial's newest exchange."""
        for exchange in reversed(self.exchanges):
            if number in exchange.places:
                return exchange.epoch, exchange.places[number]
        return None

    def lineage(self, number: int) -> str:
        """Whose networks a trial took over: ``epoch 2 from trial 003, epoch 4 from trial 001``."""
        mine = [(exchange.epoch, exchange.places.get(number)) for exchange in self.exchanges]
        return ", ".join(
            f"epoch {epoch} from trial {place.donor:03d}"
            for epoch, place in mine
            if place is not None and place.donor is not None
        )

    def schedule(self, number: int, params: Mapping[str, Any]) -> list[Stage]:
        """How the network that a trial ended with was trained, from its first epoch on.

        Args:
            number: of the trial, from 1.
            params: its raw values, if it never met an exchange.
        """
        stages: list[Stage] = []
        last: int | None = None
        for exchange in reversed(self.exchanges):
            place = exchange.places.get(number)
            if place is None:
                continue
            stages.append(Stage(exchange.epoch + 1, last, number, place.params))
            last, number = exchange.epoch, place.donor or number
            params = exchange.places[number].trained_with
        stages.append(Stage(1, last, number, dict(params)))
        return stages[::-1]


def workers_name(trial_id: str, after: int) -> str:
    """Name of the Ray Train run that trains a trial of several workers on after an epoch.

    A stretch that was cut off finds its own checkpoints, and none of those before an exchange.
    """
    return f"workers_{trial_id}_{after:04d}"


@dataclass(frozen=True)
class Stage:
    """Some epochs of a network's training."""

    first_epoch: int
    last_epoch: int | None
    """None: to the end."""
    trial: int
    """Number of the trial that trained them."""
    params: Values
    """Raw values of its parameters meanwhile."""
