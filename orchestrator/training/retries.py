"""A trial that failed is run once more, from its last checkpoint; one out of memory in slices.

Tune decides that it runs again. What is kept here, with Tune's trial, survives the driver. Errors
that another attempt would only repeat never come here: see `orchestrator.search.attempt.failed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morel_core.errors import ConfigError
from orchestrator.config import RunConfig, with_overrides
from orchestrator.messages.failures import failure_reason, out_of_memory
from orchestrator.training.recovery import DAMAGED

CHANGES = "changes"
"""Key of a Tune trial's config: settings that a retry changed, on top of the overrides."""
RETRIES = "morel_retries"
"""Attribute of a Tune trial, kept with it: why it was run again, a line each time."""
MICRO_BATCHES = "training.micro_batches"


def note_retry(tune_trial: Any, run: RunConfig, epoch: int) -> None:
    """Keep why Tune runs a trial again; one out of memory does so with twice the micro-batches.

    Args:
        tune_trial: Tune's, before its new actor starts.
        run: the trial's config, with earlier changes.
        epoch: the last one that it reported.
    """
    reason = failure_reason(error_text(tune_trial))
    line = f"{reason} (after epoch {epoch})"
    if out_of_memory(reason):
        changes, how = in_more_slices(run)
        line = f"out of memory after epoch {epoch}; goes on {how}"
        config = dict(tune_trial.config)
        config[CHANGES] = {**config.get(CHANGES, {}), **changes}
        tune_trial.set_config(config)
    setattr(tune_trial, RETRIES, [*retries(tune_trial), line])
    tune_trial.invalidate_json_state()


def in_more_slices(run: RunConfig) -> tuple[dict[str, Any], str]:
    """The setting that doubles ``run``'s micro-batches, and in words; none where it cannot be."""
    changes = {MICRO_BATCHES: 2 * run.training.micro_batches}
    try:
        with_overrides(run, changes)
    except ConfigError as error:
        return {}, f"as it was ({error})"
    return changes, f"with {MICRO_BATCHES} = {changes[MICRO_BATCHES]}"


def retries(tune_trial: Any) -> list[str]:
    """Why a trial was run again so far."""
    return list(getattr(tune_trial, RETRIES, []))


def retry_tags(lines: Sequence[str], own: RunConfig, report: Mapping[str, Any]) -> dict[str, str]:
    """Tags of what happened to a run: why it was run again, and what differs by it.

    Args:
        lines: why, of each time.
        own: the config that it is recorded with.
        report: its newest, see `orchestrator.training.reports.circumstances`.
    """
    tags = {"morel.retry": "; ".join(lines)} if lines else {}
    if report.get(DAMAGED):
        tags["morel.damaged"] = str(report[DAMAGED])
    if report.get("workers_by_epoch"):
        tags["morel.workers"] = str(report["workers_by_epoch"])
    if report.get("batchnorm_workers"):
        tags["morel.differs"] = (
            f"the number of workers changed ({report['batchnorm_workers']}): BatchNorm's "
            "statistics are those of each worker's rows"
        )
    slices, meant = int(report.get("batchnorm_slices", 0)), own.training.micro_batches
    if slices > meant:
        tags["morel.differs"] = (
            f"{MICRO_BATCHES} = {slices}, not {meant}: BatchNorm's statistics are those of slices, "
            "so its numbers are of another run than its config says"
        )
    return tags


def error_text(tune_trial: Any) -> str | None:
    """The text of a trial's errors: still local when Tune tells of one, later in storage."""
    local = Path(tune_trial.error_file or "")
    return local.read_text() if local.is_file() else tune_trial.get_error()
