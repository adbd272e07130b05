"""A trained network as its user takes it home: files that open without this package, measured anew.

Nothing is said of an exported file that was not seen on it: its logits are compared with those of
the network that was trained, and its robust accuracy is measured through the file itself.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from morel_core.data import Dataset, load_data
from morel_core.errors import MorelError
from morel_core.evaluation import EvaluationResult, evaluate
from morel_core.evaluation.measure import as_images
from morel_core.export import (
    ONNX,
    PROGRAM,
    SAFETENSORS,
    Program,
    example_images,
    export_model,
    export_onnx,
    plain_classifier,
)
from morel_core.ladder import Ladder
from morel_core.models import MorelNet
from orchestrator.evaluate import Request, check_images
from orchestrator.evaluation.targets import Target
from orchestrator.taking_home.model_card import model_card

MLFLOW = "mlflow_model"
CARD, EVALUATION = "README.md", "evaluation.json"
COMPARED = 64
"""Test images whose logits are compared."""
TOLERANCE = {SAFETENSORS: 1e-6, PROGRAM: 1e-6, MLFLOW: 1e-6, ONNX: 1e-5}
"""Largest difference of a logit, relative to the largest one; ONNX has kernels of its own."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written, and what was seen of it."""

    folder: Path
    files: list[str]
    differences: dict[str, float]
    """File → largest difference of a logit from the trained network's, relative to the largest."""
    result: EvaluationResult
    """Of the exported program, on the test set."""

    def record(self) -> dict[str, Any]:
        """Plain."""
        return {
            "folder": str(self.folder),
            "files": self.files,
            "differences": self.differences,
            "evaluation": json.loads(self.result.to_json()),
        }


def export(
    target: Target,
    folder: Path,
    *,
    num_images: int | None = None,
    onnx: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Export:
    """Write the plain classifier in several formats, a model card, and what was measured of it.

    Args:
        target: a run or a checkpoint.
        folder: must not exist, or be empty; it is there whole or not at all.
        num_images: the first so many test images are measured; None: all.
        onnx: also ``model.onnx``.
        say: told what is being done.

    Raises:
        MorelError: the folder is taken, there are not so many images, there is no MOREL network, a
            file gives other logits than the network, or what ``onnx`` needs is not installed.
    """
    _check_free(folder)
    if onnx:
        _check_installed("onnx", "onnxscript", "onnxruntime")
    data = load_data(target.config.data)
    check_images(Request(num_images=num_images), len(data.test))
    net = target.load(data.shape, data.num_classes)
    if not isinstance(net, MorelNet):
        raise MorelError(f"{target.name}: a plain model: there is nothing to take out of it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        made = Path(beside) / "made"
        made.mkdir()
        say("writing the model")
        export_model(net, data.shape, made)
        if onnx:
            export_onnx(net, data.shape, made)
        save_mlflow_model(net, data.shape, made / MLFLOW)
        say("comparing its logits with the trained network's")
        differences = _differences(net, made, data)
        say("measuring its robust accuracy on the test set")
        result = _measured(made / PROGRAM, target, data, num_images)
        (made / EVALUATION).write_text(result.to_json())
        (made / CARD).write_text(model_card(target, data, net, result, differences))
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    files = sorted(path.name for path in folder.iterdir())
    return Export(folder=folder, files=files, differences=differences, result=result)


def save_mlflow_model(net: MorelNet, shape: tuple[int, int, int], folder: Path) -> None:
    """An MLflow model of the plain classifier with signature and input example; no pickle."""
    import mlflow.pytorch

    mlflow.pytorch.save_model(
        plain_classifier(net),
        str(folder),
        input_example=example_images(shape).numpy(),
        # A local build such as 2.14.1+cpu is on no package index.
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
        serialization_format="pt2",
    )


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MorelError(f"--to {folder}: there is something already: name a new folder")


def _check_installed(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MorelError(
            f"--onnx: {', '.join(missing)} not installed: pip install 'morel-orchestrator[onnx]'"
        )


@torch.no_grad()
def _differences(net: MorelNet, folder: Path, data: Dataset) -> dict[str, float]:
    """Relative difference of each file's logits; raises `MorelError` where one is too large."""
    x = as_images(data.test.fetch(torch.arange(min(COMPARED, len(data.test)))))
    expected = net.eval()(x)
    found: dict[str, float] = {}
    for name, logits in _readers(net, folder).items():
        difference = (logits(x) - expected).abs().max() / expected.abs().max()
        found[name] = difference.item()
        if not found[name] <= TOLERANCE[name]:
            raise MorelError(
                f"{name} gives other logits than the trained network: {found[name]:.2g} of the "
                f"largest one, at most {TOLERANCE[name]:g} is allowed; nothing was exported"
            )
    return found


def _readers(net: MorelNet, folder: Path) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """How each file is read by those who have it."""
    import mlflow.pyfunc

    from morel_core.checkpoint import load_tensors

    plain = net.unwrap()
    plain.load_state_dict(load_tensors(folder / SAFETENSORS))
    served = mlflow.pyfunc.load_model(str(folder / MLFLOW))
    readers: dict[str, Callable[[Tensor], Tensor]] = {
        SAFETENSORS: lambda x: plain(_normalised(net, x)),
        PROGRAM: Program(folder / PROGRAM),
        MLFLOW: lambda x: torch.from_numpy(served.predict(x.numpy())),
    }
    if (folder / ONNX).exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(folder / ONNX), providers=["CPUExecutionProvider"]
        )
        readers[ONNX] = lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    return readers


def _normalised(net: MorelNet, x: Tensor) -> Tensor:
    """What the plain architecture, whose state dict is exported, has to be given."""
    return x if net.mean is None or net.std is None else (x - net.mean) / net.std


def _measured(
    path: Path, target: Target, data: Dataset, num_images: int | None
) -> EvaluationResult:
    settings = target.config.evaluation
    rung = Ladder.of(settings).last
    indices = torch.arange(len(data.test))[:num_images]
    program: nn.Module = Program(path)
    return evaluate(
        program,
        data.test.fetch(indices),
        data.test.labels[indices],
        {rung.attack.name: rung.attack},
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
