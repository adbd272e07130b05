"""A campaign from its first trial to its report; the same command goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from morel_core.data import load_data
from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.campaign.definition import CampaignConfig
from orchestrator.campaign.note import campaign_note
from orchestrator.campaign.outcomes import (
    MethodOutcome,
    OutcomeStore,
    Replicates,
    Tuning,
    settled,
)
from orchestrator.campaign.report import (
    Registration,
    Report,
    build_report,
    report_metrics,
)
from orchestrator.campaign.searches import REGISTRATION
from orchestrator.campaign.tables import to_csv, to_json, to_markdown
from orchestrator.cluster import cluster_address, local_resources, ray_session
from orchestrator.driver import control
from orchestrator.driver.lease import held
from orchestrator.provenance.fingerprint import code_hash
from orchestrator.provenance.identity import check_identity
from orchestrator.provenance.revision import revision
from orchestrator.search.result import SearchResult
from orchestrator.search.space import SearchConfig, check_resources
from orchestrator.search.trials import View
from orchestrator.settings.fits import check_fits
from orchestrator.tracking import Recorder, records
from orchestrator.tune import tune

# A resumed campaign may find its data elsewhere; what it compares stays.
MAY_CHANGE = {"base.data.root", "base.data.download"}


class CampaignView(Protocol):
    """Shows a campaign while it runs."""

    def say(self, text: str) -> None:
        """Something that happens once."""
        ...

    def follow(self, text: str, search: SearchConfig) -> AbstractContextManager[View | None]:
        """Inside, a search runs."""
        ...


class Unseen:
    """Nobody looks."""

    def say(self, text: str) -> None:
        """See `CampaignView`."""

    def follow(self, text: str, search: SearchConfig) -> AbstractContextManager[View | None]:
        """See `CampaignView`."""
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class CampaignResult:
    """How a campaign ended."""

    campaign: CampaignConfig
    report: Report
    seconds: float
    recorded: bool
    """False if MLflow lacks something that waits in the journal."""


def run_campaign(
    campaign: CampaignConfig, *, view: CampaignView | None = None, force_code: bool = False
) -> CampaignResult:
    """Tune every method, train what tuning chose with every seed, measure, compare.

    A phase of a method that is over is never run again; one that was interrupted goes on. A pause
    that is asked of the campaign is heard by the search that runs, and ends both.

    Args:
        campaign: what to compare.
        view: is shown what happens.
        force_code: resume a campaign that other code began.

    Raises:
        MorelError: data, storage, cluster or MLflow are not as asked, or the name belongs to a
            campaign that fixed something else beforehand.
    """
    base = campaign.base
    storage.check_writable(base.storage_path)
    if cluster_address(base) is None:
        for search in campaign.searches.values():
            check_resources(search, *local_resources())
    with held(f"{base.storage_path}/{campaign.name}", base.cluster.lease_s) as fence:
        control.forget_pause(fence.folder)  # asked of an earlier driver
        return _run_campaign(campaign, view or Unseen(), force_code)


def _run_campaign(campaign: CampaignConfig, view: CampaignView, force_code: bool) -> CampaignResult:
    """`run_campaign`, under the campaign's lease."""
    base, started = campaign.base, time.perf_counter()
    folder = f"{base.storage_path}/{campaign.name}"
    data = load_data(base.data)
    for search in campaign.searches.values():
        check_fits(search.base, data)
    changes = check_identity(folder, campaign.fixed(), may_change=MAY_CHANGE, force_code=force_code)
    registration = register(campaign, folder)
    recorder = records.open_recorder(base)
    try:
        with (
            ray_session(base, dashboard=base.scaling.max_workers > 1),
            records.ended_record(recorder, campaign.name, code_changes=changes),
        ):
            recorder.start_run(
                campaign.name,
                name=campaign.name,
                params=campaign_params(campaign),
                config={**vars(registration), "fixed": campaign.fixed()},
                tags=records.run_tags(base, "campaign")
                | {
                    "morel.campaign": campaign.name,
                    "morel.fixed.sha256": registration.sha256,
                    "morel.fixed.time": registration.time,
                },
                dataset=records.dataset_record(base, data),
            )
            recorder.flush(records.DELIVERY_S)  # searches look for their parent in MLflow
            outcomes = _outcomes(campaign, OutcomeStore(folder), view, force_code)
            report = build_report(campaign, registration, outcomes)
            _deliver(campaign, report, folder, recorder)
            recorder.flush(records.DELIVERY_S)
    finally:
        pending = recorder.close()
    seconds = time.perf_counter() - started
    return CampaignResult(campaign=campaign, report=report, seconds=seconds, recorded=pending == 0)


def register(campaign: CampaignConfig, folder: str) -> Registration:
    """Write down what is fixed, before the first trial; a resumed campaign keeps that."""
    path = f"{folder}/{REGISTRATION}"
    text = storage.read_text(path)
    if text is None:
        fixed = campaign.fixed()
        digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        about = {"sha256": digest, "time": now, "commit": revision().commit, "code": code_hash()}
        text = json.dumps({**about, "fixed": fixed}, indent=2)
        storage.write(path, text.encode())
    content = json.loads(text)
    return Registration(**{key: content[key] for key in ("sha256", "time", "commit", "code")})


def campaign_params(campaign: CampaignConfig) -> dict[str, Any]:
    """The campaign's settings as MLflow parameters."""
    return {
        "campaign.methods": ", ".join(campaign.methods),
        "campaign.pairs": ", ".join(f"{a} - {b}" for a, b in campaign.pairs.items()),
        "campaign.seeds": campaign.seeds,
        "campaign.primary": campaign.primary_metric,
        "campaign.recipe": campaign.recipe,
        "campaign.trials_per_method": next(iter(campaign.searches.values())).total_trials
        if campaign.tuned
        else 0,
    }


# --- the phases ----------------------------------------------------------------------------------


def _outcomes(
    campaign: CampaignConfig, store: OutcomeStore, view: CampaignView, force_code: bool
) -> dict[str, MethodOutcome]:
    """Both phases: all methods are tuned before the first replicate is trained.

    What is not settled is not kept: the same command looks at it again.
    """

    def run(text: str, search: SearchConfig) -> SearchResult:
        with view.follow(text, search) as shown:
            return tune(search, view=shown, force_code=force_code)

    tunings: dict[str, Tuning | None] = {}
    for number, (method, search) in enumerate(campaign.searches.items(), start=1):
        place = f"{number}/{len(campaign.searches)} {method}"
        kept = store.tuning(method) if campaign.tuned else None
        if kept is None and campaign.tuned:
            result = run(f"tuning {place}", search)
            kept = Tuning.of(result)
            if kept.run_id is not None or settled(result):
                store.save(method, "tuning", kept)
        tunings[method] = kept
    outcomes: dict[str, MethodOutcome] = {}
    for number, (method, tuning) in enumerate(tunings.items(), start=1):
        place = f"{number}/{len(tunings)} {method}"
        found = store.replicates(method)
        if tuning is not None and tuning.run_id is None:
            view.say(f"replicates {place}: its tuning has no winner")
        elif found is None:
            chosen = tuning.settings if tuning else {}
            result = run(f"replicates {place}", campaign.replicates(method, chosen))
            found = Replicates.of(result)
            if settled(result):
                store.save(method, "replicates", found)
        outcomes[method] = MethodOutcome(tuning=tuning, replicates=found)
    return outcomes


def _deliver(campaign: CampaignConfig, report: Report, folder: str, recorder: Recorder) -> None:
    """The report into the campaign's folder, and onto its run in MLflow."""
    registration = storage.read_text(f"{folder}/{REGISTRATION}")
    if registration is None:
        raise MorelError(f"{folder}/{REGISTRATION} is gone: it says what was fixed beforehand")
    texts = {
        "report.md": to_markdown(report),
        "report.json": to_json(report),
        "report.csv": to_csv(report),
    }
    for name, text in texts.items():
        storage.write(f"{folder}/{name}", text.encode())
    recorder.finish(
        campaign.name,
        status="FINISHED",
        stop_reason=f"{len(campaign.methods)} methods compared over {len(campaign.seeds)} seeds",
        metrics=report_metrics(report),
        tags={"morel.state": "finished" if report.complete else "incomplete"},
        texts={**texts, REGISTRATION: registration},
        note=campaign_note(campaign, report),
    )
