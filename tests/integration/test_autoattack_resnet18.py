"""AutoAttack on its authors' ResNet-18 and real images: one process, three workers, the package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from autoattack_cases import Case, Direct, resnet_case
from autoattack_cases import direct as call_package
from PIL import Image

from morel_core.attacks import AutoAttack
from orchestrator.config import RunConfig
from orchestrator.evaluate import evaluate_model
from orchestrator.settings.building import build

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def case(cifar_root: str) -> Case:
    """In the order in which a folder of images has them: by class."""
    case = resnet_case(cifar_root)
    order = case.y.argsort(stable=True)
    return replace(case, x=case.x[order], y=case.y[order])


@pytest.fixture(scope="module")
def direct(case: Case) -> Direct:
    """The package alone, each chunk for itself."""
    return call_package(case)


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The case's images as a test set on disk, beside a training set that nobody looks at."""
    root = tmp_path_factory.mktemp("images")
    for index, (image, label) in enumerate(zip(case.x, case.y.tolist(), strict=True)):
        save(image, root / "test" / str(label) / f"{index}.png")
    for label in range(10):
        save(torch.zeros(3, 32, 32), root / "train" / str(label) / "0.png")
    return root


def save(image: torch.Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("workers", [1, 3])
def test_outcomes_are_those_of_the_package(
    local_ray: Any, case: Case, direct: Direct, folder: Path, tmp_path: Path, workers: int
) -> None:
    config = build(
        RunConfig,
        {
            "data": {"name": "image_folder", "root": str(folder), "image_size": 32, "holdout": 1},
            "evaluation": {"batch_size": case.chunk},
            "storage_path": str(tmp_path),
        },
    )
    result = evaluate_model(
        case.net,
        config,
        {"autoattack": AutoAttack(eps=case.eps, seed=case.seed)},
        workers=workers,
        checks=False,
    ).result
    outcome = result["autoattack"]
    assert torch.equal(outcome.correct, direct.correct)
    members = [name.partition("_")[0] for name in outcome.stages]
    assert members == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert all(direct.attacked[member] for member in members), "an attack had nothing to do"
    assert 0 < outcome.correct.sum() < result["clean"].correct.sum()
