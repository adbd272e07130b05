"""AutoAttack: the package's own outcomes, image by image, and nothing of it left behind."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import pytest
import torch
from autoattack_cases import Case, digits_case, direct
from torch import Tensor, nn

from morel_core import ConfigError, MorelError, evaluate
from morel_core.attacks import AutoAttack, AutoAttackPart, attack_mode, autoattack_checks

PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


def ensemble(case: Case) -> AutoAttack:
    return AutoAttack(eps=case.eps, norm=case.norm, version=case.version, seed=case.seed)


def assert_identical_to_the_package(case: Case) -> dict[str, Tensor]:
    """Per image, by `evaluate` and by the attack alone; the stages."""
    expected = direct(case)
    attack = ensemble(case)
    result = evaluate(case.net, case.x, case.y, {"it": attack}, batch_size=case.chunk)["it"]
    assert torch.equal(result.correct, expected.correct)
    return result.stages


@pytest.mark.parametrize(
    "case",
    [
        lambda: digits_case(),
        lambda: digits_case(4, eps=0.16, version="plus", size=8),
        lambda: digits_case(4, eps=0.9, norm="l2", size=8),
    ],
    ids=["standard", "plus", "l2"],
)
def test_outcomes_are_those_of_the_package(case: Callable[[], Case]) -> None:
    it = case()
    stages = assert_identical_to_the_package(it)
    standing = [int(stage.sum()) for stage in stages.values()]
    assert list(stages) == [member.name for member in ensemble(it).members]
    assert standing[0] > standing[-1] > 0  # a later attack breaks what the first did not
    if it.version == "standard":
        assert set(direct(it).attacked) == {"apgd-ce", "apgd-t", "fab-t", "square"}


def test_images_are_those_of_the_package_too() -> None:
    case = digits_case(4, eps=0.16, version="plus", size=8)
    assert torch.equal(ensemble(case)(case.net, case.x, case.y), direct(case).x_adv)


# Nothing left behind. ----------------------------------------------------------------------------


def small_net(num_classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(4 * 36, num_classes),
    )  # fmt: skip


def right_batch(net: nn.Module, size: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with attack_mode(net), torch.no_grad():
        return x, net(x).argmax(1)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_leaves_net_random_numbers_and_logging_as_they_were(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    net = small_net()
    x, y = right_batch(net)
    net.train()
    net[3].eval()
    net[0].weight.requires_grad_(False)
    net[5].bias.grad = torch.ones(5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    package_log = logging.getLogger("auto-attack")
    log_before = (package_log.level, package_log.propagate, *package_log.filters)
    random_state, tracing = torch.get_rng_state(), sys.gettrace()
    with caplog.at_level(logging.DEBUG):
        attack = AutoAttackPart(part=part, eps=0.1, queries=50 if part == "square" else 5000)
        attack(net, x, y)
        autoattack_checks(net, x, y, eps=0.1)
    assert caplog.records == []
    assert (package_log.level, package_log.propagate, *package_log.filters) == log_before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert sys.gettrace() is tracing
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 5
    assert torch.equal(net[5].bias.grad, torch.ones(5))
    assert net[5].weight.grad is None


def test_wrong_images_come_back_as_they_are() -> None:
    net = small_net()
    x, y = right_batch(net)
    y[:3] = (y[:3] + 1) % 5
    x_adv = AutoAttackPart(part="apgd-ce", eps=0.3)(net, x, y)
    assert torch.equal(x_adv[:3], x[:3])
    assert (x_adv[3:] != x[3:]).any()


# The package's checks. ---------------------------------------------------------------------------


class Randomised(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x))


class Quantised(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((4 * x).round() / 4)


class Dynamic(nn.Module):
    """Cleans its images by the gradient of its own confidence."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            moving = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.net(moving).amax(1).sum(), moving)
        return self.net(x + 0.01 * grad.sign())


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (Randomised, "it seems to be a randomized defense!"),
        (lambda net: nn.Sequential(net, nn.Softmax(1)), "the output is a probability distribution"),
        (Quantised, "there are 6 points with zero gradient!"),
        (Dynamic, "it seems to be a dynamic defense!"),
        (lambda net: net, None),
    ],
    ids=["randomised", "softmax", "quantised", "dynamic", "honest"],
)
def test_the_package_s_warnings(
    wrap: Callable[[nn.Module], nn.Module], message: str | None
) -> None:
    plain = small_net()
    x, y = right_batch(plain)
    found = autoattack_checks(wrap(plain), x, y, eps=0.1)
    assert len(found) == (message is not None), found
    assert message is None or message in found[0]
    assert autoattack_checks(plain, x, y, eps=0.1) == []  # it remembers nothing
    assert not any("flags_doc" in line for line in found)


# What is refused, and names. ---------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_what_it_cannot_attack_is_refused(part: str) -> None:
    attack = AutoAttackPart(part=part, eps=0.1)
    x, y = right_batch(small_net(3))
    with pytest.raises(MorelError, match="compares the 4 largest logits, the model has 3"):
        attack(small_net(3), x, y)
    with pytest.raises(MorelError, match=r"computes in float32, the images are torch\.float64"):
        attack(small_net().double(), x.double(), y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "apgd"}, "part = 'apgd': apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square"),
        ({"eps": 0.0}, "eps = 0.0: must be > 0"),
        ({"restarts": 0}, "restarts = 0: must be >= 1"),
        ({"queries": 10}, "queries = 10: of square alone, not of fab"),
    ],
)
def test_a_part_checks_its_parameters(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AutoAttackPart(**({"part": "fab", "eps": 0.1} | settings))
    assert str(caught.value).startswith(message)


def test_members_say_what_they_are() -> None:
    standard, plus = (AutoAttack(eps=8 / 255, version=v, seed=5) for v in ("standard", "plus"))
    assert [member.name for member in standard.members] == [
        "apgd-ce_linf_8-255", "apgd-t_linf_8-255", "fab-t_linf_8-255", "square_linf_8-255"
    ]  # fmt: skip
    assert [member.name for member in plus.members] == [
        "apgd-cex5_linf_8-255", "apgd-dlrx5_linf_8-255", "fabx5_linf_8-255", "square_linf_8-255",
        "apgd-t_linf_8-255", "fab-t_linf_8-255",
    ]  # fmt: skip
    assert {member.seed for member in plus.members} == {5}
    assert [m.white_box for m in standard.members] == [True, True, True, False]
    assert standard.members[-1].describe() == {
        "attack": "autoattack-part", "part": "square", "eps": 8 / 255, "norm": "linf", "seed": 5,
        "restarts": 1, "queries": 5000,
    }  # fmt: skip
    assert standard.describe()["members"] == [member.name for member in standard.members]
