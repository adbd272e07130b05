"""The plain architecture, as files that open without this package."""

from __future__ import annotations

from pathlib import Path

import torch

from morel_core.checkpoint import save_tensors
from morel_core.models import MorelNet


def export_model(net: MorelNet, shape: tuple[int, int, int], folder: Path) -> None:
    """Write ``model.safetensors`` and ``model.pt2`` (an ExportedProgram, any batch size).

    Args:
        net: the embedder is left out; the files hold the original architecture.
        shape: (C, H, W) of one image in [0, 1].
        folder: exists.
    """
    model = net.unwrap().cpu().eval()
    save_tensors(folder / "model.safetensors", model.state_dict())
    # Two images: export would take a batch of one for a constant.
    example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2")
