"""The trials of a search as the driver sees them: what happened, recorded as it arrives."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol, cast, get_args

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.compare.runs import LINEAGE
from orchestrator.config import RunConfig, flatten, to_dict, with_overrides
from orchestrator.driver import ending
from orchestrator.messages.failures import FAILED, failure_reason
from orchestrator.search import goal
from orchestrator.search.parameters import is_number
from orchestrator.search.population import Population
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import (
    NUMBER,
    POINT,
    STOP_REASON,
    State,
    Trial,
    never_began,
    run_name,
)
from orchestrator.tracking import Recorder, own_params, own_tags, records
from orchestrator.training.keys import TRAINED
from orchestrator.training.recovery import DAMAGED
from orchestrator.training.retries import CHANGES, error_text, note_retry, retries, retry_tags

_logger = logging.getLogger(__name__)


def _in_tune(report: Mapping[str, Any]) -> float:
    """Seconds that a trial took until a report, as Tune counts them."""
    return float(report.get("time_total_s", 0.0))


class View(Protocol):
    """Shows a search while it runs."""

    def update(self, trials: Sequence[Trial]) -> None:
        """Something changed; with no trials yet, Ray is starting."""
        ...

    def say(self, line: str) -> None:
        """Something about the whole search."""
        ...


class TrialBook:
    """Follows Tune's trials in the driver: into the journal, and onto the screen."""

    def __init__(
        self,
        search: SearchConfig,
        recorder: Recorder,
        view: View | None,
        on_end: Callable[[Trial], None] | None = None,
    ) -> None:
        self.search = search
        self.recorder = recorder
        self.view = view
        self._on_end = on_end
        self.held_before: Mapping[str, float] = {}
        """``held`` of trials by run id, from the status that an earlier driver left."""
        self.cut = ""
        """Why the search ends before its trials do; the budget, say."""
        self.stopped_by_hand: set[str] = set()
        """Run ids of trials that somebody stopped."""
        self._trials: dict[str, Trial] = {}
        self._run_ids: dict[str, str] = {}
        self._configs: dict[str, RunConfig] = {}
        """With which each trial is recorded, by run id."""
        self._settled: set[str] = set()
        self._reported: dict[str, dict[str, Any]] = {}
        self._recorded = {
            int(past.tags[NUMBER]): run_id
            for run_id, past in recorder.past.items()
            if past.parent == search.base.name and NUMBER in past.tags
        }
        self._tune_trials: dict[str, Any] = {}
        whole = recorder.past.get(str(search.base.name))
        self._shared = records.params(search.base) if whole is None else whole.params
        """What the search's own run has recorded …"""
        self._shared_tags = records.environment_tags() if whole is None else whole.tags
        """… of both."""

    @property
    def trials(self) -> list[Trial]:
        """All trials so far, in the order of the searcher."""
        return sorted(self._trials.values(), key=lambda trial: trial.number)

    def end(self) -> None:
        """The search is over: what still seems to run was cut off."""
        for trial in self.trials:
            if trial.state == "running":
                trial.release()
                self._locate(trial, self._tune_trials[trial.run_id])
                self._close(trial, "stopped", f"{self.cut or 'cut off'} at epoch {trial.epoch}")

    def start(self, tune_trial: Any) -> Trial:
        """The trial of a Tune trial, recorded when it is first seen."""
        run_id = self.run_id(tune_trial)
        known = self._trials.get(run_id)
        config = tune_trial.config
        if known is not None:
            if known.state != "running" or known.holding_since is None:
                known.state, known.holding_since = "running", time.time()
            if known.params != config["params"]:  # it took over a network, and near its settings
                known.params, known.label = dict(config["params"]), self._label(config)
            return known
        trial = Trial(
            run_id=run_id,
            number=int(config["index"]) + 1,
            label=self._label(config),
            params=dict(config["params"]),
            baseline=config["baseline"],
            retries=retries(tune_trial),
            changes=dict(config.get(CHANGES, {})),
            last=dict(last := self._reported.get(tune_trial.trial_id, {})),
            seconds=goal.seconds(last) or 0.0,
            held=self.held_before.get(run_id, _in_tune(last)),
            holding_since=time.time(),
        )
        self._trials[run_id], self._tune_trials[run_id] = trial, tune_trial
        self._record_start(trial, config)
        self.show()
        return trial

    def _label(self, config: Mapping[str, Any]) -> str:
        """A baseline's name, or the point; under pbt as long as it trains with those settings."""
        space, name, params = self.search.space, config["baseline"], config["params"]
        if name and self.search.scheduler.name == "pbt":
            kept = all(params.get(k) == v for k, v in space.baseline_params(name).items())
            name = name if kept else None
        return space.label_of(name, params)

    def _record_start(self, trial: Trial, config: Mapping[str, Any]) -> None:
        tags = {"morel.search": str(self.search.base.name), "morel.kind": "trial"}
        tags |= self.search.tags
        tags |= {NUMBER: str(trial.number), POINT: json.dumps(trial.params)}
        tags |= {"morel.baseline": trial.baseline} if trial.baseline else {}
        helpers = {f"search.{key}": value for key, value in trial.params.items() if "." not in key}
        searched: dict[str, Any] = config["overrides"]
        try:
            run = self.search.trial_config(trial.params)
        except MorelError:  # a point that no run can have: Tune will say so as well
            run, params = self.search.base, searched
            resolved = to_dict(run)
        else:
            resolved = to_dict(run)
            params = own_params(flatten(resolved), self._shared, searched)
        self._configs[trial.run_id] = run
        self.recorder.start_run(
            trial.run_id,
            name=run_name(trial),
            parent=str(self.search.base.name),
            params={**params, **helpers},
            config=resolved,
            tags=own_tags(records.run_tags(run, "trial"), self._shared_tags) | tags,
        )

    def result(self, tune_trial: Any, report: Mapping[str, Any]) -> None:
        """A report arrived."""
        trial = self.start(tune_trial)
        self._say_damaged(trial, str(report.get(DAMAGED, "")))
        settings = self._settings(trial)
        for metrics in report["epochs"]:
            attack = records.measured_with(self.search.base, metrics)
            recorded = records.epoch_metrics(metrics, attack) | settings
            self.recorder.epoch(trial.run_id, int(metrics["epoch"]), recorded)
        # A report that it failed for good has no numbers: those before it stay.
        trial.last = {**trial.last, FAILED: report[FAILED]} if FAILED in report else dict(report)
        trial.seconds = goal.seconds(trial.last) or 0.0
        step = float(report.get("time_this_iter_s", 0.0))
        trial.held = max(trial.held + step, _in_tune(report))
        trial.holding_since = time.time()
        self.show()

    def _say_damaged(self, trial: Trial, said: str) -> None:
        """That a trial went on from another checkpoint than its newest, when it first says so."""
        if said and said != trial.last.get(DAMAGED) and self.view is not None:
            self.view.say(f"trial {trial.number} {trial.label}: {said}")

    def complete(self, tune_trial: Any) -> None:
        """A trial ended without an error, by itself or because it was stopped."""
        trial = self.start(tune_trial)
        if tune_trial.last_result and not trial.last:  # restored: it ended before this driver
            trial.last = dict(tune_trial.last_result)
            trial.seconds = goal.seconds(trial.last) or 0.0
            trial.held = max(trial.held, _in_tune(trial.last))
        trial.holding_since = None
        self._locate(trial, tune_trial)
        reason = records.own_end(trial.last)
        if FAILED in trial.last:
            self._close(trial, "failed", trial.last[FAILED])
        elif trial.last.get("diverged"):
            self._close(trial, "diverged", reason)
        elif trial.last.get("catastrophic_overfitting"):
            self._close(trial, "stopped", reason)
        elif reason:
            self._close(trial, "finished", reason)
        elif trial.run_id in self.stopped_by_hand:
            self._close(trial, "stopped", f"stopped by morel stop at epoch {trial.epoch}")
        else:
            scheduler = self.search.scheduler.name.upper()
            why = getattr(tune_trial, STOP_REASON, "")
            reason = f"{scheduler} stopped it at epoch {trial.epoch}" + (f": {why}" if why else "")
            self._close(trial, "stopped", reason)

    def _settings(self, trial: Trial) -> dict[str, float]:
        """What pbt trains with at present, where it is a number: MLflow's params cannot change."""
        if self.search.scheduler.name != "pbt":
            return {}
        return {f"pbt.{k}": float(v) for k, v in trial.params.items() if is_number(v)}

    def _history(self, trial: Trial) -> tuple[dict[str, str], dict[str, str]]:
        """Tags and texts of a pbt trial: whose networks it took over, and what trained its own."""
        if self.search.scheduler.name != "pbt":
            return {}, {}
        base = self.search.base
        population = Population.read(f"{base.storage_path}/{base.name}")
        stages = [
            asdict(stage) | {"overrides": self.search.space.overrides(stage.params)}
            for stage in population.schedule(trial.number, trial.params)
        ]
        tags = {LINEAGE: population.lineage(trial.number)}
        if len(stages) > 1:  # no run of constant settings is its twin
            tags["morel.key"] = hashlib.sha256(json.dumps(stages).encode()).hexdigest()[:16]
        return tags, {"pbt.json": json.dumps(stages, indent=2)}

    @contextmanager
    def ended_records(self) -> Generator[None]:
        """Inside, an exception that ends the search also ends the records of its running trials."""

        def killed() -> None:
            for trial in self.trials:
                if trial.state == "running":
                    self.recorder.finish(
                        trial.run_id,
                        status="KILLED",
                        stop_reason="interrupted with its search; it goes on with it",
                        tags={"morel.state": "killed"},
                    )

        try:
            with ending.closed_on_signal(killed):
                yield
        except BaseException:
            killed()
            raise

    def adopt(self, tune_trials: Sequence[Any]) -> None:
        """Take in the trials that ended before this driver started."""
        for tune_trial in tune_trials:
            if self.settled(tune_trial):
                continue
            run_id = self.run_id(tune_trial)
            trial = self._trials.get(run_id)
            if trial is not None and tune_trial.status in ("PAUSED", "PENDING"):
                trial.release()  # what waits costs nothing
            if not tune_trial.is_finished():
                continue
            self._settled.add(tune_trial.trial_id)
            if trial is not None or never_began(tune_trial):
                continue
            past = self.recorder.past.get(run_id)
            if tune_trial.status == "ERROR":
                self.error(tune_trial)
            elif past is not None and past.state in get_args(State):
                self._take_back(tune_trial, cast(State, past.state), past.stop_reason)
            else:
                self.complete(tune_trial)

    def settled(self, tune_trial: Any) -> bool:
        """Whether a trial has ended and is taken in."""
        return tune_trial.trial_id in self._settled

    def remember(self, saved: Sequence[Any]) -> None:
        """Note how far the trials were that an earlier driver left unfinished."""
        for tune_trial in saved:
            if not tune_trial.is_finished() and "epoch" in tune_trial.last_result:
                self._reported[tune_trial.trial_id] = dict(tune_trial.last_result)

    def _take_back(self, tune_trial: Any, state: State, reason: str) -> None:
        """A trial whose end is recorded: only this driver did not know of it yet."""
        trial = self.start(tune_trial)
        trial.last = dict(tune_trial.last_result or {})
        trial.seconds = goal.seconds(trial.last) or 0.0
        trial.held, trial.holding_since = max(trial.held, _in_tune(trial.last)), None
        self._locate(trial, tune_trial)
        trial.state, trial.reason = state, reason
        self._ended(trial)

    def run_id(self, tune_trial: Any) -> str:
        """Our id of a Tune trial.

        One whose driver was killed before Tune had saved that it exists comes again under another
        id of Tune's, but with its number: it keeps the record that it has.
        """
        own = tune_trial.trial_id
        if own not in self._run_ids:
            number = int(tune_trial.config["index"]) + 1
            self._run_ids[own] = self._recorded.get(number, f"{self.search.base.name}/{own}")
        return self._run_ids[own]

    def unsaved(self, saved: Sequence[Any]) -> dict[int, dict[str, Any]]:
        """Points of recorded trials that Tune has not ``saved``, by index: to be tried again."""
        points = {
            number - 1: json.loads(self.recorder.past[run_id].tags[POINT])
            for number, run_id in self._recorded.items()
        }
        known = {trial.config["index"] for trial in saved}
        return {index: point for index, point in points.items() if index not in known}

    def _locate(self, trial: Trial, tune_trial: Any) -> None:
        """Where its newest checkpoint lies, if it has one."""
        path = trial.last.get("checkpoint_path")  # of Ray Train inside the trial
        if self.search.resources.workers == 1 and tune_trial.checkpoint is not None:
            path = tune_trial.checkpoint.path
        # One stopped while its twin's epochs were told again has a network that knows later ones.
        if path and trial.last.get(TRAINED, 0) <= trial.epoch:
            trial.checkpoint = storage.uri(self.search.base.storage_path, str(path))

    def retry(self, tune_trial: Any) -> None:
        """A trial failed, and Tune runs it again."""
        trial = self.start(tune_trial)
        own = self._configs[trial.run_id]
        note_retry(tune_trial, with_overrides(own, trial.changes), trial.epoch)
        trial.retries = retries(tune_trial)
        trial.changes = dict(tune_trial.config.get(CHANGES, {}))
        self.show()

    def error(self, tune_trial: Any) -> None:
        """A trial failed for good; the search goes on."""
        trial = self.start(tune_trial)
        trial.release()
        self._close(trial, "failed", failure_reason(error_text(tune_trial)))

    def _close(self, trial: Trial, state: State, reason: str) -> None:
        from orchestrator.search.note import trial_note  # it is about trials: it imports them

        trial.state, trial.reason = state, reason
        attack = records.measured_with(self.search.base, trial.last, "best_")
        metrics = records.best_metrics(trial.last, attack)
        metrics |= {"train.seconds": trial.seconds}
        metrics |= self.search.resources.cost(trial.held)
        if "images_per_second" in trial.last:
            metrics["train.images_per_second"] = float(trial.last["images_per_second"])
        tags, texts = self._history(trial)
        self.recorder.finish(
            trial.run_id,
            status="FAILED" if state in ("failed", "diverged") else "FINISHED",
            stop_reason=reason,
            metrics=metrics,
            texts=texts,
            note=trial_note(self.search, trial),
            tags={
                **tags,
                "morel.state": state,
                "morel.diverged": str(state == "diverged").lower(),
                "morel.device": str(trial.last.get("device", "unknown")),
                "morel.checkpoint": trial.checkpoint or "",
                **self._judged(trial),
                **self._retry_tags(trial),
                **({"morel.twin": trial.twin} if trial.twin else {}),
            },
        )
        self._ended(trial)

    def _ended(self, trial: Trial) -> None:
        if self._on_end is not None:
            self._on_end(trial)
        self.show()

    def _judged(self, trial: Trial) -> dict[str, str]:
        """The tag that says which constraints a trial misses which came to its own end."""
        objective = self.search.objective
        if trial.state != "finished" or not objective.constraints:
            return {}
        return {"morel.missed": ", ".join(goal.complaints(objective, trial.last)) or "nothing"}

    def _retry_tags(self, trial: Trial) -> dict[str, str]:
        return retry_tags(trial.retries, self._configs[trial.run_id], trial.last)

    def show(self) -> None:
        """Let the view see what changed; what cannot be shown never ends a search."""
        if self.view is None:
            return
        try:
            self.view.update(self.trials)
        except Exception:
            _logger.exception("the trials cannot be shown any longer; the search goes on")
            self.view = None
