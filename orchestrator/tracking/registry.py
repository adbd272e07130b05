"""A run's logged model as a version of a registered model, and who is its champion.

Repeating a registration changes nothing: a version is found again by the logged model it is of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from morel_core.errors import MorelError
from orchestrator.messages.masking import masked
from orchestrator.tracking.events import RegisterPayload

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""The alias; and the tag of a version that says why it got it, or did not."""
SCORE, PROTOCOL = "verified_robust_accuracy", "protocol"
"""Tags of a version: see `RegisterPayload`."""
_DESCRIPTION = (
    "Image classifiers with the record of their adversarial robustness in each version's tags. "
    "The alias `champion` is the verified one with the highest verified robust accuracy, among "
    "those measured by the same protocol; `morel register` moves it."
)
# What a tracking server answers that keeps no registry, or not for us.
_NO_REGISTRY = (
    *("ENDPOINT_NOT_FOUND", "NOT_FOUND", "NOT_IMPLEMENTED", "FEATURE_DISABLED"),
    *("PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"),
)


def register(client: MlflowClient, mlflow_run_id: str, payload: RegisterPayload) -> None:
    """Make the version of the run's newest logged model, or complete the one that there is.

    Raises:
        MorelError: the run has no logged model, or MLflow keeps no registry for us.
        MlflowException: anything else that MLflow says.
    """
    from mlflow.exceptions import MlflowException

    try:
        _describe(client, _version(client, mlflow_run_id, payload), payload)
    except MlflowException as error:
        if error.error_code in _NO_REGISTRY:
            reason = masked(str(error)).splitlines()[0]
            raise MorelError(f"MLflow has no registry of models here: {reason}") from error
        raise


def version_of(client: MlflowClient, name: str, mlflow_run_id: str) -> ModelVersion | None:
    """The newest version of ``name`` that is of this run, if there is one."""
    found = client.search_model_versions(f"name = '{name}' AND run_id = '{mlflow_run_id}'")
    return max(found, key=lambda version: int(version.version), default=None)


def _version(client: MlflowClient, mlflow_run_id: str, payload: RegisterPayload) -> ModelVersion:
    """The version, made if there is none."""
    model, name = _newest_model(client, mlflow_run_id), payload["name"]
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=_DESCRIPTION)

    def versions() -> list[ModelVersion]:
        found = client.search_model_versions(f"name = '{name}' AND run_id = '{mlflow_run_id}'")
        mine = [version for version in found if version.source == model.artifact_location]
        return sorted(mine, key=lambda version: int(version.version))

    if not versions():
        # Not models:/…, which MLflow would look for at whatever address its globals name.
        client.create_model_version(
            name, model.artifact_location, run_id=mlflow_run_id, model_id=model.model_id
        )
    # MLflow's client repeats a request whose answer was lost: one of two is enough.
    first, *doubled = versions()
    for version in doubled:
        client.delete_model_version(name, version.version)
    return first


def _newest_model(client: MlflowClient, mlflow_run_id: str) -> LoggedModel:
    outputs = client.get_run(mlflow_run_id).outputs
    models = [client.get_logged_model(o.model_id) for o in outputs.model_outputs] if outputs else []
    ready = [model for model in models if str(model.status) == "READY"]
    if not ready:
        raise MorelError("the run has no logged model")
    return max(ready, key=lambda model: model.creation_timestamp)


def _describe(client: MlflowClient, version: ModelVersion, payload: RegisterPayload) -> None:
    name, number = version.name, str(version.version)
    client.update_model_version(name, number, description=payload["description"])
    for key, value in payload["tags"].items():
        client.set_model_version_tag(name, number, key, value)
    aliases = {k: str(v) for k, v in client.get_registered_model(name).aliases.items()}
    before = aliases.get(CHAMPION)
    wins, why = _judged(client, version, payload, before)
    if wins:
        client.set_registered_model_alias(name, CHAMPION, number)
    if wins and before not in (None, number):
        client.set_model_version_tag(name, before, CHAMPION, f"no: version {number} is, since")
    client.set_model_version_tag(name, number, CHAMPION, why)


def _judged(
    client: MlflowClient, version: ModelVersion, payload: RegisterPayload, before: str | None
) -> tuple[bool, str]:
    """Whether the version becomes the champion, instead of the version ``before``, and why."""
    name, score = version.name, payload["score"]
    if score is None:
        return False, "no: not verified"
    if payload["champion"] == "never":
        return False, "no: not asked for"
    if before is None:
        return True, "yes: there was none"
    if before == str(version.version):
        return True, "yes: it was already"
    if payload["champion"] == "always":
        return True, f"yes: asked for, instead of version {before}"
    tags = client.get_model_version(name, before).tags
    theirs = _number(tags.get(SCORE))
    if theirs is None or tags.get(PROTOCOL) != payload["protocol"]:
        return False, f"no: version {before} was measured otherwise, so they cannot be compared"
    compared = f"{100 * score:.1f} % against {100 * theirs:.1f} % of version {before}"
    return score > theirs, f"{'yes' if score > theirs else 'no'}: {compared}, by the same protocol"


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
