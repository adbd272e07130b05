"""A search: Ray Tune runs the trials, each is recorded, the winner is measured on the test set."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from morel_core.data import load_data
from morel_core.errors import ConfigError
from orchestrator import storage
from orchestrator.cluster import (
    cluster_address,
    driver_resources,
    local_resources,
    ray_session,
)
from orchestrator.config import to_dict
from orchestrator.driver import control
from orchestrator.driver.lease import Fence, held
from orchestrator.provenance.identity import check_identity, noted_data
from orchestrator.search.budget import Cost
from orchestrator.search.final import measure_on_test
from orchestrator.search.front import FrontRecord
from orchestrator.search.milestones import milestones
from orchestrator.search.note import search_note
from orchestrator.search.result import SearchResult
from orchestrator.search.reuse import find_twins, note_twin
from orchestrator.search.saved_view import view_of
from orchestrator.search.selection import choose
from orchestrator.search.space import SearchConfig, check_resources
from orchestrator.search.trial import Trial, trial_folder_name
from orchestrator.search.trials import TrialBook, View
from orchestrator.search.verify import record_verified, verify_candidates
from orchestrator.search.warm_start import Known, KnownTrial, known_trials
from orchestrator.search.watch import Watch
from orchestrator.settings.fits import check_fits
from orchestrator.tracking import DatasetPayload, records
from orchestrator.training.staging import Staged, stage
from orchestrator.training.twins import Twins

# A resumed search may run elsewhere; what it searches stays.
MAY_CHANGE = {
    *("budget", "max_concurrent", "reuse", "source", "description"),
    *("ladder.verify.top", "ladder.verify.attacks", "ladder.verify.num_images", "final"),
    *(
        "base.cluster.address",
        "base.cluster.lease_s",
        "base.tracking.uri",
        "base.data.root",
        "base.data.download",
    ),
}


def tune(
    search: SearchConfig, *, view: View | None = None, force_code: bool = False
) -> SearchResult:
    """Run a search to its end; the same name goes on where it stopped.

    Args:
        search: what to search; a finished one goes on with a larger ``num_trials``.
        view: is shown what happens.
        force_code: resume a search that other code began.

    Raises:
        MorelError: data, storage, cluster or MLflow are not as asked, or the name belongs to
            another search.
    """
    base = search.base
    if base.name is None:
        base = dataclasses.replace(base, name=records.new_name(search.name))
        search = dataclasses.replace(search, base=base)
    storage.check_writable(base.storage_path)
    if cluster_address(base) is None:
        check_resources(search, *local_resources())
    with held(f"{base.storage_path}/{base.name}", base.cluster.lease_s) as fence:
        control.forget_pause(fence.folder)  # asked of an earlier driver
        return _tune(search, fence, view, force_code)


def _tune(search: SearchConfig, fence: Fence, view: View | None, force_code: bool) -> SearchResult:
    """`tune`, under the search's lease."""
    base = search.base
    data = load_data(base.data)
    check_fits(base, data)
    identity = partial(
        check_identity,
        f"{base.storage_path}/{base.name}",
        {**definition(search), "base": to_dict(base), **noted_data(data)},
        may_change=MAY_CHANGE,
        may_grow=may_grow(search),
        force_code=force_code,
    )
    identity(begins=False)
    dataset = records.dataset_record(base, data)
    recorder = records.open_recorder(base)
    started = time.perf_counter()
    search_id = str(base.name)
    front = FrontRecord(search, recorder)
    twins = find_twins(search, data.fingerprint)
    forced = ""

    def ended(trial: Trial) -> None:
        front.add(trial)
        # Of one from before, other code may have trained a part: it is no twin of what this does.
        if twins is not None and not (forced and trial.run_id in recorder.past):
            note_twin(twins, search, trial)

    book = TrialBook(search, recorder, view, on_end=ended)
    watch = Watch(book)
    try:
        known = _known(search, view, dataset)
        if view is not None:
            view.say(f"{search_id}: its trials go to {base.storage_path}/{search_id}")
            view.update([])  # Ray takes some seconds to start
        # Without the dashboard a stopped multi-worker trial would keep its CPUs (ray#54305).
        with (
            ray_session(base, dashboard=base.scaling.max_workers > 1) as there,
            book.ended_records(),
            records.ended_record(recorder, search_id, code_changes=(forced := identity())),
            watch.watching(),
        ):
            recorder.start_run(
                search_id,
                name=search_id,
                parent=search.parent,
                params=records.params(base) | search_params(search),
                config={"search": definition(search), "base": to_dict(base)},
                tags={
                    **records.run_tags(base, "search"),
                    "morel.search": search_id,
                    **({"morel.warm_start": "\n".join(known.lines)} if known.lines else {}),
                    **search.tags,
                },
                dataset=dataset,
            )
            recorder.view(search_id, view_of(search))
            check_resources(search, *there)
            staged = stage(base.data, data)
            del data  # from here on it lies in Ray's object store
            with front.kept_up():
                _fit(
                    search, watch, there, known.trials, make_trainable(search, staged, twins, fence)
                )
            watch.state = "verifying"
            if search.ladder.verify.top:
                verify_candidates(search, book, twins)
            winner = choose(search, book.trials)
            record_verified(search, book.trials, winner, recorder)
            watch.state = "testing"
            measure_on_test(search, book.trials, winner, recorder)
            seconds = time.perf_counter() - started
            files = front.finish(winner)
            cost = watch.meter.cost(book.trials)
            finish_search(search, book, winner, seconds, cost, artifacts=files)
            recorder.flush(records.DELIVERY_S)
    finally:
        pending = recorder.close()
    return SearchResult(
        search=search,
        trials=book.trials,
        winner=winner,
        seconds=seconds,
        cost=cost,
        cut=book.cut,
        recorded=pending == 0,
    )


# --- identity ------------------------------------------------------------------------------------


def definition(search: SearchConfig) -> dict[str, Any]:
    """What a search is, plain: two searches of one name must agree on it."""
    fields = {
        field.name: getattr(search, field.name)
        for field in dataclasses.fields(search)
        if field.name not in ("space", "base")
    }
    plain = {
        key: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # pyright: ignore[reportArgumentType]
        for key, value in fields.items()
    }
    return json.loads(json.dumps(plain, default=str))


def may_grow(search: SearchConfig) -> frozenset[str]:
    """The keys of numbers that may be larger than before.

    Not of a population's size: its exchanges are made, and trials that come later have no part in
    any of them.
    """
    return frozenset() if search.scheduler.name == "pbt" else frozenset({"num_trials"})


def search_params(search: SearchConfig) -> dict[str, Any]:
    """The search's own settings as MLflow parameters."""
    return {
        "search.space": search.name,
        "search.recipe": search.recipe,
        "search.searcher": search.searcher.name,
        "search.scheduler": search.scheduler.name,
        "search.num_trials": search.total_trials,
        "search.seed": search.seed,
        "search.metric": search.objective.metric,
        "search.ladder": records.ladder_label(search.base),
        "search.verify": ", ".join(search.ladder.verify.attacks) or "none",
        "search.workers_per_trial": search.resources.workers,
    }


# --- running -------------------------------------------------------------------------------------


def _known(search: SearchConfig, view: View | None, dataset: DatasetPayload) -> Known:
    """What a search that begins learns from earlier ones; a resumed one knows it already."""
    from orchestrator.search.resume import saved_trials

    if not search.warm_start or saved_trials(f"{search.base.storage_path}/{search.base.name}"):
        return Known([], [])
    known = known_trials(search, dataset)
    if view is not None:
        for line in known.lines:
            view.say(line)
    return known


def _fit(
    search: SearchConfig,
    watch: Watch,
    there: tuple[float, float],
    known: Sequence[KnownTrial],
    trainable: Any,
) -> None:
    """Run or resume the trials; one that begins learns from those of earlier searches."""
    from ray import tune as ray_tune

    from orchestrator.search.follow import Follow, Limit, following
    from orchestrator.search.lost_resets import lost_resets_retried
    from orchestrator.search.resume import TrialSource, saved_trials
    from orchestrator.search.schedulers import make_scheduler
    from orchestrator.search.searcher import SpaceSearcher

    base = search.base
    path = f"{base.storage_path}/{base.name}"
    saved = saved_trials(path)
    watch.book.remember(saved)
    watch.book.adopt(saved)  # before Tune is asked for more: they may have reached the target
    watch.there, watch.concurrent = there, concurrency(search, *there)
    in_step = search.scheduler.name == "pbt"
    reused = not in_step or search.resources.workers == 1
    source = TrialSource(
        SpaceSearcher(search, known, again=watch.book.unsaved(saved)),
        # pbt sees to it itself: paused trials would count as running.
        concurrent=search.total_trials if in_step else watch.concurrent,
        folder=path,
        saved=saved,
        closed=watch.over(),
    )
    # Tuner would bring back the settings of the search's first driver: not its larger number of
    # trials, not its new budget.
    with following(path, watch), lost_resets_retried(), watch.tuning():
        ray_tune.run(
            trainable,
            name=base.name,
            storage_path=base.storage_path,
            metric=search.objective.scalar,
            mode="max",
            search_alg=source,
            scheduler=make_scheduler(search, watch.concurrent),
            num_samples=search.total_trials,
            stop=Limit(path),
            callbacks=[Follow(path)],
            reuse_actors=reused,
            trial_dirname_creator=trial_folder,
            checkpoint_config=ray_tune.CheckpointConfig(
                # A donor's is read when its turn comes: pbt removes what nobody needs.
                num_to_keep=None if in_step else 2,
                checkpoint_at_end=reused,
            ),
            max_failures=base.scaling.max_failures,
            raise_on_failed_trial=False,
            resume_config=ray_tune.ResumeConfig() if saved else None,
            verbose=0,
        )
    # A search that had ended before makes no turn in which its trials would have been seen.
    watch.book.adopt(saved_trials(path))
    watch.book.end()


def trial_folder(trial: Any) -> str:
    """Name of a trial's folder: nothing from a config, which may hold anything."""
    return trial_folder_name(trial.trial_id)


def make_trainable(
    search: SearchConfig, staged: Staged, twins: Twins | None, fence: Fence | None = None
) -> Any:
    """The trainable with its resources: in a reused actor, or through Ray Train."""
    from ray import tune as ray_tune

    from orchestrator.search.multi_worker_trial import MultiWorkerTrial
    from orchestrator.search.one_worker_trial import MorelTrial
    from orchestrator.search.population_trial import population_trial

    training, evaluation = search.base.training, search.base.evaluation
    given = {
        "base": to_dict(search.base),
        "milestones": milestones(search.scheduler, training.epochs, evaluation.every),
        "staged": staged,
        "fence": fence,
    }
    asked = search.resources
    if asked.workers > 1:
        if search.scheduler.name == "pbt":
            trainable = ray_tune.with_parameters(population_trial, **given)
        else:
            trainable = ray_tune.with_parameters(MultiWorkerTrial, twins=twins, **given)
        # The workers ask for theirs themselves: this is the driver function's alone.
        driver = ray_tune.PlacementGroupFactory([driver_resources()])
        return ray_tune.with_resources(trainable, driver)
    trainable = ray_tune.with_parameters(MorelTrial, twins=twins, **given)
    resources = {"CPU": float(asked.cpus_per_worker), "GPU": float(asked.gpus_per_worker)}
    return ray_tune.with_resources(trainable, resources)


def concurrency(search: SearchConfig, cpus: float, gpus: float) -> int:
    """Trials at a time on the Ray that we are on: what it holds, or fewer if the search says so.

    Always a number: without one Tune keeps a single trial pending when a searcher is used, and
    multi-worker trials, whose workers are outside its accounting, could deadlock.
    """
    asked = search.resources
    driver = driver_resources().get("CPU", 0.0) if asked.workers > 1 else 0.0
    fits = fitting(search, cpus, gpus, driver)
    if fits < 1:
        raise ConfigError(
            f"{search.source}: resources.workers",
            asked.workers,
            f"one trial and its driver do not fit into {cpus:g} CPUs and {gpus:g} GPUs: ask for "
            "fewer workers, or start a node with --resources '{\"control\": 64}' for drivers",
        )
    return fits


def fitting(search: SearchConfig, cpus: float, gpus: float, driver_cpus: float = 0.0) -> int:
    """Trials that fit at a time, each with a driver of ``driver_cpus``; 0: not even one."""
    asked = search.resources
    fits = int(cpus / (asked.workers * asked.cpus_per_worker + driver_cpus))
    if asked.gpus_per_worker:
        fits = min(fits, int(gpus / (asked.workers * asked.gpus_per_worker)))
    return min(fits, search.max_concurrent or fits, search.total_trials)


# --- the end --------------------------------------------------------------------------------------


def finish_search(
    search: SearchConfig,
    book: TrialBook,
    winner: Trial | None,
    seconds: float,
    cost: Cost,
    artifacts: Mapping[str, str],
) -> None:
    """Close the search's own run with the winner's numbers, a note and its ``artifacts``."""
    trials = book.trials
    metrics = {"search.seconds": seconds, "search.trials": float(len(trials))} | cost.metrics()
    tags = {"morel.state": "finished"}
    if winner is not None:
        metrics |= records.best_metrics(winner.last, records.evaluation_label(search.base))
        metrics |= winner.verified.metrics if winner.verified else {}
        metrics |= winner.test
        tags |= {"morel.winner_run": winner.run_id}
    book.recorder.finish(
        str(search.base.name),
        status="FINISHED",
        stop_reason=f"{len(trials)} trials" + (f", {book.cut}" if book.cut else ""),
        metrics=metrics,
        tags=tags,
        artifacts=artifacts,
        note=search_note(search, trials, winner, cost),
    )
