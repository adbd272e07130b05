"""What a search takes over from earlier ones, and leaves to later ones, as its driver sees it."""

from __future__ import annotations

import logging

from orchestrator.provenance.fingerprint import code_hash
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import Trial, run_of
from orchestrator.training.twins import Twin, Twins

_logger = logging.getLogger(__name__)


def find_twins(search: SearchConfig, fingerprint: str) -> Twins | None:
    """Where trials that are trained already are found; None if the search wants none of them.

    Under population-based training a trial is not what its settings say.
    """
    if not search.reuse or search.scheduler.name == "pbt":
        return None
    base = search.base
    return Twins(
        folder=f"{base.storage_path}/twins",
        code=code_hash(),
        fingerprint=fingerprint,
        data=base.data,
    )


def note_twin(twins: Twins, search: SearchConfig, trial: Trial) -> None:
    """Let later trials find ``trial``, if it ended well and was saved."""
    if trial.state not in ("finished", "stopped") or trial.checkpoint is None:
        return
    twin = Twin(run_id=trial.run_id, checkpoint=trial.checkpoint, epochs=trial.epoch)
    try:
        twins.note(run_of(search, trial), twin)
    except OSError as error:  # another search trains it once more: no loss for this one
        _logger.warning("trial %s is not noted for later searches: %s", trial.number, error)
