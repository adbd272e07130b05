"""The end of a search's ladder: its best trials measured again, by attacks worth quoting.

Each candidate is a Ray task of its own. What it found is kept beside the search at once, so that
a search that is resumed does not measure it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from orchestrator import storage
from orchestrator.compare.runs import UNMASKED
from orchestrator.config import to_dict
from orchestrator.messages.failures import failure_reason
from orchestrator.search.note import trial_note
from orchestrator.search.selection import VERIFYING, honest, ranked, why_lost
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import Trial, run_of
from orchestrator.search.trials import TrialBook
from orchestrator.search.verified import Verified
from orchestrator.tracking import Recorder
from orchestrator.tracking.recorder import Past
from orchestrator.training.twins import Twins


def verify_candidates(search: SearchConfig, book: TrialBook, twins: Twins | None = None) -> None:
    """Verify the best trials, until ``ladder.verify.top`` of them show no masked gradients.

    One that is flagged, or cannot be measured, gives its place to the next by search number. Of a
    trade-off the front's are verified; without one that is flagged, others may come onto it. What
    an earlier search found of the same network is taken over, where there are ``twins``.
    """
    import ray

    running: dict[Any, Trial] = {}
    while True:
        while len(honest(book.trials)) + len(running) < search.ladder.verify.top:
            waiting = (t for t in ranked(search, book.trials) if not t.standing)
            trial = next(waiting, None)
            if trial is None:
                break
            trial.verified = _kept(search, trial, twins)
            if trial.verified is not None:
                trial.standing = standing(trial.verified)
            else:
                running[_start(search, trial)] = trial
                trial.standing = VERIFYING
            book.show()
        if not running:
            return
        (done,), _ = ray.wait(list(running), num_returns=1)
        trial = running.pop(done)
        try:
            document = ray.get(done)
        except Exception as error:  # one candidate less: the search goes on
            trial.standing = f"its verification failed: {failure_reason(error)}"
        else:
            for place in _places(search, trial, twins):
                storage.write(place, document.encode())
            trial.verified = Verified.from_json(document)
            trial.standing = standing(trial.verified)
        book.show()


def standing(verified: Verified) -> str:
    """What came out, in a few words."""
    if verified.masking:
        return f"it masks its gradients ({verified}): {' '.join(verified.masking)}"
    return f"verified {verified}"


def record_verified(
    search: SearchConfig, trials: Sequence[Trial], winner: Trial | None, recorder: Recorder
) -> None:
    """Add what verification found to each candidate's run, and why it lost.

    So it is with the winner of an earlier command, where the search has grown since.
    """
    for trial in trials:
        if not (trial.standing or recorder.past.get(trial.run_id, Past()).won):
            continue
        lost, verified = why_lost(trial, winner), trial.verified
        tags = {"morel.lost": lost, "morel.winner": str(trial is winner).lower()}
        if verified is not None:
            tags["morel.verified.attacks"] = ", ".join(verified.attacks)
            tags["morel.masking"] = " ".join(verified.masking) or UNMASKED
        recorder.finish(
            trial.run_id,
            status="FINISHED",
            stop_reason=trial.reason,
            metrics=verified.metrics if verified else {},
            tags=tags,
            texts={"evaluation/verified.json": verified.document} if verified else {},
            note=trial_note(search, trial, winner),
        )


def _start(search: SearchConfig, trial: Trial) -> Any:
    import ray
    from ray.train import Checkpoint

    from orchestrator.training import measuring

    asked, verify = search.resources, search.ladder.verify
    task = ray.remote(num_cpus=asked.cpus_per_worker, num_gpus=asked.gpus_per_worker)(
        measuring.measure_verified
    )
    assert trial.checkpoint is not None  # `ranked` takes no other
    config = to_dict(run_of(search, trial))
    return task.remote(config, Checkpoint(trial.checkpoint), verify.attacks, verify.num_images)


def _places(search: SearchConfig, trial: Trial, twins: Twins | None) -> list[str]:
    """Where it is kept: beside the search, and for all searches, under the network.

    A finished search may be verified once more with other attacks or images.
    """
    base, verify = search.base, search.ladder.verify
    how = [verify.attacks, verify.num_images]
    digest = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:8]
    name = f"{trial.run_id.rpartition('/')[2]}-{digest}"
    places = [f"{base.storage_path}/{base.name}/verified/{name}.json"]
    if twins is not None:
        assert trial.checkpoint is not None  # `ranked` takes no other
        run = run_of(search, trial)
        measured = run.evaluation
        how += [dataclasses.asdict(measured.attack), measured.seed, measured.batch_size]
        shared = twins.verified(run, trial.checkpoint, how)
        places += [shared] if shared else []
    return places


def _kept(search: SearchConfig, trial: Trial, twins: Twins | None) -> Verified | None:
    """What an earlier command found; None if there is nothing, or half a file.

    What another search found has cost this one nothing.
    """
    own, *shared = _places(search, trial, twins)
    for place in (own, *shared):
        text = storage.read_text(place)
        try:
            if text:
                found = Verified.from_json(text)
                return found if place == own else dataclasses.replace(found, seconds=0.0)
        except (ValueError, KeyError):
            continue
    return None
