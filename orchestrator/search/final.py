"""The end of a search: best networks measured on the test set, once, exported and recorded.

What was measured is kept beside the search at once, so that a search that is resumed or repeated
does not read the test set again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from orchestrator import storage
from orchestrator.config import to_dict
from orchestrator.messages.failures import failure_reason
from orchestrator.search.note import trial_note
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import Trial, run_of
from orchestrator.tracking import Recorder, records
from orchestrator.tracking.records import Exported


def measure_on_test(
    search: SearchConfig, trials: Sequence[Trial], winner: Trial | None, recorder: Recorder
) -> None:
    """Measure what ``search.final`` asks for; each network is a Ray task of its own.

    A trial that cannot be measured says why in ``untested``, and is tried again when the search is
    repeated.
    """
    import ray

    running: dict[Any, Trial] = {}
    for trial in chosen(search, trials, winner):
        kept = _kept(search, trial)
        if kept is None:
            running[_start(search, trial)] = trial
        else:
            _record(search, trial, kept, winner, recorder)
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        trial = running.pop(done)
        try:
            measured = records.store_export(_folder(search, trial), ray.get(done))
        except Exception as error:  # a finished search is not lost for it
            trial.untested = failure_reason(error)
            continue
        storage.write(_place(search, trial), json.dumps(asdict(measured), indent=2).encode())
        _record(search, trial, measured, winner, recorder)


def chosen(search: SearchConfig, trials: Sequence[Trial], winner: Trial | None) -> list[Trial]:
    """The trials whose best networks meet the test set."""
    match search.final.trials:
        case "winner":
            return [winner] if winner is not None else []
        case "all":
            return [t for t in trials if _ended(t) and t.measured and t.checkpoint]
        case "none":
            return []


def _ended(trial: Trial) -> bool:
    """Whether it came to an end of its own: the guard's too, before which it had a best network."""
    return trial.state == "finished" or bool(trial.last.get("catastrophic_overfitting"))


def _start(search: SearchConfig, trial: Trial) -> Any:
    import ray
    from ray.train import Checkpoint

    from orchestrator.training import measuring

    asked = search.resources
    task: Any = ray.remote(num_cpus=asked.cpus_per_worker, num_gpus=asked.gpus_per_worker)(
        measuring.measure_final
    )
    assert trial.checkpoint is not None  # `chosen` takes no other
    run = run_of(search, trial)
    return task.remote(to_dict(run), Checkpoint(trial.checkpoint), search.final.attacks)


def _record(
    search: SearchConfig,
    trial: Trial,
    measured: Exported,
    winner: Trial | None,
    recorder: Recorder,
) -> None:
    trial.test, trial.test_seconds = measured.metrics, measured.seconds
    recorder.finish(
        trial.run_id,
        status="FINISHED",
        stop_reason=trial.reason,
        metrics=measured.metrics,
        tags={"morel.winner": "true"} if trial is winner else {},
        texts={"evaluation/test.json": measured.evaluation},
        note=trial_note(search, trial, winner),
        model=measured.model,
    )


def _folder(search: SearchConfig, trial: Trial) -> str:
    """Where a network's exported model goes: its own place, whoever wins when the search grows."""
    return f"{search.base.storage_path}/{search.base.name}/tested/{_stem(trial)}"


def _place(search: SearchConfig, trial: Trial) -> str:
    """A finished search may be measured once more under other attacks."""
    how = hashlib.sha256(json.dumps(search.final.attacks).encode()).hexdigest()[:8]
    base = search.base
    return f"{base.storage_path}/{base.name}/tested/{_stem(trial)}-{how}.json"


def _stem(trial: Trial) -> str:
    return trial.run_id.rpartition("/")[2]


def _kept(search: SearchConfig, trial: Trial) -> Exported | None:
    """What an earlier command measured; None if there is nothing, or half a file."""
    text = storage.read_text(_place(search, trial))
    try:
        return Exported(**json.loads(text)) if text else None
    except (ValueError, TypeError):
        return None
