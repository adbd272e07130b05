"""Networks by name, their seed, and the classifiers of torchvision and timm."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from morel_core.config import ModelConfig
from morel_core.errors import ConfigError, MorelError
from morel_core.models import (
    MODELS,
    DigitsCnn,
    DigitsCnnConfig,
    ExternalConfig,
    MorelNet,
    ResNetConfig,
    build_net,
)

DIGITS = (1, 8, 8)


def digits(seed: int | None, **settings: Any) -> MorelNet:
    return build_net(DigitsCnnConfig(width=8, **settings), num_classes=10, shape=DIGITS, seed=seed)


def test_every_setting_reaches_the_net() -> None:
    net = digits(0, embed_dim=24, num_heads=3, dropout=0.25, mean=[0.4], std=[0.2])
    assert isinstance(net.encoder, DigitsCnn)
    assert (net.head.in_features, net.head.out_features) == (64, 10)
    assert net.projection.out_features == 24
    assert net.attention is not None
    assert (net.attention.num_heads, net.attention.dropout) == (3, 0.25)
    assert net.mean is not None
    assert net.std is not None
    assert (net.mean.item(), net.std.item()) == pytest.approx((0.4, 0.2))
    assert digits(0, attention=False).attention is None
    assert net.training


def test_a_seed_decides_all_weights_and_touches_no_other_generator() -> None:
    before = torch.get_rng_state()
    first, again, other = digits(3), digits(3), digits(4)
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    for part in ("encoder", "head", "projection", "attention"):
        pairs = zip(
            first.get_submodule(part).parameters(),
            other.get_submodule(part).parameters(),
            strict=True,
        )
        assert any(not torch.equal(a, b) for a, b in pairs), part


def test_without_a_seed_the_global_generator_is_used() -> None:
    torch.manual_seed(7)
    first, second = digits(None), digits(None)
    torch.manual_seed(7)
    again = digits(None)
    assert torch.equal(first.projection.weight, again.projection.weight)
    assert not torch.equal(first.projection.weight, second.projection.weight)


def test_a_plain_config_takes_the_defaults_of_its_model() -> None:
    net = build_net(ModelConfig(embed_dim=16), num_classes=10, shape=DIGITS, seed=0)
    assert net.head.in_features == 256
    assert net.projection.out_features == 16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="resnet19"), r"model.name = 'resnet19': did you mean 'resnet18'\?"),
        (
            ResNetConfig(name="wide_resnet"),
            r"model.name = 'wide_resnet': is configured by WideResNetConfig, not ResNetConfig",
        ),
        (
            DigitsCnnConfig(mean=[0.5] * 3, std=[0.5] * 3),
            r"model.mean = .*: one entry a channel: the images have 1",
        ),
        (
            DigitsCnnConfig(mean=[0.5], std=[0.5] * 3),
            r"model.std = .*: one entry a channel: the images have 1",
        ),
        (
            ModelConfig(name="torchvision/resnt18"),
            r"'torchvision/resnt18': did you mean torchvision/resnet18",
        ),
        (ModelConfig(name="timm/rsnet18"), r"'timm/rsnet18': did you mean timm/resnet18"),
        (ModelConfig(name="torchvision/fcn_resnet50"), r"torchvision.models.list_models\(\) lists"),
        (ModelConfig(name="torchvision"), r"model.name = 'torchvision': torchvision/<model>"),
        (
            ModelConfig(name="torchvision/squeezenet1_1"),
            r"model.head = None: SqueezeNet holds no nn.Linear",
        ),
        (
            ExternalConfig(name="torchvision/mobilenet_v3_small", head="fc"),
            r"model.head = 'fc': is no nn.Linear of MobileNetV3; choose one of: .*classifier.3",
        ),
        (
            ModelConfig(name="torchvision/shufflenet_v2_x0_5"),
            None,
        ),
        (
            ModelConfig(name="torchvision/mnasnet0_5"),
            None,
        ),
        (
            ExternalConfig(name="torchvision/resnet18", pretrained=True),
            r"model.pretrained = True: torchvision's weights take 3 channels, the data have 1",
        ),
    ],
)
def test_what_cannot_be_built(config: ModelConfig, message: str | None) -> None:
    if message is None:
        net = build_net(config, num_classes=10, shape=DIGITS, seed=0)
        assert net.eval()(torch.rand(2, *DIGITS)).shape == (2, 10)
        return
    with pytest.raises(ConfigError, match=message):
        build_net(config, num_classes=10, shape=DIGITS, seed=0)


def test_families_are_registered() -> None:
    assert MODELS.get("torchvision/vgg11").config_class is ExternalConfig
    assert MODELS.get("timm/anything").config_class is ExternalConfig
    with pytest.raises(ConfigError, match=r"^name = 'resnet18': torchvision/<model> or timm"):
        ExternalConfig(name="resnet18")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision/resnet18", (1, 28, 28)),
        ("torchvision/mobilenet_v3_small", (3, 32, 32)),
        ("torchvision/googlenet", (3, 32, 32)),  # in training mode: no auxiliary outputs
        ("timm/test_vit", (1, 32, 32)),  # its own size is 160
        ("timm/test_resnet", (4, 32, 32)),
    ],
)
def test_external_classifiers(name: str, shape: tuple[int, int, int]) -> None:
    net = build_net(ModelConfig(name=name), num_classes=6, shape=shape, seed=0)
    assert net.training
    x = torch.rand(2, *shape)
    assert net(x).shape == (2, 6)
    plain = net.eval().unwrap()
    assert torch.equal(plain(x), net(x))
    again = build_net(ModelConfig(name=name), num_classes=6, shape=shape, seed=0)
    for key, value in again.state_dict().items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, net.state_dict()[key]), key


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("timm/test_vit", (3, 8, 9), r"does not work on 3x8x9 images \(.+\)"),
        ("torchvision/densenet121", (3, 8, 8), r"does not work on 3x8x8 images \(.+\)"),
        # ends in the mean of two heads
        ("timm/deit_tiny_distilled_patch16_224", (3, 32, 32), r"does not end in 'head_dist'"),
    ],
)
def test_external_classifiers_that_do_not_fit(
    name: str, shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_net(ModelConfig(name=name), num_classes=6, shape=shape, seed=0)


def test_the_probe_notices_what_follows_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    class LogSoftmaxed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 6)
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.dropout(x.flatten(1))).log_softmax(1)

    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: LogSoftmaxed())
    with pytest.raises(ConfigError, match=r"model.head = None: torchvision/resnet18 does not end"):
        build_net(ModelConfig(name="torchvision/resnet18"), num_classes=6, shape=(3, 2, 2))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet"])
def test_pretrained_torchvision_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    auxiliary = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    reference = torchvision.models.get_model(name, weights=None, **auxiliary)
    stored = dict(reference.state_dict())
    if name == "densenet121":  # the published file has the dots of an older torch
        stored = {
            key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
            for key, value in stored.items()
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in stored
    asked: list[dict[str, Any]] = []

    def stand_in(_url: str, **options: Any) -> dict[str, Tensor]:
        asked.append(options)
        return stored

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", stand_in)
    config = ExternalConfig(name=f"torchvision/{name}", pretrained=True)
    net = build_net(config, num_classes=6, shape=(3, 32, 32), seed=0)
    assert asked[0]["weights_only"] is True
    assert asked[0]["check_hash"] is True
    assert net.head.out_features == 6
    kept = net.encoder.state_dict()
    assert kept
    for key, value in kept.items():
        assert torch.equal(value, reference.state_dict()[key]), key
    full = build_net(config, num_classes=1000, shape=(3, 32, 32), seed=0)
    assert torch.equal(full.head.weight, next(reversed(list(reference.children()))).weight)


def test_pretrained_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr(timm, "create_model", offline)
    for name in ("torchvision/resnet18", "timm/resnet18"):
        config = ExternalConfig(name=name, pretrained=True)
        with pytest.raises(MorelError, match=f"pretrained weights of {name}: no route to host"):
            build_net(config, num_classes=6, shape=(3, 32, 32))


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MorelError, match="needs timm: pip install timm"):
        build_net(ModelConfig(name="timm/resnet18"), num_classes=6, shape=(3, 32, 32))


def test_the_probe_leaves_batch_statistics_and_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    net = build_net(
        ModelConfig(name="torchvision/resnet18"), num_classes=6, shape=(3, 32, 32), seed=0
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert net.encoder.get_submodule("bn1").num_batches_tracked == 0
    assert not net.encoder._forward_hooks
    assert not net.head._forward_hooks
