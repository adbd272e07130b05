"""`capture_attack` without CUDA; with it, see tests/parity/test_on_cuda.py."""

from __future__ import annotations

import torch

from morel_core import PGD
from morel_core.capture import CapturedAttack
from morel_core.models import DigitsCnn, DigitsCnnConfig, MorelNet


def test_on_a_cpu_it_is_the_attack():
    torch.manual_seed(0)
    net = MorelNet.wrap(DigitsCnn(DigitsCnnConfig(width=4), 4, 1)).train()
    x, y, noise = torch.rand(6, 1, 8, 8), torch.arange(6) % 4, torch.randn(6, 1, 8, 8)
    attack = PGD(eps=0.1, step_size=0.03, num_steps=3, loss="kl")
    captured = CapturedAttack(attack)
    expected = attack(net, x, y, noise=noise)
    assert torch.equal(captured(net, x, y, noise=noise), expected)
    assert not torch.equal(expected, x)
