"""The plain architecture, as files that open without this package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from morel_core.checkpoint import save_tensors
from morel_core.models import MorelNet

SAFETENSORS, PROGRAM, ONNX = "model.safetensors", "model.pt2", "model.onnx"


class Normalised(nn.Module):
    """A plain classifier behind the normalisation that its `MorelNet` did: images in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)


class Program(nn.Module):
    """An exported program as a module that can be attacked; it knows no mode.

    Args:
        path: of a file that `torch.export.save` wrote.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        # In a list: a program refuses the change of mode that reaches a submodule.
        self._program = [torch.export.load(path).module()]

    def forward(self, x: Tensor) -> Tensor:
        return self._program[0](x)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the program, so that its weights are told apart."""
        return self._program[0].named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """Those of the program."""
        return self._program[0].named_buffers(*args, **kwargs)


def plain_classifier(net: MorelNet) -> nn.Module:
    """The original architecture on the CPU in eval mode, (B, C, H, W) in [0, 1] → logits (B, K).

    Its normalisation is inside where the net normalises; the embedder is left out.
    """
    model = net.unwrap().cpu().eval()
    if net.mean is not None and net.std is not None:
        model = Normalised(model, net.mean.cpu(), net.std.cpu()).eval()
    return model


def example_images(shape: tuple[int, int, int]) -> Tensor:
    """Two images: exporters would take a batch of one for a constant."""
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def export_model(net: MorelNet, shape: tuple[int, int, int], folder: Path) -> None:
    """Write ``model.safetensors`` and ``model.pt2``; the embedder is left out of both.

    ``model.safetensors`` is the state dict of the original architecture: it loads into a plain
    model, which has to be given ``(x - mean) / std`` if the net normalises. ``model.pt2`` is an
    ExportedProgram for any batch size that takes images in [0, 1] and gives ``net(x)``, with the
    normalisation inside.

    Args:
        net: trained; left as it is.
        shape: (C, H, W) of one image in [0, 1].
        folder: exists.
    """
    save_tensors(folder / SAFETENSORS, net.unwrap().cpu().state_dict())
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        plain_classifier(net), (example_images(shape),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, folder / PROGRAM)


def export_onnx(net: MorelNet, shape: tuple[int, int, int], folder: Path) -> None:
    """Write ``model.onnx``, of ``images`` in [0, 1] to ``logits``, for any batch size.

    Args:
        net, shape, folder: as for `export_model`.

    Raises:
        ImportError: ``onnx`` or ``onnxscript`` is not installed.
    """
    torch.onnx.export(
        plain_classifier(net),
        (example_images(shape),),
        str(folder / ONNX),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
