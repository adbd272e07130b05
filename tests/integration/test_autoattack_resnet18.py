"""AutoAttack on its authors' ResNet-18 and real images: one process, three workers, the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from morel_core.attacks import AutoAttack
from morel_core.data import load_data
from orchestrator.config import RunConfig, build
from orchestrator.evaluate import evaluate_model

EPS = 1 / 255  # so small that some images survive: all four attacks have something to do
IMAGES, CHUNK = 8, 4
EXAMPLES = Path(pyautoattack.__file__).parent / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    """The package's example file. It is no module of it, so that Ray sends its classes by value."""
    spec = importlib.util.spec_from_file_location("autoattack_resnet", EXAMPLES / "resnet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def net(architecture: ModuleType) -> nn.Module:
    net = architecture.ResNet18()
    weights = torch.load(EXAMPLES / "model_test.pt", weights_only=True, map_location="cpu")
    net.load_state_dict(weights)
    return net.eval()


def config(cifar_root: str, storage: Path) -> RunConfig:
    return build(
        RunConfig,
        {
            "data": {"name": "cifar10", "root": cifar_root},
            "evaluation": {"batch_size": CHUNK},
            "storage_path": str(storage),
        },
    )


@pytest.fixture(scope="module")
def direct(net: nn.Module, cifar_root: str, tmp_path_factory: Any) -> Tensor:
    """(8,) bool by the package alone, each chunk for itself."""
    data = load_data(config(cifar_root, tmp_path_factory.mktemp("direct")).data).test
    x, y = data.fetch(torch.arange(IMAGES)).float() / 255, data.labels[:IMAGES]
    standing: list[Tensor] = []
    for images, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        package = pyautoattack.AutoAttack(net, eps=EPS, norm="Linf", seed=0)
        x_adv, _ = package.run_standard_evaluation(images, labels, batch_size=CHUNK)
        with torch.no_grad():
            standing.append(net(x_adv).argmax(1) == labels)
    return torch.cat(standing)


@pytest.mark.parametrize("workers", [1, 3])
def test_outcomes_are_those_of_the_package(
    local_ray: Any,
    net: nn.Module,
    direct: Tensor,
    cifar_root: str,
    tmp_path: Path,
    workers: int,
) -> None:
    result = evaluate_model(
        net,
        config(cifar_root, tmp_path),
        {"autoattack": AutoAttack(eps=EPS)},
        num_images=IMAGES,
        workers=workers,
        checks=False,
    ).result
    outcome = result["autoattack"]
    assert torch.equal(outcome.correct, direct)
    assert [name.partition("_")[0] for name in outcome.stages] == [
        "apgd-ce", "apgd-t", "fab-t", "square"
    ]  # fmt: skip
    before_square = list(outcome.stages.values())[2]
    assert before_square.any(), "no image was left for Square"
    assert outcome.correct.sum() < result["clean"].correct.sum()
