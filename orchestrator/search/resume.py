"""Going on with Ray Tune's own state of a search, also with more trials than it began with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune import ExperimentAnalysis
from ray.tune.search import ConcurrencyLimiter, SearchGenerator

from morel_core.errors import MorelError
from orchestrator.search import seals
from orchestrator.search.searcher import SpaceSearcher
from orchestrator.search.trial import never_began


def saved_trials(folder: str) -> list[Any]:
    """Tune's trials as an earlier driver of the search in ``folder`` left them; none before that.

    Raises:
        MorelError: there is a state, but it is not ours or cannot be read.
    """
    if not seals.check(folder):
        return []
    try:
        return list(_State(folder).trials or [])
    except Exception as error:
        raise unreadable(folder) from error


def unreadable(folder: str) -> MorelError:
    """What to say where Tune's state is no use."""
    return MorelError(
        f"{folder}: Ray Tune's state of this search cannot be read: its driver was killed while it "
        "was written; move the newest experiment_state-*, search_gen_state-* and searcher-state-* "
        "away to go on from the ones before (without any, trials are trained anew in their records)"
    )


class _State(ExperimentAnalysis):
    """Tune's state without each trial's reports, which no logger of Tune's wrote."""

    def _fetch_trial_dataframes(self) -> dict[str, Any]:
        return {}


class TrialSource(SearchGenerator):
    """Where Tune gets its trials from.

    Tune restores how many trials a search began with, how many ran at a time, and whether it was
    over. Here all three are those of today's command, so that a search can grow.

    Args:
        searcher: who proposes them.
        concurrent: trials at a time.
        folder: of the search.
        saved: see `saved_trials`.
        closed: nothing is proposed any more: the budget is spent.
    """

    def __init__(
        self,
        searcher: SpaceSearcher,
        *,
        concurrent: int,
        folder: str,
        saved: Sequence[Any],
        closed: bool,
    ) -> None:
        seals.warn_without_key(folder)
        self._limiter = ConcurrencyLimiter(searcher, max_concurrent=concurrent)
        super().__init__(self._limiter)
        self._proposer = searcher
        self._concurrent = concurrent
        self._folder = folder
        self._saved = saved
        self._closed = closed

    def add_configurations(self, experiments: Any) -> None:
        """Begin; Tune would also do so, in silence, where it could not read its state."""
        if self._saved:
            raise unreadable(self._folder)
        super().add_configurations(experiments)

    def save_to_dir(self, dirpath: str, session_str: str) -> None:
        """Write the state, sealed; Tune calls this after it has written its own beside."""
        super().save_to_dir(dirpath, session_str)
        seals.seal(dirpath, session_str)

    def has_checkpoint(self, dirpath: str) -> bool:
        """Whether there is a state, which Tune unpickles to find out."""
        seals.check_copy(dirpath)
        return super().has_checkpoint(dirpath)

    def restore_from_dir(self, dirpath: str) -> None:
        """Take back what was saved; Tune calls this."""
        super().restore_from_dir(dirpath)
        self._limiter.max_concurrent = self._concurrent
        self._total_samples, self._finished = self._proposer.total_trials, self._closed
        points = {trial.config["index"]: trial.config["params"] for trial in self._saved}
        begun = {trial.config["index"] for trial in self._saved if not never_began(trial)}
        self._counter = len(begun)
        self._proposer.go_on_from(points, sorted(points.keys() - begun))
        trials = {trial.trial_id: trial for trial in self._saved}
        for trial_id in list(self._limiter.live_trials):
            trial = trials.get(trial_id)
            if trial is None:  # proposed, but not saved: it is proposed again
                self.on_trial_complete(trial_id, error=True)
            elif trial.is_finished():  # cut off: Tune told nobody
                self.on_trial_complete(
                    trial_id, trial.last_result, error=trial.status == trial.ERROR
                )
