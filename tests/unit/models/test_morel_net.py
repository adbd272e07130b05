"""Wrapping, unwrapping and class-adaptive attention."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from morel_core.errors import ConfigError, MorelError
from morel_core.models import MorelNet, WideResNet


def small_wide_resnet() -> nn.Module:
    return WideResNet(depth=10, widen_factor=1, num_classes=7, channels=3)


ARCHITECTURES = {
    "torchvision resnet18": (
        lambda: torchvision.models.resnet18(weights=None, num_classes=7),
        "fc",
        32,
    ),
    "torchvision alexnet": (
        lambda: torchvision.models.alexnet(weights=None, num_classes=7),
        "classifier.6",
        64,
    ),
    "torchvision mobilenet": (
        lambda: torchvision.models.mobilenet_v3_small(weights=None, num_classes=7),
        "classifier.3",
        32,
    ),
    "timm vit": (
        lambda: timm.create_model("test_vit", num_classes=7, img_size=32),
        "head",
        32,
    ),
    "wide_resnet": (small_wide_resnet, "fc", 16),
}


def linear_classifier(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype)


def per_class_attention(net: MorelNet, z: Tensor, y: Tensor) -> Tensor:
    """The published form: one attention call for each class of the batch."""
    assert net.attention is not None
    assert net.pre_norm is not None
    out = torch.zeros_like(z)
    for label in y.unique():
        rows = torch.where(y == label)[0]
        normed = net.pre_norm(z[rows])
        attended, _ = net.attention(normed, normed, normed)
        out = out.index_copy(0, rows, z[rows] + attended)
    return out / out.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_wrap_and_unwrap_keep_the_classifier(name: str) -> None:
    build, head, size = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = model(x)
    net = MorelNet.wrap(model, head=head)

    assert isinstance(model.get_submodule(head), nn.Linear)  # the caller's module is untouched
    with torch.no_grad():
        assert torch.equal(net(x), expected)
        assert net.features(x).shape == (2, net.head.in_features)

    for parameter in net.parameters():  # "training"
        parameter.data.mul_(1.01)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    with torch.no_grad():
        trained = net(x)
    plain = net.unwrap()
    assert type(plain) is type(model)
    assert list(plain.state_dict()) == list(before)
    fresh = build().eval()
    fresh.load_state_dict(plain.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(plain(x), trained)
        assert torch.equal(fresh(x), trained)
    assert not torch.equal(trained, expected)


def test_unwrap_is_a_copy_in_eval_mode_without_gradients() -> None:
    net = MorelNet.wrap(linear_classifier(), embed_dim=4).train()
    net(torch.rand(2, 3, 2, 2)).sum().backward()
    plain = net.unwrap()
    assert not any(module.training for module in plain.modules())
    assert all(parameter.grad is None for parameter in plain.parameters())
    assert net.training
    assert net.head.weight.grad is not None
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert net.head.weight.abs().sum() > 0
    assert isinstance(net.encoder.get_submodule("3"), nn.Identity)


@pytest.mark.parametrize("training", [True, False])
def test_wrap_keeps_mode_gradient_flags_dtype_and_drops_gradients(training: bool) -> None:
    model = linear_classifier(torch.float64).train(training)
    model[1].weight.requires_grad_(False)
    model(torch.rand(2, 12, dtype=torch.float64)).sum().backward()
    net = MorelNet.wrap(model, embed_dim=4)
    assert all(module.training is training for module in net.modules())
    assert all(parameter.dtype == torch.float64 for parameter in net.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.encoder.get_submodule("1").weight.requires_grad
    assert model[3].weight.grad is not None


def test_default_head_is_the_last_linear_layer_that_is_called() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.MultiheadAttention(4, 1))
    net = MorelNet.wrap(model, embed_dim=2)
    assert net.head.out_features == 3


@pytest.mark.parametrize("head", ["fc", "2", "0", ""])
def test_a_head_that_is_no_linear_layer(head: str) -> None:
    with pytest.raises(ConfigError, match=r"no nn.Linear of Sequential; choose one of: 1, 3$"):
        MorelNet.wrap(linear_classifier(), head=head)


def test_a_model_without_linear_layer() -> None:
    with pytest.raises(ConfigError, match=r"model.head = None: Sequential holds no nn.Linear"):
        MorelNet.wrap(nn.Sequential(nn.Conv2d(3, 3, 1)))


def test_an_encoder_that_does_not_give_vectors() -> None:
    net = MorelNet.wrap(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(6, 3)), embed_dim=2)
    with pytest.raises(MorelError, match=r"'1' gave a tensor of shape \(2, 4, 6, 6\) .* \(2, 6\)"):
        net.features(torch.rand(2, 3, 6, 6))

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x), x

    with pytest.raises(MorelError, match=r"Pair without its head 'fc' gave a tuple"):
        MorelNet.wrap(Pair(), embed_dim=2)(torch.rand(2, 3))


def test_layers_between_the_wrong_head_and_the_end_are_noticed() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 3))
    net = MorelNet.wrap(model, head="0", embed_dim=2)
    with pytest.raises(MorelError, match=r"gave a tensor of shape \(2, 3\) .*model\.head$"):
        net(torch.rand(2, 12))


def test_normalisation_is_inside_the_net_and_not_in_its_state() -> None:
    torch.manual_seed(0)
    model = small_wide_resnet().eval()
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    net = MorelNet.wrap(model, mean=mean, std=std)
    x = torch.rand(2, 3, 8, 8)
    shape = (1, 3, 1, 1)
    expected = model((x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    assert not {"mean", "std"} & set(net.state_dict())
    assert net.mean is not None
    assert net.double().mean.dtype == torch.float64


def test_normalisation_of_other_channels_is_refused() -> None:
    net = MorelNet.wrap(small_wide_resnet(), mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(MorelError, match=r"model.mean has 3 channels, the images are \(2, 1, 8, 8"):
        net(torch.rand(2, 1, 8, 8))
    with pytest.raises(ConfigError, match=r"model\.std"):
        MorelNet.wrap(small_wide_resnet(), mean=[0.5] * 3, std=[0.5])
    with pytest.raises(ConfigError, match=r"model\.std"):
        MorelNet.wrap(small_wide_resnet(), mean=[0.5] * 3)


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 0, 2, 1, 0, 5, 2, 0],  # 5 stands alone
        [3] * 9,
        list(range(9)),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_attend_is_the_attention_of_each_class(labels: list[int], training: bool) -> None:
    torch.manual_seed(0)
    net = MorelNet.wrap(linear_classifier(torch.float64), embed_dim=8, num_heads=2).train(training)
    assert net.pre_norm is not None
    nn.init.normal_(net.pre_norm.weight)  # biases and scales that matter
    nn.init.normal_(net.pre_norm.bias)
    y = torch.tensor(labels)
    z = torch.randn(len(labels), 8, dtype=torch.float64, requires_grad=True)
    probe = torch.randn_like(z)
    inputs = [z, *net.pre_norm.parameters(), *net.attention.parameters()]  # type: ignore[union-attr]

    ours, naive = net.attend(z, y), per_class_attention(net, z, y)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(y), dtype=torch.float64))
    for got, wanted in zip(
        torch.autograd.grad((ours * probe).sum(), inputs),
        torch.autograd.grad((naive * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    with torch.no_grad():  # no fast path with other numbers
        torch.testing.assert_close(net.attend(z, y), naive, rtol=0, atol=1e-12)


def test_attend_sees_nothing_of_other_classes() -> None:
    torch.manual_seed(0)
    net = MorelNet.wrap(linear_classifier(torch.float64), embed_dim=8)
    y = torch.tensor([0, 0, 1, 1])
    z = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(net.attend(z, y)[:2].pow(3).sum(), z)
    assert gradient[:2].abs().sum() > 0
    assert gradient[2:].abs().sum() == 0


def test_attend_reads_no_value_and_costs_the_same_for_any_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = MorelNet.wrap(linear_classifier().to("meta"), embed_dim=8)
    calls: list[int] = []
    forward = nn.MultiheadAttention.forward

    def counting(self: nn.MultiheadAttention, *args: object, **kwargs: object) -> object:
        calls.append(1)
        return forward(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.MultiheadAttention, "forward", counting)
    # Tensors without data: whatever has to look at a value, as torch.unique does, raises here.
    u = net.attend(torch.empty(6, 8, device="meta"), torch.empty(6, device="meta").long())
    assert u.shape == (6, 8)
    assert len(calls) == 1


def test_without_attention_projections_are_normalised_only() -> None:
    net = MorelNet.wrap(linear_classifier(), embed_dim=4, attention=False)
    assert net.attention is None
    assert net.pre_norm is None
    z = torch.randn(3, 4)
    torch.testing.assert_close(net.attend(z, torch.tensor([0, 0, 1])), F.normalize(z, dim=1))
    assert not [key for key in net.state_dict() if key.startswith(("attention", "pre_norm"))]


def test_embedder_parameters_are_those_beside_the_classifier() -> None:
    model = linear_classifier()
    net = MorelNet.wrap(model, embed_dim=128, num_heads=2)
    embedder = list(net.embedder_parameters())
    classifier = [*net.encoder.parameters(), *net.head.parameters()]
    assert {id(p) for p in embedder}.isdisjoint(id(p) for p in classifier)
    assert {id(p) for p in embedder} | {id(p) for p in classifier} == {
        id(p) for p in net.parameters()
    }
    names = {name for name, _ in net.named_parameters() if not name.startswith(("encoder", "head"))}
    assert names == {
        *("projection.weight", "projection.bias", "pre_norm.weight", "pre_norm.bias"),
        *("attention.in_proj_weight", "attention.in_proj_bias"),
        *("attention.out_proj.weight", "attention.out_proj.bias"),
    }
    assert net.pre_norm is not None
    assert net.pre_norm.eps == 1e-6


def test_heads_must_divide_the_embedding() -> None:
    with pytest.raises(ConfigError, match=r"model.num_heads = 3: must divide embed_dim = 128"):
        MorelNet.wrap(linear_classifier(), num_heads=3)
    MorelNet.wrap(linear_classifier(), num_heads=3, attention=False)  # unused, hence not judged
