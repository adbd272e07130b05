"""Attacks by name: what each promises whatever the images, what names and presets stand for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from morel_core import PGD, AttackConfig, ConfigError, MorelError, evaluate
from morel_core.attacks import (
    Attack,
    AutoAttack,
    AutoAttackPart,
    Transfer,
    at_radii,
    attack_mode,
    make_attacks,
    preset,
)
from morel_core.attacks.ball import outside

BALL = AttackConfig(eps=0.1, step_size=0.025, init="uniform", loss="ce")
NORMS = ("linf", "l2")
OURS = (
    "fgsm", "pgd3", "pgd3x2", "pgd3_worst", "pgd3x2_worst", "cw3", "cw3x2_worst", "transfer",
    "paper", "quick",
)  # fmt: skip
PACKAGE = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square40")
LONG = ("square", "autoattack", "autoattack_plus")  # thousands of passes for what stands
EVERY = (*OURS, *PACKAGE, *LONG)


def net_of(seed: int) -> nn.Sequential:
    """Five classes; BatchNorm and dropout, in train mode, and one grad that is there already."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(3 * 36, 5),
        )  # fmt: skip
    net.requires_grad_(True)[1].requires_grad_(False)
    net[5].bias.grad = torch.ones(5)
    return net.train()


def attacks_of(name: str, ball: AttackConfig) -> list[Attack]:
    if name == "transfer":
        inner = PGD.from_config(replace(ball, num_steps=3), "ce")
        return [Transfer(attack=inner, source=net_of(77), source_name="other")]
    if name == "paper":
        return [
            replace(a, num_steps=min(a.num_steps, 3))
            for a in preset("paper", ball).values()
            if isinstance(a, PGD)
        ]
    if name == "quick":
        return list(preset("quick", ball).values())
    return list(make_attacks([name], ball).values())


def batch(seed: int, pixels: list[float]) -> Tensor:
    """Random images with ``pixels`` strewn in, which lie at the borders of the box."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(len(pixels) // 3, 1, 8, 8, generator=draws)
    where = torch.randint(x.numel(), (len(pixels),), generator=draws)
    x.view(-1)[where] = torch.tensor(pixels)
    return x


def everything(net: nn.Module) -> dict[str, Any]:
    """All that an attack must not change, as copies."""
    return {
        "state": {k: v.clone() for k, v in net.state_dict().items()},
        "modes": [m.training for m in net.modules()],
        "flags": [p.requires_grad for p in net.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "random": torch.get_rng_state(),
    }


def assert_same(before: Any, after: Any) -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        before, after = list(before.values()), list(after.values())
    if isinstance(before, list):
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    elif isinstance(before, Tensor):
        assert torch.equal(before, after)
    else:
        assert before == after


def assert_inside(x_adv: Tensor, x: Tensor, attack: Attack) -> None:
    """To the last ulp where the attack is ours; the package's FAB may round the other way."""
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert outside(x_adv, x, attack.eps, attack.norm) == 0.0
    if attack.norm == "linf" and not isinstance(attack, (AutoAttack, AutoAttackPart)):
        assert (x_adv <= x + attack.eps).all()
        assert (x_adv >= x - attack.eps).all()


def promises(name: str, norm: Any, seed: int, pixels: list[float], eps: float) -> None:
    radius = eps if norm == "linf" else 6 * eps
    ball = replace(BALL, norm=norm, eps=radius, step_size=0.3 * radius)
    net, x = net_of(seed), batch(seed, pixels)
    with attack_mode(net), torch.no_grad():
        y = net(x).argmax(1)
    y[0] = (y[0] + seed % 2) % 5  # one image may be wrong when clean
    for attack in attacks_of(name, ball):
        before, x_before = everything(net), x.clone()
        x_adv = attack(net, x, y, generator=torch.Generator().manual_seed(seed))
        assert_same(before, everything(net))
        assert torch.equal(x, x_before)
        assert_inside(x_adv, x, attack)
        again = attack(net, x, y, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(again, x_adv)
        if attack.draws:
            shape = x.shape if attack.draws == 1 else (attack.draws, *x.shape)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(attack(net, x, y, noise=noise), x_adv)

        result = evaluate(net, x, y, {"it": attack}, batch_size=3, seed=seed)
        assert (result["clean"].correct | ~result["it"].correct).all()
        assert result["it"].accuracy <= result["clean"].accuracy
        assert_same(before, everything(net))


borders = st.lists(
    st.sampled_from([0.0, 1.0, 1e-9, 1 - 2**-24, 0.5, 1 / 255]), min_size=9, max_size=12
)
radii = st.one_of(st.sampled_from([8 / 255, 0.031, 1e-4, 0.5]), st.floats(1e-3, 1.0))
seeds = st.integers(0, 2**31)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", OURS)
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(seed=seeds, pixels=borders, eps=radii)
def test_what_every_attack_of_ours_promises(
    name: str, norm: str, seed: int, pixels: list[float], eps: float
) -> None:
    promises(name, norm, seed, pixels, eps)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PACKAGE)
@settings(max_examples=2, deadline=None, derandomize=True, database=None)
@given(seed=seeds, pixels=borders, eps=radii)
def test_what_every_attack_of_the_package_promises(
    name: str, norm: str, seed: int, pixels: list[float], eps: float
) -> None:
    promises(name, norm, seed, pixels, eps)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", LONG)
@settings(max_examples=2, deadline=None, derandomize=True, database=None)
@given(seed=seeds, pixels=borders, eps=st.sampled_from([0.4, 0.9]))
def test_what_the_long_ones_promise(
    name: str, norm: str, seed: int, pixels: list[float], eps: float
) -> None:
    promises(name, norm, seed, pixels, eps)


def test_every_name_is_tried() -> None:
    """A kind of attack that is new here has to be among those above."""
    kinds = {type(attack) for name in EVERY for attack in attacks_of(name, BALL)}
    assert kinds == {PGD, type(preset_of_paper()[0]), AutoAttackPart, AutoAttack, Transfer}
    parts = {a.part for n in EVERY for a in attacks_of(n, BALL) if isinstance(a, AutoAttackPart)}
    assert parts == {"apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"}


# Names. ------------------------------------------------------------------------------------------


def preset_of_paper() -> list[Attack]:
    return list(preset("paper", BALL).values())


@pytest.mark.parametrize(
    ("written", "name", "parameters"),
    [
        ("pgd20", "pgd20_linf_0.1", {"num_steps": 20, "restarts": 1, "iterate": "last"}),
        ("pgd20x5", "pgd20x5_linf_0.1", {"restarts": 5, "init": "uniform", "step_size": 0.025}),
        ("pgd20x5_worst", "pgd20x5_worst_linf_0.1", {"restarts": 5, "iterate": "worst"}),
        ("pgd20@0.003", "pgd20_step0.003_linf_0.1", {"step_size": 0.003}),
        ("pgd20x2@2/255_worst", "pgd20x2_step2-255_worst_linf_0.1", {"step_size": 2 / 255}),
        ("pgd20@0.025", "pgd20_linf_0.1", {"step_size": 0.025}),
        ("cw30", "cw30_linf_0.1", {"loss": "cw", "num_steps": 30, "step_size": 0.025}),
        ("cw30x2_worst", "cw30x2_worst_linf_0.1", {"loss": "cw", "restarts": 2}),
        ("fgsm", "fgsm_linf_0.1", {"num_steps": 1, "step_size": 0.1, "init": "none"}),
        ("square500", "square500_linf_0.1", {"part": "square", "queries": 500}),
        ("square", "square_linf_0.1", {"part": "square", "queries": 5000}),
        ("fab-t", "fab-t_linf_0.1", {"part": "fab-t", "restarts": 1}),
        ("autoattack_plus", "autoattack_plus_linf_0.1", {"version": "plus"}),
    ],
)
def test_names(written: str, name: str, parameters: dict[str, Any]) -> None:
    ((key, attack),) = make_attacks([written], BALL).items()
    assert key == attack.name == name
    assert parameters.items() <= attack.describe().items()


@pytest.mark.parametrize(
    "name",
    ["pgd", "pgd0", "pgd3x0", "pgd3x", "pgd3_last", "pgd3@", "pgd3@2/254", "cw", "cw3 ", "Square",
     "square0", "square-t", "apgd", "transfer", "quick", ""],
)  # fmt: skip
def test_unknown_names(name: str) -> None:
    with pytest.raises(MorelError) as caught:
        make_attacks([name], BALL)
    assert str(caught.value).startswith(f"attack {name!r} is unknown; known: pgdN")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd3@0.0", "attack 'pgd3@0.0': step_size = 0.0: must be > 0"),
        ("pgd3@0.3", "attack 'pgd3@0.3': step_size = 0.3: must be at most the ball's diameter"),
    ],
)
def test_a_step_out_of_range_is_told_with_its_attack(name: str, message: str) -> None:
    with pytest.raises(MorelError) as caught:
        make_attacks([name], BALL)
    assert str(caught.value).startswith(message)


def test_one_short_step_is_no_fgsm() -> None:
    ball = replace(BALL, init="none")
    assert list(make_attacks(["pgd1", "fgsm"], ball)) == ["pgd1_linf_0.1", "fgsm_linf_0.1"]
    assert list(make_attacks(["pgd1"], replace(ball, step_size=0.1))) == ["fgsm_linf_0.1"]


def test_two_attacks_of_one_name_are_not_one() -> None:
    assert len(make_attacks(["pgd3", "pgd3@0.025", "pgd3"], BALL)) == 1  # the ball's own step
    with pytest.raises(MorelError, match=r"'pgd3@0.0200001': .* same name, pgd3_step0.02_linf_0.1"):
        make_attacks(["pgd3@0.02", "pgd3@0.0200001"], BALL)


def test_restarts_need_a_random_start() -> None:
    with pytest.raises(MorelError, match=r"'pgd3x2': restarts = 2: 1 with init: none"):
        make_attacks(["pgd3x2"], replace(BALL, init="none"))


def test_metric_names_are_distinct_and_allowed() -> None:
    """MLflow allows letters, digits and ``_-./ :``."""
    everything = [a for name in EVERY for a in attacks_of(name, BALL) if name != "paper"]
    everything += preset_of_paper()
    names = [attack.name for attack in everything if attack.name != "fgsm_linf_0.1"]
    assert len(set(names)) == len(names)
    assert all(c.isalnum() or c in "_-./ :" for name in names for c in name)


# Presets. ----------------------------------------------------------------------------------------


def test_quick() -> None:
    assert list(preset("quick", BALL)) == ["fgsm_linf_0.1", "pgd20_worst_linf_0.1"]


def test_standard_is_autoattack_in_the_standard_ball() -> None:
    (linf,) = preset("standard", BALL).values()
    (l2,) = preset("standard", replace(BALL, norm="l2", eps=3.0)).values()
    assert linf == AutoAttack(eps=8 / 255)
    assert l2 == AutoAttack(eps=0.5, norm="l2")


def test_paper_is_what_was_published_and_says_where_not() -> None:
    attacks = preset("paper", replace(BALL, norm="l2", eps=2.0))
    assert list(attacks) == [
        "paper_fgsm_linf_0.031", "paper_pgd20_linf_0.031", "paper_pgd100_linf_0.031",
        "paper_cw30_linf_0.031",
    ]  # fmt: skip
    for attack in attacks.values():
        said = attack.describe()
        assert said["preset"] == "paper"
        assert (said["init"], said["iterate"], said["restarts"]) == ("none", "last", 1)
        assert said["step_size"] == (0.031 if said["num_steps"] == 1 else 0.003)
        assert ("ART" in said["differs"]) == (said["loss"] == "cw")


def test_an_unknown_preset() -> None:
    unknown: Any = "fast"
    with pytest.raises(MorelError, match="preset 'fast' is unknown; known: quick, paper, standard"):
        preset(unknown, BALL)


# The ε-sweep and transfer. -----------------------------------------------------------------------


def test_a_sweep_keeps_the_step_s_share() -> None:
    balls = at_radii(BALL, [0.05, 0.1, 0.4])
    assert [ball.eps for ball in balls] == [0.05, 0.1, 0.4]
    assert [ball.step_size for ball in balls] == pytest.approx([0.0125, 0.025, 0.1])
    assert balls[1] == replace(BALL, step_size=balls[1].step_size)
    assert math.isclose(balls[1].step_size, BALL.step_size)
    with pytest.raises(ConfigError, match=r"eps = 2: must be in \(0, 1\]"):
        at_radii(BALL, [2])


def test_transfer_attacks_the_source_alone() -> None:
    net, source = net_of(0), net_of(1)
    inner = PGD(eps=0.1, step_size=0.03, num_steps=3, init="uniform", restarts=2)
    attack = Transfer(attack=inner, source=source, source_name="resnet50")
    x, y = batch(0, [0.5] * 12), torch.tensor([0, 1, 2, 3])
    noise = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(0))
    before, source_before = everything(net), everything(source)
    passes: list[int] = []
    net.register_forward_hook(lambda *_: passes.append(1))
    x_adv = attack(net, x, y, noise=noise)
    assert passes == []
    assert torch.equal(x_adv, inner(source, x, y, noise=noise))
    assert_same(before, everything(net))
    assert_same(source_before, everything(source))
    assert attack.name == "transfer_resnet50_pgd3x2_linf_0.1"
    assert (attack.eps, attack.norm, attack.draws, attack.white_box) == (0.1, "linf", 2, False)
    assert attack.describe() == {
        "attack": "transfer", "source": "resnet50", "eps": 0.1, "norm": "linf",
        "made_by": inner.describe(),
    }  # fmt: skip
