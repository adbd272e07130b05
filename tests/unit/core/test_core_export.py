"""Exported models are the plain architecture, and predict what the network predicts."""

import copy

import pytest
import torch
from torchvision.models import resnet18

from morel_core import ModelConfig
from morel_core.checkpoint import load_tensors
from morel_core.export import export_model
from morel_core.models import DigitsCnn, DigitsCnnConfig, ExternalConfig, build_net

COLOUR = {"mean": [0.48, 0.45, 0.4], "std": [0.2, 0.25, 0.3]}


def trained_looking(net):
    """Running statistics away from 0 and 1, as after training."""
    draws = torch.Generator().manual_seed(2)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=draws)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=draws)
    return net


@pytest.fixture(scope="module", params=["plain", "normalised"])
def exported(request, tmp_path_factory):
    """(net in training mode, folder of its export, config, the net's state before)."""
    normalisation = COLOUR if request.param == "normalised" else {}
    config = DigitsCnnConfig(width=4, embed_dim=8, **normalisation)
    net = trained_looking(build_net(config, num_classes=5, shape=(3, 8, 8), seed=0)).train()
    before = copy.deepcopy(net.state_dict())
    folder = tmp_path_factory.mktemp(request.param)
    export_model(net, (3, 8, 8), folder)
    return net, folder, config, before


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_program_gives_the_nets_logits_for_images_in_the_unit_interval(exported, batch_size):
    net, folder, *_ = exported
    program = torch.export.load(folder / "model.pt2").module()
    x = torch.rand(batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(batch_size))
    with torch.no_grad():
        torch.testing.assert_close(program(x), copy.deepcopy(net).eval()(x), rtol=0, atol=1e-6)


def test_the_weights_load_strictly_into_the_plain_architecture(exported):
    net, folder, config, _ = exported
    plain = DigitsCnn(config, 5, 3)
    assert plain.load_state_dict(load_tensors(folder / "model.safetensors"), strict=True)
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    normalised = x
    if config.mean is not None:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (config.mean, config.std))
        normalised = (x - mean) / std
    with torch.no_grad():
        torch.testing.assert_close(
            plain.eval()(normalised), copy.deepcopy(net).eval()(x), rtol=0, atol=1e-6
        )


def test_the_net_is_left_as_it_was(exported):
    net, _, _, before = exported
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_program_can_be_attacked(exported):
    """MLflow users get this file: input gradients must work on it."""
    _, folder, *_ = exported
    program = torch.export.load(folder / "model.pt2").module()
    x = torch.rand(2, 3, 8, 8).requires_grad_(True)
    program(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_torchvision_model_with_normalisation(tmp_path):
    config = ExternalConfig(name="torchvision/resnet18", embed_dim=8, **COLOUR)
    net = trained_looking(build_net(config, num_classes=4, shape=(3, 32, 32), seed=0))
    export_model(net, (3, 32, 32), tmp_path)
    net.eval()
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    program = torch.export.load(tmp_path / "model.pt2").module()
    plain = resnet18(num_classes=4)
    plain.load_state_dict(load_tensors(tmp_path / "model.safetensors"), strict=True)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in COLOUR.values())
    with torch.no_grad():
        logits = net(x)
        torch.testing.assert_close(program(x), logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(plain.eval()((x - mean) / std), logits, rtol=0, atol=1e-6)


def test_mean_and_std_must_fit_the_images():
    with pytest.raises(ValueError, match=r"^model\.mean = \[0\.5\]: one entry a channel"):
        build_net(ModelConfig(mean=[0.5], std=[0.5]), num_classes=2, shape=(3, 8, 8))
