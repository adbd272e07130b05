"""What the processes of all trials do alike: the run of a trial, and one that cannot be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from morel_core import MorelError
from orchestrator.config import RunConfig, with_overrides
from orchestrator.messages.failures import FAILED, failure_reason
from orchestrator.search.trial import IMPOSSIBLE
from orchestrator.training.reports import WORST
from orchestrator.training.retries import CHANGES


def failed(error: Exception) -> dict[str, Any]:
    """The last report of a trial that another attempt would not help: why, and the worst numbers.

    Raised as an error, Tune would run it once more.
    """
    return {**WORST, "epoch": 0, "epochs": [], FAILED: failure_reason(error)}


def run_of(base: RunConfig, config: Mapping[str, Any]) -> RunConfig:
    """The run of a trial: ``base`` with what Tune's config overrides, and what retries changed.

    Raises `MorelError` where there is no such run.
    """
    if IMPOSSIBLE in config:
        raise MorelError(config[IMPOSSIBLE])
    return with_overrides(base, {**config["overrides"], **config.get(CHANGES, {})})
