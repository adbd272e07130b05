"""One trial of a search: what is known of it, and the keys under which others speak of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.config import RunConfig, with_overrides
from orchestrator.search.space import SearchConfig
from orchestrator.search.verified import Verified
from orchestrator.training.keys import TWIN

STOP_REASON = "morel_stop_reason"
"""Attribute of a Tune trial, kept with it: its scheduler says there why it stopped the trial."""

IMPOSSIBLE = "impossible"
"""Key of a trial's config: why its point has no settings that a run could have."""

State = Literal["running", "finished", "stopped", "diverged", "failed"]
LONGEST_NAME = 80
"""Characters of a trial's name in MLflow."""
NUMBER, POINT = "morel.number", "morel.point"
"""Tags of a trial: its place in its search, and the raw values that were tried."""


def never_began(tune_trial: Any) -> bool:
    """Whether a Tune trial was ended while it waited: its search was over before its turn came."""
    return tune_trial.status == "TERMINATED" and tune_trial.run_metadata.start_time is None


@dataclass(kw_only=True)
class Trial:
    """One trial: its point, its newest numbers and how it ended."""

    run_id: str
    number: int
    label: str
    params: dict[str, Any]
    baseline: str | None = None
    state: State = "running"
    reason: str = ""
    last: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    """The newest report of the trainer."""
    started: float = field(default_factory=time.time)
    seconds: float = 0.0
    """What training its network took; of one taken over from a twin, there."""
    held: float = 0.0
    """Seconds of training that it cost: epochs that a crash made it repeat count each time."""
    holding_since: float | None = None
    """From when on it holds its resources beyond ``held``; None while it does not."""
    checkpoint: str | None = None
    test: dict[str, float] = field(default_factory=lambda: dict[str, float]())
    """Final numbers on the test set: the winner's alone, unless ``final.trials`` says otherwise."""
    test_seconds: float = 0.0
    """That measuring them took."""
    untested: str = ""
    """Why those could not be measured."""
    verified: Verified | None = None
    """Its numbers under the verification's attacks, if it was a candidate for the win."""
    standing: str = ""
    """Of a candidate: that it is being verified, then what came out."""
    retries: list[str] = field(default_factory=lambda: list[str]())
    """Why it was run again, of each time."""
    changes: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    """Settings that a retry changed, by dotted key."""

    def held_until(self, now: float) -> float:
        """``held``, with the epoch that it is in at ``now`` (unix seconds)."""
        return self.held + (0.0 if self.holding_since is None else now - self.holding_since)

    def release(self) -> None:
        """It holds its resources no longer."""
        self.held, self.holding_since = self.held_until(time.time()), None

    @property
    def epoch(self) -> int:
        """Epochs trained."""
        return int(self.last.get("epoch", 0))

    @property
    def length(self) -> int:
        """Epochs of the whole run; one that gave up early (`training.patience`) counts as whole."""
        return int(self.last.get("num_epochs", self.epoch))

    @property
    def measured(self) -> bool:
        """Whether there is a best epoch."""
        return "best_epoch" in self.last

    @property
    def twin(self) -> str:
        """Run id of the trial whose training it took over, if it did."""
        return str(self.last.get(TWIN, ""))

    @property
    def rung(self) -> int:
        """The rung of its best epoch, counted from 1; 0 in a search without rungs."""
        return int(self.last.get("best_rung", 0))


def trial_folder_name(tune_id: str) -> str:
    """Of a trial's folder in that of its search: nothing from a config, which may hold anything."""
    return f"trial_{tune_id}"


def run_name(trial: Trial) -> str:
    """Of a trial's run in MLflow: its number, for the order, and as much of its point as is read.

    ``007 k1=0.371 alpha=2.04e-06``; what does not fit into `LONGEST_NAME` is counted.
    """
    kept, left = f"{trial.number:03d}", trial.label.split(" ")
    while left and len(kept) + len(left[0]) < LONGEST_NAME:
        kept = f"{kept} {left.pop(0)}"
    return f"{kept} +{len(left)}" if left else kept


def run_of(search: SearchConfig, trial: Trial) -> RunConfig:
    """The run of a trial as it is trained: its point, and what retries changed."""
    return with_overrides(search.trial_config(trial.params), trial.changes)
