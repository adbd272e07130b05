"""``morel register``: a recorded network as a version of a registered model, with its record.

What a version says is what MLflow holds of its run; nothing is measured for it. It goes through the
run's journal like everything else, so that it is neither lost nor doubled.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.compare import RunRecord, load_runs
from orchestrator.compare.runs import ATTACK_DETAILS, UNMASKED
from orchestrator.config import RunConfig, check_name, tracking_uri, with_overrides
from orchestrator.driver.lease import held
from orchestrator.evaluation.targets import find_run, find_target
from orchestrator.notes import accuracy_table, clean, counted, headline, strongest
from orchestrator.tracking import ModelPayload, Recorder, RegisterPayload, records
from orchestrator.tracking.connection import open_client
from orchestrator.tracking.registry import CHAMPION, PROTOCOL, SCORE, version_of

DIGEST = 12
"""Characters of a fingerprint that tell data sets apart."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version of a registered model."""

    model: str
    version: str
    run_id: str
    champion: str
    """``yes: …`` or ``no: …``, and why."""
    page: str
    """Of the version, below the address of MLflow."""


@dataclass(frozen=True)
class _Place:
    """Where a run is."""

    owner: RunConfig
    """Of what holds its journal: the run itself, or its search."""
    tracking: RunConfig
    given: Mapping[str, Any]


def register(
    name: str, model: str, tracking: RunConfig, given: Mapping[str, Any], *, champion: bool = False
) -> Registered:
    """Make the network of a run a version of ``model``, or complete the version that it is.

    The alias ``champion`` goes to the verified winner of a search, if its verified robust accuracy
    is higher than that of the present one and was measured by the same protocol.

    Args:
        name: a run's name or id; of a search its winner, of a campaign the verified winner of its
            tuning with the highest verified robust accuracy.
        model: name of the registered model, which is made if need be.
        tracking: whose MLflow is asked.
        given: settings of the command line by dotted key: ``storage_path`` wins over where the run
            was.
        champion: make it the champion whatever the present one has.

    Raises:
        MorelError: there is no such run, it has no network, its journal is not here, somebody is
            at work on it, ``champion`` is asked for one that is not a verified winner, or MLflow
            keeps no registry.
    """
    check_name("model", model)
    runs = load_runs(tracking_uri(tracking), tracking.tracking.experiment)
    run = _chosen(find_run(name, tracking), runs)
    payload = registration(run, runs, model)
    if champion:
        if payload["score"] is None or payload["champion"] == "never":
            raise MorelError(
                f"--champion: {run.run_id} is not the verified winner of a search (verified: "
                f"{_verified(run)[0]}): the search's command with ladder.verify.top=2 verifies, "
                "also afterwards"
            )
        payload["champion"] = "always"
    config = _owner(run, tracking, given)
    with held(f"{config.storage_path}/{config.name}", config.cluster.lease_s):
        _record(run, payload, _Place(config, tracking, given))
    return _look(tracking_uri(tracking), model, run)


def registration(run: RunRecord, runs: list[RunRecord], model: str) -> RegisterPayload:
    """What a version says of its run.

    Args:
        run: with a network.
        runs: of the same experiment, its search among them.
        model: name of the registered model.
    """
    verdict, score = _verified(run)
    protocol = _protocol(run, runs)
    metrics = _metrics(run)
    best = strongest(metrics, "test", "best.holdout")
    if best is None:
        raise MorelError(f"{run.run_id} was never measured: there is nothing to say of it")
    unattacked = clean(metrics, best.split)
    tags = {
        "attack": str(best.attack),
        "eps": run.params.get("evaluation.attack.eps", ""),
        "robust_accuracy": f"{best.score} % of {best.where}",
        "clean_accuracy": f"{unattacked.score} % of {unattacked.where}" if unattacked else "",
        "verified": verdict,
        "seed": run.tags.get("morel.seed", ""),
        "commit": run.tags.get("morel.commit", ""),
        "data": _data(run, runs),
        "method": _method(run),
        "run": run.run_id,
    }
    if score is not None:
        tags |= {SCORE: repr(score), PROTOCOL: protocol}
    won = run.tags.get("morel.winner") == "true"
    return {
        "name": model,
        "description": _description(run, runs),
        "tags": {key: value for key, value in tags.items() if value},
        "champion": "better" if won else "never",
        "score": score,
        "protocol": protocol,
    }


# --- which run ------------------------------------------------------------------------------------


def _chosen(run: RunRecord, runs: list[RunRecord]) -> RunRecord:
    """``run``, or of a campaign the best verified winner of its tuning."""
    if run.kind != "campaign":
        return run
    winners = {
        search.tags.get("morel.winner_run")
        for search in runs
        if search.kind == "search" and search.tags.get("morel.campaign") == run.run_id
    }
    scored = [(_verified(r)[1], r) for r in runs if r.run_id in winners]
    found = [(score, r) for score, r in scored if score is not None]
    if not found:
        raise MorelError(
            f"campaign {run.run_id!r}: none of its tuning searches has a verified winner "
            "(tuning.ladder.verify): name one of its runs"
        )
    return max(found, key=lambda pair: pair[0])[1]


def _owner(run: RunRecord, tracking: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """A config of whatever holds the run's journal: its own, or its search's."""
    values = {"name": run.run_id.partition("/")[0]}
    place = run.tags.get("morel.storage", "").rpartition("/")[0]
    if place and "storage_path" not in given:
        values["storage_path"] = place
    uri = tracking_uri(tracking)
    if uri.startswith("sqlite:"):  # by default it lies in the storage, which may be another now
        values["tracking.uri"] = uri
    return with_overrides(tracking, values)


# --- its network ----------------------------------------------------------------------------------


def _record(run: RunRecord, payload: RegisterPayload, place: _Place) -> None:
    """The registration into the run's journal, and to MLflow."""
    config = place.owner
    recorder = records.open_recorder(config)
    try:
        if run.run_id not in recorder.past:
            raise MorelError(
                f"{config.storage_path}/{config.name} holds no journal of {run.run_id}: write "
                "storage_path=… where the run is"
            )
        if not _has_model(tracking_uri(config), run):
            _log_model(run, place, recorder)
        recorder.register(run.run_id, payload)
        recorder.flush(records.DELIVERY_S)
    finally:
        pending = recorder.close()
    if pending:
        raise MorelError(
            f"MLflow does not answer ({recorder.last_error}): the registration waits in the "
            f"journal, and morel sync {config.name} delivers it"
        )
    for rejection in recorder.rejected:  # of this command: others may be of what waited
        if (rejection.event.run_id, rejection.event.payload) == (run.run_id, payload):
            raise MorelError(f"{run.run_id} is not registered: {rejection.reason}")


def _has_model(uri: str, run: RunRecord) -> bool:
    outputs = open_client(uri, create=False).get_run(run.mlflow_id).outputs
    return bool(outputs and outputs.model_outputs)


def _log_model(run: RunRecord, where: _Place, recorder: Recorder) -> None:
    """The run's best network as a logged model: a search logs those alone that met the test set."""
    import torch

    from morel_core.data import load_data
    from morel_core.export import export_model
    from morel_core.models import MorelNet

    target = find_target(run.run_id, where.tracking, where.given)
    data = load_data(target.config.data)
    net = target.load(data.shape, data.num_classes)
    assert isinstance(net, MorelNet)  # a run trains no other
    stem = run.run_id.replace("/", "-")
    place = f"{where.owner.storage_path}/{where.owner.name}/registered/{stem}"
    with tempfile.TemporaryDirectory(prefix="morel-export-") as folder:
        export_model(net, data.shape, Path(folder))
        for path in Path(folder).iterdir():
            storage.write(f"{place}/{path.name}", path.read_bytes())
    model = ModelPayload(
        path=place,
        name="model",
        input_shape=list(data.shape),
        num_classes=data.num_classes,
        torch_version=torch.__version__,
    )
    recorder.finish(run.run_id, status=target.status, stop_reason=target.stop_reason, model=model)


def _look(uri: str, model: str, run: RunRecord) -> Registered:
    """What MLflow holds now."""
    version = version_of(open_client(uri, create=False), model, run.mlflow_id)
    if version is None:
        raise MorelError(
            f"{model}: MLflow has no version of {run.run_id}: was it deleted just now?"
        )
    return Registered(
        model=model,
        version=str(version.version),
        run_id=run.run_id,
        champion=version.tags.get(CHAMPION, ""),
        page=f"#/models/{model}/versions/{version.version}",
    )


# --- its record -----------------------------------------------------------------------------------


def _metrics(run: RunRecord) -> dict[str, float]:
    images = next(
        count
        for key in ("evaluation.num_images", "data.holdout")
        if (count := run.params.get(key, "0")) != "null"
    )
    return counted(run.metrics, int(images))


def _verified(run: RunRecord) -> tuple[str, float | None]:
    """In words, and the verified robust accuracy of a network without masked gradients."""
    found = strongest(run.metrics, "verified")
    if found is None:
        return "no", None
    if run.tags.get("morel.masking") != UNMASKED:
        return f"no: it masks its gradients: {run.tags.get('morel.masking', '')}", None
    return f"yes: {found.score} % of {found.images} held-out images", found.score.value


def _protocol(run: RunRecord, runs: list[RunRecord]) -> str:
    """How the verified number was measured, in words that are equal for equal measurements."""
    found = strongest(run.metrics, "verified")
    if found is None:
        return ""
    attacks = run.tags.get("morel.verified.attacks", str(found.attack))
    seed = run.params.get("evaluation.seed", "?")
    details = [f"{key.rpartition('.')[2]} {run.params.get(key, '?')}" for key in ATTACK_DETAILS]
    images = f"first {found.images} held-out images of {_data(run, runs)}"
    return "; ".join([attacks, *details, images, f"seed {seed}"])


def _data(run: RunRecord, runs: list[RunRecord]) -> str:
    """Name and start of the fingerprint; a trial's is that of its search."""
    parent = next((r for r in runs if r.mlflow_id == run.parent_mlflow_id), None)
    digest = run.dataset or (parent.dataset if parent else None) or "?"
    return f"{run.params.get('data.name', '?')} {digest[:DIGEST]}"


def _method(run: RunRecord) -> str:
    base = run.params.get("objective.accuracy", "?").upper()
    return base if run.params.get("objective.morel") == "false" else f"MOREL on {base}"


def _description(run: RunRecord, runs: list[RunRecord]) -> str:
    """Markdown."""
    commit = run.tags.get("morel.commit", "unknown")
    model, seed = run.params.get("model.name", "?"), run.tags.get("morel.seed", "?")
    warnings = run.tags.get("morel.warnings", "")
    parts = [
        headline(_metrics(run)),
        f"{_method(run)}: {model} on {_data(run, runs)}, seed {seed}, commit `{commit}`.",
        accuracy_table(_metrics(run)),
        "Accuracies with 95 % Wilson intervals. They hold for these attacks and this radius: "
        "another attack may find more, and images outside the ball are not covered at all.",
        f"Evaluations warned: {warnings}" if warnings else "",
        f"```\nmorel reproduce {run.run_id}\n```",
    ]
    return "\n\n".join(filter(None, parts))
