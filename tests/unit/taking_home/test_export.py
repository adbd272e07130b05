"""`morel export`: files that give the trained network's logits, and are measured themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow.pyfunc
import pytest
import torch
from torch import nn

from morel_core import Trainer
from morel_core.evaluation import evaluate, model_hash
from morel_core.models import MorelNet
from orchestrator.cli import main
from orchestrator.config import compose
from orchestrator.evaluation.targets import find_target
from orchestrator.taking_home.export import export
from orchestrator.taking_home.model_card import model_card

SMALL = [
    "training.epochs=1",
    "data.holdout=60",
    "data.train_size=160",
    "data.test_size=60",
    "attack.num_steps=1",
    "evaluation.attack.num_steps=3",
]


def checkpoint(folder: Path, *overrides: str) -> Path:
    """Of one epoch of training."""
    trainer = Trainer(compose("digits", [*SMALL, *overrides]))
    trainer.fit()
    trainer.save(folder)
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, exported folder) of a ResNet-18 as torchvision has it but for its stem."""
    folder = tmp_path_factory.mktemp("export")
    saved = checkpoint(folder / "checkpoint", "model.name=resnet18", "data.train_size=128")
    code = main(["export", str(saved), "--to", str(folder / "new" / "model"), "--onnx"])
    assert code == 0
    return saved, folder / "new" / "model"


def trained(saved: Path) -> MorelNet:
    net = find_target(str(saved), compose("digits", []), {}).load((1, 8, 8), 10)
    assert isinstance(net, MorelNet)
    return net.eval()


def test_every_file_gives_the_logits_of_the_trained_network(resnet: tuple[Path, Path]) -> None:
    saved, folder = resnet
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "README.md", "evaluation.json", "mlflow_model", "model.onnx", "model.pt2",
        "model.safetensors",
    ]  # fmt: skip
    x = torch.rand(5, 1, 8, 8)  # another batch size than was exported
    expected = trained(saved)(x)
    size = expected.abs().max()
    program = torch.export.load(folder / "model.pt2").module()
    assert (program(x) - expected).abs().max() <= 1e-6 * size
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["model_hash"] == model_hash(program)
    assert record["model_hash"] != model_hash(nn.Module())  # of no weights at all
    served = mlflow.pyfunc.load_model(str(folder / "mlflow_model"))
    assert (torch.from_numpy(served.predict(x.numpy())) - expected).abs().max() <= 1e-6 * size
    assert served.metadata.get_input_schema() is not None
    assert served.input_example.shape == (2, 1, 8, 8)
    assert not any(path.suffix in (".pkl", ".pth") for path in folder.rglob("*"))


@pytest.mark.parametrize("number", ["-5", "0", "61"])
def test_as_many_images_as_there_are(resnet, tmp_path, capsys, number) -> None:
    folder = tmp_path / "export"
    argv = ["export", str(resnet[0]), "--to", str(folder), f"--num-images={number}"]
    assert main(argv) == 2
    assert capsys.readouterr().err == f"morel: --num-images {number}: 1 to 60 are in test\n"
    assert not folder.exists()


def test_the_snippet_of_the_card_runs_as_it_stands(resnet: tuple[Path, Path]) -> None:
    saved, folder = resnet
    card = (folder / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "torchvision.models.resnet18" in code
    assert len(code.strip().splitlines()) <= 6
    check = "\ntorch.save(model(torch.full((2, 1, 8, 8), 0.25)).detach(), 'logits.pt')"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code + check], cwd=folder, env=environment, check=True)
    logits = torch.load(folder / "logits.pt", weights_only=True)
    (folder / "logits.pt").unlink()
    expected = trained(saved)(torch.full((2, 1, 8, 8), 0.25))
    assert (logits - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_its_robust_accuracy_is_measured_and_on_the_card(resnet: tuple[Path, Path]) -> None:
    _, folder = resnet
    record = json.loads((folder / "evaluation.json").read_text())
    assert set(record["outcomes"]) == {"clean", "pgd3_linf_0.1"}
    assert record["split"] == "test"
    assert record["outcomes"]["clean"]["num_images"] == 60
    card = (folder / "README.md").read_text()
    assert f"{record['outcomes']['pgd3_linf_0.1']['accuracy']:.1%}" in card
    assert "fingerprint" in card


def test_the_card_has_the_record_of_its_run(resnet: tuple[Path, Path]) -> None:
    saved, _ = resnet
    verified = {"verified.robust.apgd-ce_linf_0.1": 0.425, "verified.images": 100}
    target = replace(
        find_target(str(saved), compose("digits", []), {}),
        metrics=verified, commit="c0ffee", warnings="gradients vanish",
    )  # fmt: skip
    trainer = Trainer(compose("digits", SMALL))
    images = trainer.data.test.fetch(torch.arange(8))
    result = evaluate(trainer.net, images, trainer.data.test.labels[:8], {})
    card = model_card(target, trainer.data, trainer.net, result, {})
    assert "42.5" in card
    assert "apgd-ce_linf_0.1, 100 held-out images, verified" in card
    assert "- commit: `c0ffee`" in card
    assert "Earlier evaluations warned: gradients vanish" in card


def test_a_net_that_normalises_and_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = checkpoint(
        tmp_path / "checkpoint", "model.width=4", "model.mean=[0.3]", "model.std=[0.4]"
    )
    target = find_target(str(saved), compose("digits", []), {})
    done = export(target, tmp_path / "out", num_images=20)
    assert done.result["clean"].num_images == 20
    x = torch.rand(3, 1, 8, 8)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    assert torch.allclose(program(x), trained(saved)(x), rtol=0, atol=1e-6)
    assert "torch.export.load" in (tmp_path / "out" / "README.md").read_text()
    assert main(["export", str(saved), "--to", str(tmp_path / "out")]) == 2
    assert "there is something already" in capsys.readouterr().err
    assert main(["export", "digits_cnn", "--to", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()


def test_a_file_that_says_something_else_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = checkpoint(tmp_path / "checkpoint", "model.width=4")

    def other(net: MorelNet) -> nn.Module:
        model = net.unwrap().cpu().eval()
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
        return model

    monkeypatch.setattr("morel_core.export.plain_classifier", other)
    assert main(["export", str(saved), "--to", str(tmp_path / "out")]) == 2
    assert "model.pt2 gives other logits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
