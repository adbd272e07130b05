"""Plain models with their weights, and modules from code."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_evaluation import TINY
from torch import nn

from morel_core import MorelError
from morel_core.data import load_data
from morel_core.export import export_model
from orchestrator import cli
from orchestrator.config import RunConfig
from orchestrator.evaluate import Request, evaluate_model, evaluate_target
from orchestrator.evaluation.targets import find_target
from orchestrator.settings.building import build

SMALL = {f"data.{key}": value for key, value in TINY["data"].items()}
RGB = SMALL | {"data.channels": 3, "data.image_size": 32}
SHAPE = (1, 8, 8)


@pytest.fixture
def tracking(tmp_path):
    return build(RunConfig, {"storage_path": str(tmp_path)})


@pytest.fixture
def exported(tiny_trainer, tmp_path):
    """The files that a run of ours leaves behind."""
    tiny_trainer.load_best()
    export_model(tiny_trainer.net, SHAPE, tmp_path)
    return tmp_path


def plain(name, weights, overrides, tracking, tmp_path):
    overrides = {**overrides, "storage_path": str(tmp_path)}
    return find_target(name, tracking, overrides, str(weights) if weights else None)


def test_what_a_run_exports_is_measured_as_the_run_is(exported, tiny_trainer, tracking, tmp_path):
    overrides = SMALL | {"model.width": 4, "evaluation.attack.eps": 0.05}
    target = plain("digits_cnn", exported / "model.safetensors", overrides, tracking, tmp_path)
    assert target.run_id is None
    assert target.folder == f"{tmp_path}/evaluations"
    result = evaluate_target(target, Request(attacks=["fgsm"], checks=False)).result
    expected = tiny_trainer.evaluate("test", {})
    assert torch.equal(result["clean"].correct, expected["clean"].correct)
    assert result["fgsm_linf_0.05"].correct.any()


@pytest.mark.parametrize("kind", ["plain", "nested", "parallel", "safetensors"])
def test_a_library_s_model_with_a_state_dict(tracking, tmp_path, kind):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=4).eval()
    state, path = model.state_dict(), tmp_path / "weights.pt"
    if kind == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif kind == "parallel":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    overrides = RGB | {"model.mean": mean, "model.std": std}
    target = plain("torchvision/resnet18", path, overrides, tracking, tmp_path)
    net = target.load((3, 32, 32), 4)
    x = torch.rand(2, 3, 32, 32)
    normalised = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        assert torch.equal(net(x), model(normalised))
    assert not net.training


class Code:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tracking, tmp_path, capsys):
    torch.save({"weight": Code()}, tmp_path / "evil.pt")
    target = plain("digits_cnn", tmp_path / "evil.pt", {}, tracking, tmp_path)
    with pytest.raises(MorelError, match=r"evil\.pt: holds anything but tensors .*state_dict\(\)"):
        target.load(SHAPE, 4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "must be a state dict, tensors by name"),
        ({"state_dict": {"epoch": 3}}, "must be a state dict, tensors by name"),
        ({"weight": torch.zeros(2)}, r"does not fit .*: it lacks .* more; it has unknown weight$"),
    ],
)
def test_files_that_are_no_weights_of_it(tracking, tmp_path, content, said):
    torch.save(content, tmp_path / "other.pt")
    target = plain("digits_cnn", tmp_path / "other.pt", {}, tracking, tmp_path)
    with pytest.raises(MorelError, match=said) as caught:
        target.load(SHAPE, 4)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_are_named(exported, tracking, tmp_path):
    weights = exported / "model.safetensors"
    target = plain("digits_cnn", weights, {"model.width": 4}, tracking, tmp_path)
    with pytest.raises(MorelError, match=r"it has another fc\.weight \(4, 32\) for \(10, 32\)"):
        target.load(SHAPE, 10)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("torchvision/resnet18", "torchvision/resnet18 alone has random weights: give --weights"),
        ("torchvision/resnet18 --weights none.pt", "--weights none.pt: there is no such file"),
        ("digits_cn --weights w.pt", "model.name = 'digits_cn': did you mean 'digits_cnn'?"),
        ("digits_cnn --weights w.pt data.name=digitz", "data.name = 'digitz': did you mean"),
        ("digits_cnn --weights w.pt model.widht=3", "model.widht = 3: unknown key; did you mean"),
        ("digits_cnn --weights w.pt", "w.pt does not fit model.name = 'digits_cnn': it lacks"),
        ("digits_cnn --weights p.pt2", "--weights p.pt2: a program, not a state dict: give model."),
        ("torchvision/resnet81 --weights w.pt", "model.name = 'torchvision/resnet81': did you"),
    ],
)
def test_mistakes_take_one_line(capsys, monkeypatch, tmp_path, argv, said):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(2)}, "w.pt")
    (tmp_path / "p.pt2").write_bytes(b"")
    assert cli.main(["evaluate", *argv.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"morel: {said}")
    assert err.count("\n") == 1


def test_a_module_from_code(tiny_config):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    evaluation = evaluate_model(module, tiny_config, ["pgd2"], name="linear", num_images=12)
    assert list(evaluation.result) == ["clean", "pgd2_linf_0.05"]
    data = load_data(tiny_config.data)
    logits = module(data.test.fetch(torch.arange(12)).float() / 255)
    assert torch.equal(
        evaluation.result["clean"].correct, logits.argmax(1) == data.test.labels[:12]
    )
    assert evaluation.record()["target"] == "linear"
    assert module.training  # as it came
