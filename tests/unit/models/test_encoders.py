"""Our own classifiers: shapes, sizes and agreement with the public architectures."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from morel_core.config import ModelConfig
from morel_core.errors import ConfigError
from morel_core.models import MODELS, DigitsCnnConfig, ResNetConfig, WideResNetConfig

SMALL = {
    "digits_cnn": DigitsCnnConfig(width=8),
    "digits_cnn group": DigitsCnnConfig(width=8, norm="group"),
    "digits_cnn none": DigitsCnnConfig(width=8, norm="none"),
    "resnet18": ResNetConfig(name="resnet18", width=4),
    "resnet34": ResNetConfig(name="resnet34", width=4),
    "resnet50": ResNetConfig(name="resnet50", width=4),
    "preact_resnet18": ResNetConfig(name="preact_resnet18", width=4),
    "wide_resnet": WideResNetConfig(depth=10, widen_factor=1),
}

PARAMETERS = [
    (ResNetConfig(name="resnet18"), 10, 11_173_962),
    (ResNetConfig(name="resnet34"), 10, 21_282_122),
    (ResNetConfig(name="resnet50"), 10, 23_520_842),
    # The version without a last BatchNorm, 11,171,146, and its 2 · 512 scales and shifts.
    (ResNetConfig(name="preact_resnet18"), 10, 11_171_146 + 1_024),
    (WideResNetConfig(depth=34, widen_factor=10), 10, 46_160_474),
    (WideResNetConfig(depth=28, widen_factor=10), 10, 36_479_194),
    (WideResNetConfig(depth=16, widen_factor=2), 10, 691_674),
    (WideResNetConfig(depth=34, widen_factor=10), 100, 46_160_474 + 90 * 641),
    (DigitsCnnConfig(), 10, 59_050),
]


def build(config: ModelConfig, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    entry = MODELS.get(config.name)
    assert isinstance(config, entry.config_class)
    return entry.factory(config, num_classes, shape)


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_logits_for_any_channels_and_size(name: str, channels: int, size: int) -> None:
    torch.manual_seed(0)
    shape = (channels, size, size)
    model = build(SMALL[name], 7, shape)
    logits = model(torch.rand(2, *shape))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert isinstance(model.get_submodule("fc"), nn.Linear)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())  # nothing is built and left unused


@pytest.mark.parametrize(("config", "num_classes", "expected"), PARAMETERS)
def test_parameter_counts(config: ModelConfig, num_classes: int, expected: int) -> None:
    with torch.device("meta"):
        model = build(config, num_classes, (3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnets_are_torchvisions_with_another_stem(name: str) -> None:
    torch.manual_seed(0)
    ours = build(ResNetConfig(name=name), 10, (3, 16, 16)).eval()
    reference = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    reference.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    reference.maxpool = nn.Identity()
    reference.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(x), rtol=0, atol=1e-6)


def test_wide_resnet_is_named_as_in_trades() -> None:
    model = build(WideResNetConfig(depth=16, widen_factor=2), 10, (3, 32, 32))
    parts = [name for name, _ in model.named_parameters()]
    assert parts[:2] == ["conv1.weight", "block1.layer.0.bn1.weight"]
    assert parts[-4:] == ["bn1.weight", "bn1.bias", "fc.weight", "fc.bias"]
    block = {"bn1", "conv1", "bn2", "conv2", "convShortcut"}
    assert {name for name, _ in model.get_submodule("block2.layer.0").named_children()} == block
    assert {name for name, _ in model.get_submodule("block2.layer.1").named_children()} == (
        block - {"convShortcut"}
    )
    assert model.get_submodule("block2.layer.0.conv1").stride == (2, 2)
    assert model.get_submodule("block1.layer.0.conv1").stride == (1, 1)


def test_wide_and_preact_shortcuts_start_after_the_activation() -> None:
    """With both convolutions at zero a block is its shortcut alone."""
    torch.manual_seed(0)
    x = torch.randn(4, 4, 6, 6)
    preact = build(SMALL["preact_resnet18"], 3, (3, 6, 6))
    block = preact.get_submodule("layer2.0").eval()
    nn.init.zeros_(block.get_submodule("conv2").weight)
    conv = block.get_submodule("shortcut.0")
    expected = conv(torch.relu(block.get_submodule("bn1")(x)))
    torch.testing.assert_close(block(x), expected)

    wide = build(SMALL["wide_resnet"], 3, (3, 6, 6))
    block = wide.get_submodule("block2.layer.0").eval()
    nn.init.zeros_(block.get_submodule("conv2").weight)
    x = torch.randn(4, 16, 6, 6)
    expected = block.get_submodule("convShortcut")(torch.relu(block.get_submodule("bn1")(x)))
    torch.testing.assert_close(block(x), expected)


def test_convolutions_are_drawn_with_the_fan_out() -> None:
    torch.manual_seed(0)
    model = build(WideResNetConfig(depth=10, widen_factor=4), 10, (3, 32, 32))
    weight = model.get_submodule("block3.layer.0.conv2").weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert model.get_submodule("fc").bias.abs().max() == 0


@pytest.mark.parametrize("norm", ["group", "none"])
def test_digits_cnn_without_batch_statistics_treats_samples_alone(norm: str) -> None:
    torch.manual_seed(0)
    model = build(DigitsCnnConfig(width=8, norm=norm), 10, (1, 8, 8)).train()  # type: ignore[arg-type]
    x = torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(model(x)[:2], model(x[:2]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WideResNetConfig(depth=33), r"^depth = 33: 6 n \+ 4"),
        (lambda: WideResNetConfig(depth=4), r"^depth = 4"),
        (lambda: WideResNetConfig(widen_factor=0), r"^widen_factor = 0"),
        (lambda: ResNetConfig(width=0), r"^width = 0"),
        (lambda: DigitsCnnConfig(width=0), r"^width = 0"),
        (lambda: DigitsCnnConfig(width=12, norm="group"), r"^width = 12: a multiple of 8"),
        (lambda: DigitsCnnConfig(num_heads=3), r"^num_heads = 3"),
    ],
)
def test_settings_out_of_range(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
