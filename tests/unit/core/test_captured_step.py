"""The bookkeeping around the captured step's graph; with CUDA, see tests/parity/test_on_cuda.py."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch

from benchmarks.captured_step import CapturedStep
from morel_core import PGD, MorelObjective, ObjectiveConfig, OptimizerConfig
from morel_core.models import WideResNetConfig, build_net
from morel_core.optim import make_optimizer
from morel_core.step import train_step


def without_cuda(monkeypatch, captured):
    """A graph that computes when it is replayed, into what its recording made, and not before."""

    class Graph:
        def replay(self):
            recording = captured._recording
            loss = captured._gradients(*recording.inputs)
            recording.loss.copy_(loss)
            for parameter, made in recording.grads:
                made.copy_(parameter.grad)
                parameter.grad = None

    @contextlib.contextmanager
    def graph(_graph, **_options):
        before = [(buffer, buffer.clone()) for buffer in captured.net.buffers()]
        yield
        for buffer, value in before:
            buffer.copy_(value)

    stream = SimpleNamespace(wait_stream=lambda _other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)


@pytest.mark.parametrize("accuracy", ["trades", "mart", "loat", "at"])
def test_it_trains_as_the_step_does(accuracy, monkeypatch):
    config = ObjectiveConfig(accuracy=accuracy)
    attack = PGD(eps=0.06, step_size=0.02, num_steps=2, loss=config.attack_loss)
    objective = MorelObjective(config)
    model = WideResNetConfig(depth=10, widen_factor=1, embed_dim=8)
    net = build_net(model, num_classes=4, shape=(3, 8, 8), seed=0).train()
    twin = copy.deepcopy(net)
    optimizer, other = (make_optimizer(OptimizerConfig(lr=0.05), each) for each in (net, twin))
    captured = CapturedStep(twin, objective, attack, other)
    without_cuda(monkeypatch, captured)
    for i in range(3):
        draws = torch.Generator().manual_seed(i)
        x, y = torch.rand(8, 3, 8, 8, generator=draws), torch.randint(4, (8,), generator=draws)
        noise = torch.randn(x.shape, generator=draws)
        terms, _ = train_step(
            net, objective, attack, optimizer, x, y, noise=noise, epoch=1, num_epochs=100
        )
        assert torch.equal(captured(x, y, noise), terms.total.detach())
    theirs = twin.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in net.state_dict().items())
