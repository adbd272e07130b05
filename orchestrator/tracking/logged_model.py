"""An exported plain model as an MLflow logged model, without its module ever being here.

The folder that the trainer exported is uploaded with the description that MLflow's own
``pytorch`` flavour writes for its pickle-free format, so that ``mlflow.pytorch.load_model`` and
``mlflow.pyfunc.load_model`` read it. Nothing is loaded or unpickled on the way.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.tracking.events import ModelPayload

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPORTED = "model.pt2"
_DATA = "data"

GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What says that a file cannot be had, however often it is asked for."""


def log_model(
    client: MlflowClient,
    experiment_id: str,
    mlflow_run_id: str,
    payload: ModelPayload,
    *,
    event: str,
) -> str:
    """Log the model in ``payload["path"]`` as an output of the run; returns MLflow's model id.

    ``event`` names the occasion: called again for the same one, it completes what is there.
    Raises one of `GONE` where the folder or its ``model.pt2`` cannot be had.
    """
    from mlflow.entities import LoggedModelOutput

    with tempfile.TemporaryDirectory(prefix="morel-model-") as temporary:
        folder = Path(temporary)
        fetch(payload["path"], folder)
        (folder / _DATA).mkdir()
        (folder / EXPORTED).rename(folder / _DATA / EXPORTED)
        found = client.search_logged_models(
            [experiment_id],
            filter_string=f"source_run_id = '{mlflow_run_id}' AND tags.`morel.event` = '{event}'",
        )
        model = (
            found[0]
            if found
            else client.create_logged_model(
                experiment_id,
                name=payload["name"],
                source_run_id=mlflow_run_id,
                tags={"morel.event": event},
                model_type="image-classifier",
            )
        )
        _describe(folder, payload, mlflow_run_id, model.model_id)
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    outputs = client.get_run(mlflow_run_id).outputs
    known = {output.model_id for output in outputs.model_outputs} if outputs else set[str]()
    if model.model_id not in known:
        client.log_outputs(mlflow_run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model.model_id


def fetch(source: str, target: Path) -> None:
    """Copy a file or folder, given as a local path or a pyarrow URI, to ``target``."""
    if "://" in source:
        from pyarrow.fs import copy_files

        copy_files(source, target.as_uri())
    elif Path(source).is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def _describe(folder: Path, payload: ModelPayload, mlflow_run_id: str, model_id: str) -> None:
    """Write MLmodel and the requirements beside the model."""
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    single = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(single, (-1, *payload["input_shape"]))]),
        outputs=Schema([TensorSpec(single, (-1, payload["num_classes"]))]),
    )
    model = Model(
        artifact_path=payload["name"],
        run_id=mlflow_run_id,
        signature=signature,
        model_id=model_id,
    )
    version = payload["torch_version"]
    model.add_flavor("pytorch", model_data=_DATA, pytorch_version=version, code=None)
    pyfunc.add_to_model(
        model, loader_module="mlflow.pytorch", data=_DATA, python_env="python_env.yaml"
    )
    model.save(str(folder / "MLmodel"))
    # A local build such as 2.11.0+cpu is on no package index.
    requirement = f"torch=={version.partition('+')[0]}\n"
    (folder / "requirements.txt").write_text(requirement)
    (folder / "python_env.yaml").write_text("dependencies:\n  - -r requirements.txt\n")
