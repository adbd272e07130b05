"""A candidate for `morel_core.capture`: attack, losses and backward pass as one CUDA graph.

Not a part of the method's code, since it was not measured on a GPU yet: `benchmarks.step
--capture-step` does that. It stands for one process, a constant epoch and no perturbed weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from morel_core import MorelNet, MorelObjective
from morel_core.capture import record
from morel_core.optim import Optimizer, update_if_finite


class CapturedStep:
    """`morel_core.step.train_step` in which only the update is launched kernel by kernel.

    Args:
        net: in train mode, and where its parameters and buffers stay.
        objective, attack, optimizer: as of `train_step`.
    """

    def __init__(
        self,
        net: MorelNet,
        objective: MorelObjective,
        attack: Callable[..., Tensor],
        optimizer: Optimizer,
    ) -> None:
        self.net, self.objective, self.attack, self.optimizer = net, objective, attack, optimizer
        self._recording: _Recording | None = None

    def __call__(self, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """The loss of one step, like those of other steps of the same shapes."""
        if self._recording is None:
            self._recording = self._record(x, y, noise)
        for held, given in zip(self._recording.inputs, (x, y, noise), strict=True):
            held.copy_(given)
        self._recording.graph.replay()
        for parameter, grad in self._recording.grads:
            parameter.grad = grad
        loss = self._recording.loss.clone()
        update_if_finite(self.optimizer, loss)
        return loss

    def _gradients(self, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        x_adv = self.attack(self.net, x, y, noise=noise)
        terms = self.objective(self.net, x, x_adv, y, epoch=1, num_epochs=100)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        return terms.total.detach()

    def _record(self, *given: Tensor) -> _Recording:
        inputs = tuple(values.clone() for values in given)
        buffers = [(buffer, buffer.clone()) for buffer in self.net.buffers()]

        def undo() -> None:
            for buffer, before in buffers:  # statistics
                buffer.copy_(before)
            self.optimizer.zero_grad(set_to_none=True)  # so that the graph's own are made in it

        graph, loss = record(lambda: self._gradients(*inputs), inputs[0].device, undo)
        grads = [(p, p.grad) for p in self.net.parameters() if p.grad is not None]
        return _Recording(graph, inputs, loss, grads)


@dataclass(frozen=True, eq=False)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    loss: Tensor
    grads: list[tuple[torch.nn.Parameter, Tensor]]
