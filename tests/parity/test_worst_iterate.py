"""PGD with restarts and the worst iterate: against its twin, in strength, in passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import naive
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity_cases import assert_equal_to, bounded, small_batch, small_net
from torch import Tensor, nn

from morel_core import PGD, MorelError
from morel_core.attacks import attack_mode
from morel_core.models import MorelNet

NORMS = ("linf", "l2")
KINDS = [
    (norm, loss, init, restarts, iterate)
    for norm in NORMS
    for loss in ("ce", "kl", "cw")
    for init, restarts in (("gaussian", 1), ("gaussian", 3), ("uniform", 3), ("none", 1))
    for iterate in ("last", "worst")
    if (loss, init) != ("kl", "none")
]


def undecided_net(x: Tensor, seed: int = 0) -> MorelNet:
    """Its logits are centred on ``x``, so that small steps change some of its predictions."""
    net = small_net(spread=3.0, seed=seed)
    with attack_mode(net), torch.no_grad():
        net.head.bias.sub_(net(x).mean(0))
    return net


def draws_of(x: Tensor, restarts: int, seed: int = 3) -> Tensor:
    return torch.randn(
        (restarts, *x.shape), generator=torch.Generator().manual_seed(seed), dtype=x.dtype
    )


def stands(net: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    with attack_mode(net), torch.no_grad():
        return net(x_adv).argmax(1) == y


def predictions(net: nn.Module, x: Tensor) -> Tensor:
    with attack_mode(net), torch.no_grad():
        return net(x).argmax(1)


@pytest.mark.parametrize(("norm", "loss", "init", "restarts", "iterate"), KINDS)
def test_pgd_equals_its_twin(norm: Any, loss: Any, init: Any, restarts: int, iterate: Any) -> None:
    x, y, _ = small_batch(8)
    net = undecided_net(x)
    y = torch.where(torch.arange(8) < 7, predictions(net, x), (predictions(net, x) + 1) % 4)
    noise = draws_of(x, restarts)
    parameters: dict[str, Any] = {
        "eps": 0.03 if norm == "linf" else 0.2,
        "step_size": 0.01 if norm == "linf" else 0.07,
        "num_steps": 4,
        "norm": norm,
        "loss": loss,
        "init": init,
        "iterate": iterate,
    }
    attack = PGD(**parameters, restarts=restarts)
    assert attack.draws == (0 if init == "none" else restarts)
    x_adv = attack(net, x, y, noise=noise[0] if restarts == 1 else noise)
    twin, twin_stands = naive.pgd_search(net, x, y, list(noise), **parameters)
    assert_equal_to(x_adv, twin)
    right = stands(net, x_adv, y)
    assert right.tolist() == twin_stands
    assert right.any()
    assert not right[:7].all()  # some right images broke and some did not, or this compares little


@pytest.mark.parametrize("norm", NORMS)
@bounded
@given(
    seed=st.integers(0, 2**32 - 1),
    loss=st.sampled_from(["ce", "kl", "cw"]),
    init=st.sampled_from(["gaussian", "uniform"]),
    eps=st.floats(0.005, 0.1),
    steps=st.integers(1, 5),
)
def test_the_worst_iterate_and_more_restarts_never_find_less(
    norm: Any, seed: int, loss: Any, init: Any, eps: float, steps: int
) -> None:
    x, _, _ = small_batch(16, seed=seed)
    net = undecided_net(x, seed % 7)
    y = predictions(net, x)
    noise = draws_of(x, 3, seed)
    radius = eps if norm == "linf" else 8 * eps
    last = PGD(eps=radius, step_size=0.6 * radius, num_steps=steps, norm=norm, loss=loss, init=init)
    by_last = stands(net, last(net, x, y, noise=noise[0]), y)
    by_worst = stands(net, replace(last, iterate="worst")(net, x, y, noise=noise[0]), y)
    by_restarts = stands(net, replace(last, restarts=3)(net, x, y, noise=noise), y)
    by_both = stands(net, replace(last, restarts=3, iterate="worst")(net, x, y, noise=noise), y)
    for weaker, stronger in (
        (by_last, by_worst), (by_last, by_restarts), (by_worst, by_both), (by_restarts, by_both)
    ):  # fmt: skip
        assert (weaker | ~stronger).all()  # what the weaker broke, the stronger broke


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "kl", "cw"])
def test_one_image_depends_on_no_other(norm: Any, loss: Any) -> None:
    x, _, _ = small_batch(6)
    net = undecided_net(x)
    y, noise = predictions(net, x), draws_of(x, 2)
    eps = 0.05 if norm == "linf" else 0.4
    attack = PGD(
        eps=eps, step_size=eps / 3, num_steps=4, norm=norm, loss=loss, init="uniform",
        restarts=2, iterate="worst",
    )  # fmt: skip
    together = attack(net, x, y, noise=noise)
    for i in range(len(x)):
        alone = attack(net, x[i : i + 1], y[i : i + 1], noise=noise[:, i : i + 1])
        assert_equal_to(alone[0], together[i])


def test_noise_drawn_is_the_noise_given() -> None:
    net = small_net(spread=3.0)
    x, y, _ = small_batch(4)
    attack = PGD(eps=0.1, step_size=0.03, num_steps=2, restarts=3, init="uniform")
    drawn = attack(net, x, y, generator=torch.Generator().manual_seed(3))
    assert torch.equal(attack(net, x, y, noise=draws_of(x, 3)), drawn)
    for wrong in (draws_of(x, 3)[0], draws_of(x, 2)):
        with pytest.raises(MorelError, match=r"pgd2x3_linf_0\.1: noise of shape .*: 3 restarts"):
            attack(net, x, y, noise=wrong)


# Passes. -----------------------------------------------------------------------------------------


class Counter(nn.Module):
    """Counts the images that pass forward and backward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forward_images: list[int] = []
        self.backward_images: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.forward_images.append(len(x))
        logits = self.net(x)
        if logits.requires_grad:
            logits.register_hook(lambda grad: self.backward_images.append(len(grad)))
        return logits


@pytest.mark.parametrize("iterate", ["last", "worst"])
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_passes_of_a_batch_that_does_not_break(iterate: Any, restarts: int, loss: Any) -> None:
    net = Counter(small_net())
    x, _, _ = small_batch(5)
    y = predictions(net.net, x)
    attack = PGD(
        eps=1e-6, step_size=1e-6, num_steps=7, loss=loss, restarts=restarts, iterate=iterate
    )
    attack(net, x, y)
    final = 0 if (restarts, iterate) == (1, "last") else 1
    assert net.forward_images == [5] * (restarts * (7 + final) + (loss == "kl"))
    assert net.backward_images == [5] * (7 * restarts)


def test_broken_images_are_passed_no_more() -> None:
    x, _, _ = small_batch(12)
    net = Counter(undecided_net(x))
    y = predictions(net.net, x)
    attack = PGD(eps=0.05, step_size=0.01, num_steps=6, init="none", iterate="worst")
    x_adv = attack(net, x, y)
    passed, left = net.forward_images, int(stands(net.net, x_adv, y).sum())
    # As many as the twin's iterates say: an image passes until its first wrong iterate has.
    parameters = {"eps": 0.05, "step_size": 0.01, "norm": "linf", "loss": "ce", "init": "none"}
    expected = [12]
    for steps in range(6):
        _, still = naive.pgd_search(
            net.net, x, y, [x], iterate="worst", num_steps=steps, **parameters
        )
        expected.append(sum(still))
    assert passed == expected
    assert len(set(expected)) > 3
    assert left > 0


def test_a_batch_of_wrong_images_passes_once() -> None:
    net = Counter(small_net(spread=3.0))
    x, _, _ = small_batch(5)
    y = (predictions(net.net, x) + 1) % 4
    attack = PGD(eps=0.05, step_size=0.01, num_steps=6, init="none", iterate="worst")
    assert torch.equal(attack(net, x, y), x)
    assert net.forward_images == [5]
