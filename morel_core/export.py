"""The plain architecture, as files that open without this package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from morel_core.checkpoint import save_tensors
from morel_core.models import MorelNet


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
    model = net.unwrap().cpu().eval()
    save_tensors(folder / "model.safetensors", model.state_dict())
    if net.mean is not None and net.std is not None:
        model = Normalised(model, net.mean.cpu(), net.std.cpu()).eval()
    # Two images: export would take a batch of one for a constant.
    example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2")
