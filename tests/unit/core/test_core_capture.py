"""`capture_attack` without CUDA; with it, see tests/parity/test_on_cuda.py."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import torch

from morel_core import PGD
from morel_core.capture import CapturedAttack, record
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


def test_what_is_recorded_was_called_before_and_that_is_taken_back(monkeypatch):
    log = []
    stream = SimpleNamespace(wait_stream=lambda _other: log.append("wait"))

    @contextlib.contextmanager
    def recording(_graph, *, capture_error_mode):
        assert capture_error_mode == "thread_local"
        log.append("record")
        yield
        log.append("recorded")

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(torch.cuda, "graph", recording)

    def call():
        log.append("call")
        return torch.tensor(float(log.count("call")))

    made = record(call, torch.device("cpu"), lambda: log.append("undo"))
    assert made == ("graph", torch.tensor(4.0))
    calls = ["call"] * 3
    assert log == ["wait", *calls, "wait", "undo", "record", "call", "recorded"]
