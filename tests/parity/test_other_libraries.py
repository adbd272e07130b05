"""PGD makes the iterates of torchattacks and of ART; ``vectors/`` tells how theirs were made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from vectors.make_pgd_iterates import BALLS, CASES, FILE, STEPS, network

from morel_core import PGD


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(FILE)


@pytest.mark.parametrize(("library", "norm", "images", "start"), CASES)
def test_the_iterates_are_theirs(
    recorded: dict[str, Tensor], library: str, norm: Any, images: str, start: str
) -> None:
    net = network()
    net.load_state_dict({k[4:]: v for k, v in recorded.items() if k.startswith("net.")})
    x, y = recorded[f"x.{images}"], recorded["y"]
    theirs = recorded[f"{library}.{norm}.{images}.{start}"]
    ours: list[Tensor] = []

    def watch(_module: nn.Module, inputs: Any) -> None:
        ours.append(inputs[0].detach().clone())

    net[0].register_forward_pre_hook(watch)
    eps, step_size = BALLS[norm]
    # The start is handed over as the noise that leads to it.
    attack = PGD(
        eps=eps, step_size=step_size, num_steps=STEPS, norm=norm, init="gaussian", init_scale=1.0
    )
    x_adv = attack(net, x, y, noise=theirs[0] - x)
    assert len(theirs) == STEPS + 1
    assert (theirs[0] - x).any() == (start == "random")
    assert (torch.stack([*ours, x_adv]) - theirs).abs().max() < 1e-6
    # It moves as far as the ball allows, so that a projection left out would show.
    moved = theirs[-1] - x
    reach = moved.abs().amax() if norm == "linf" else moved.flatten(1).norm(dim=1).amax()
    assert 0.99 * eps < reach < (1 + 1e-6) * eps
