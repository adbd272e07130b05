"""Steps in micro-batches are the steps on whole batches, in less memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from parity_cases import assert_equal_to, grads, small_batch, small_net, state
from test_step_parity import OBJECTIVES
from torch import Tensor, nn

from morel_core import PGD, MorelNet, MorelObjective, ObjectiveConfig, OptimizerConfig, Terms
from morel_core.attacks import in_slices, make_attacks
from morel_core.config import AttackConfig
from morel_core.optim import make_optimizer
from morel_core.precision import EncoderPasses
from morel_core.step import gradient_shares, train_step

NUM_STEPS = 10
BATCH = 8  # in 3 slices: 3, 3 and 2


def steps(
    net: MorelNet,
    config: ObjectiveConfig,
    micro_batches: int,
    *,
    awp_gamma: float = 0.0,
    num_steps: int = NUM_STEPS,
    size: int = BATCH,
    **passes: Any,
) -> list[dict[str, Any]]:
    """Steps of ``net``: the terms, gradients and state of each, and the first one's shares."""
    for parameter in net.embedder_parameters():
        parameter.requires_grad_(config.morel)
    objective = MorelObjective(config)
    attack = PGD(eps=0.06, step_size=0.02, num_steps=3, loss=objective.attack_loss)
    optimizer = make_optimizer(OptimizerConfig(lr=0.05, momentum=0.9), net)
    after: list[dict[str, Any]] = []
    for step in range(num_steps):
        x, y, noise = small_batch(size, seed=step)
        shares: dict[str, Tensor] = {}

        def inspect(terms: Terms, shares: dict[str, Tensor] = shares) -> None:
            shares.update(gradient_shares(terms, net))

        with EncoderPasses(net, micro_batches=micro_batches, **passes).active():
            terms, finite = train_step(
                net,
                objective,
                in_slices(attack, micro_batches),
                optimizer,
                x,
                y,
                noise=noise,
                epoch=step + 1,
                num_epochs=NUM_STEPS,
                awp_gamma=awp_gamma,
                inspect=inspect if step == 0 else None,
            )
        assert finite
        scalars = {name: value.detach() for name, value in terms.scalars().items()}
        parts = {"terms": scalars, "grads": grads(net), "state": state(net), "shares": shares}
        after.append(parts)
    return after


def assert_same_steps(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for now, then in zip(actual, expected, strict=True):
        for part, values in then.items():
            assert list(now[part]) == list(values)
            for key, value in values.items():
                if value.is_floating_point():
                    assert_equal_to(now[part][key], value, 1e-9)
                else:
                    assert torch.equal(now[part][key], value), key
    assert sum(g.abs().sum() for g in expected[0]["grads"].values()) > 1e-3


@pytest.mark.parametrize("micro_batches", [2, 3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_ten_steps_equal_those_on_whole_batches(name: str, micro_batches: int) -> None:
    net = small_net(seed=3)
    twin = copy.deepcopy(net)
    assert_same_steps(steps(net, OBJECTIVES[name], micro_batches), steps(twin, OBJECTIVES[name], 1))


def test_weight_perturbation_and_bf16_take_their_passes_in_slices_too() -> None:
    for settings in ({"awp_gamma": 0.02}, {"channels_last": True}):
        net = small_net(seed=3)
        twin = copy.deepcopy(net)
        config = ObjectiveConfig(accuracy="trades", features="both", alpha=0.1)
        assert_same_steps(steps(net, config, 3, **settings), steps(twin, config, 1, **settings))


def test_frozen_batchnorm_changes_nothing() -> None:
    def frozen() -> MorelNet:
        net = small_net(seed=3, norm="batch")
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return net

    config = ObjectiveConfig(accuracy="mart", alpha=0.1)
    assert_same_steps(steps(frozen(), config, 3), steps(frozen(), config, 1))


def test_batchnorm_sees_each_slice_once() -> None:
    """The pass that gradients flow through moves no statistics; those of slices are other ones."""
    net = small_net(seed=3, norm="batch")
    twin = copy.deepcopy(net)
    x = small_batch(BATCH)[0]
    with EncoderPasses(net, micro_batches=3).active():
        features = net.features(x)
    expected = torch.cat([twin.features(part) for part in x.tensor_split(3)])
    assert torch.equal(features, expected)
    before = state(net)
    for key, value in before.items():
        assert torch.equal(value, twin.state_dict()[key]), key
    weight = torch.randn_like(features)
    (features * weight).sum().backward()
    (expected * weight).sum().backward()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    for key, gradient in grads(net).items():
        assert_equal_to(gradient, grads(twin)[key])


def test_dropout_falls_alike_in_both_passes_of_a_slice() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    net = MorelNet.wrap(model, embed_dim=4).double().train()
    torch.manual_seed(1)
    with EncoderPasses(net, micro_batches=2).active():
        features = net.features(torch.ones(6, 3, 2, 2, dtype=torch.float64))
    dropped = (features == 0).detach()
    assert 0 < dropped.sum() < dropped.numel()
    weight = torch.ones_like(features)
    features.backward(weight)
    bias = net.encoder.get_submodule("1").bias.grad
    assert_equal_to(bias, 2.0 * (~dropped).sum(0).double())


@contextmanager
def watched(net: MorelNet) -> Iterator[list[tuple[int, bool]]]:
    """Rows of each encoder pass, and whether it was in train mode."""
    seen: list[tuple[int, bool]] = []
    hook = net.encoder.register_forward_pre_hook(
        lambda module, inputs: seen.append((len(inputs[0]), module.training))
    )
    yield seen
    hook.remove()


def test_no_pass_is_larger_than_a_slice() -> None:
    net = small_net()
    with watched(net) as seen:
        steps(net, ObjectiveConfig(accuracy="trades"), 3, num_steps=2)
    assert max(rows for rows, _ in seen) == 3
    attacked = sum(rows for rows, training in seen if not training)
    assert attacked == 2 * BATCH * (1 + 3), "a slice is attacked once"


def test_no_activations_are_kept_between_the_two_passes() -> None:
    """What autograd keeps until the backward pass: of images and feature maps, the images."""

    x = small_batch(12)[0]

    def kept(micro_batches: int) -> int:
        net = small_net(norm="batch")
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            if tensor.dim() == 4 and not isinstance(tensor, nn.Parameter):
                sizes.append(tensor.numel())
            return tensor

        with (
            EncoderPasses(net, micro_batches=micro_batches).active(),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            net.features(x)
        return sum(sizes)

    assert kept(1) > 2 * x.numel()
    assert kept(4) == x.numel()


def test_attacks_that_draw_for_a_whole_batch_stay_whole() -> None:
    """The same network has one robust accuracy, however it was trained; ensembles keep stages."""
    for attack in make_attacks(["autoattack", "square100"], AttackConfig(eps=0.1)).values():
        assert in_slices(attack, 4) is attack


def test_one_micro_batch_is_the_plain_step() -> None:
    attack = PGD(eps=0.1, step_size=0.05, num_steps=1)
    assert in_slices(attack, 1) is attack
    net = small_net(seed=3)
    twin = copy.deepcopy(net)
    config = ObjectiveConfig(accuracy="trades")
    for now, then in zip(steps(net, config, 1), steps(twin, config, 1), strict=True):
        for key, value in then["state"].items():
            assert torch.equal(now["state"][key], value)


@pytest.mark.parametrize(
    "settings", [{"restarts": 3, "init": "uniform"}, {"init": "none"}, {"iterate": "worst"}]
)
def test_an_attack_in_slices_finds_what_it_finds_at_once(settings: dict[str, Any]) -> None:
    net = small_net(seed=2, spread=4.0).eval()
    attack = PGD(eps=0.1, step_size=0.03, num_steps=3, **settings)
    x, y, _ = small_batch(7)
    whole = attack(net, x, y, generator=torch.Generator().manual_seed(5))
    sliced = in_slices(attack, 3)
    parts = sliced(net, x, y, generator=torch.Generator().manual_seed(5))
    assert_equal_to(parts, whole)
    one = sliced(net, x[:1], y[:1], generator=torch.Generator().manual_seed(5))
    assert one.shape == x[:1].shape
    for name in ("name", "eps", "norm", "draws", "white_box"):
        assert getattr(sliced, name) == getattr(attack, name)
    assert sliced.describe() == attack.describe()
