"""The training attack recorded as one CUDA graph, which is launched as a whole.

An attack makes hundreds of short kernels, each launched by the host on its own. Where the device
is the faster of the two, it waits for them: a graph is one launch, and while it runs the host
prepares the rest of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_WARM_UP = 3  # calls before the recording: compilation, choice of algorithms, workspaces


class CapturedAttack:
    """``attack``, replayed on CUDA; elsewhere it is called as it is.

    It is recorded at the first call and again whenever what a graph holds for good has changed: the
    shapes, where the network's parameters and buffers lie, how its encoder is run. An update in
    place, as optimisers and ``load_state_dict`` make it, is seen without that.

    Args:
        attack: called with net, x, y and ``noise``; the host must not have to wait for the device
            in it, as in `PGD` with one restart and its last iterate.
    """

    def __init__(self, attack: Callable[..., Tensor]) -> None:
        self.attack = attack
        self._recording: _Recording | None = None

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor, *, noise: Tensor) -> Tensor:
        """See `Attack`."""
        if not x.is_cuda:
            return self.attack(net, x, y, noise=noise)
        key = _key(net, x, y, noise)
        if self._recording is None or self._recording.key != key:
            self._recording = None  # frees its memory before the next one takes as much
            self._recording = _record(self.attack, net, (x, y, noise), key)
        return self._recording.replay(x, y, noise)


@dataclass(frozen=True, eq=False)
class _Recording:
    key: tuple[Any, ...]
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor

    def replay(self, *inputs: Tensor) -> Tensor:
        """The output for other inputs of the same shapes."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.output.clone()


def _key(net: nn.Module, *inputs: Tensor) -> tuple[Any, ...]:
    """What a graph holds for good."""
    tensors = [*net.parameters(), *net.buffers()]
    return (
        id(getattr(net, "encoder_passes", None)),
        *((tuple(given.shape), given.dtype) for given in inputs),
        *(tensor.data_ptr() for tensor in tensors),
    )


def _record(
    attack: Callable[..., Tensor],
    net: nn.Module,
    given: tuple[Tensor, Tensor, Tensor],
    key: tuple[Any, ...],
) -> _Recording:
    x, y, noise = inputs = tuple(values.detach().clone() for values in given)
    graph, output = record(lambda: attack(net, x, y, noise=noise), x.device)
    return _Recording(key, graph, inputs, output)


def record(
    call: Callable[[], Tensor], device: torch.device, undo: Callable[[], None] = lambda: None
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """``call`` as a graph, and the tensor into which the graph writes what it returns.

    Args:
        call: whose tensors stay where they are; the host must not have to wait for the device.
        device: a CUDA one.
        undo: takes back what some calls before the recording have changed.
    """
    beside = torch.cuda.Stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for _ in range(_WARM_UP):
            call()
    torch.cuda.current_stream(device).wait_stream(beside)
    undo()
    graph = torch.cuda.CUDAGraph()
    # Of this thread alone: others, which read files or watch the process group, may go on.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = call()
    return graph, output
