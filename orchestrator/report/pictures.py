"""What the winner sees: attacked images beside their originals, and its features in the plane.

The only part of the report that needs the network, the data and torch.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morel_core.errors import MorelError
from orchestrator.config import RunConfig, with_overrides
from orchestrator.report.data import Recorded, Trial
from orchestrator.settings.building import build
from orchestrator.tracking.connection import open_client

if TYPE_CHECKING:
    import torch

    from morel_core.models import MorelNet

IMAGES = 6
LOOKED_THROUGH = 256
"""Test images among which broken and held ones are looked for."""
EMBEDDED = 250
LARGEST = 96
"""Pixels of a side beyond which an image is made smaller."""


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """One image; pictures are data URIs."""

    original: str
    adversarial: str
    difference: str
    label: int
    before: int
    """The class that it is given …"""
    after: int
    """… and under attack."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Features in the plane."""

    title: str
    points: list[tuple[float, float]]
    explained: float
    """Share of the variance that the two components have, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """All of it."""

    attack: str
    magnified: float
    images: list[Attacked]
    planes: list[Plane]
    labels: list[int]
    source: str
    """Where the network came from."""


def make(recorded: Recorded, winner: Trial) -> Pictures:
    """Attack test images and embed held-out ones.

    Raises:
        MorelError: neither the checkpoint nor the exported model, or not the data, can be had here.
    """
    import torch

    from morel_core.attacks import PGD
    from morel_core.data import load_data
    from morel_core.data.base import to_unit
    from morel_core.models import build_net
    from morel_core.seeding import derive_seed

    config = build(RunConfig, recorded.config, source=f"config.yaml of {winner.run.run_id}")
    data = load_data(config.data)
    net, source = _network(recorded, winner, config, data.shape, data.num_classes)
    attack = PGD.from_config(config.evaluation.attack, "ce")
    several = torch.arange(min(LOOKED_THROUGH, len(data.test)))
    x, y = to_unit(data.test.fetch(several)), data.test.labels[several]
    moved = attack(net, x, y, generator=torch.Generator().manual_seed(config.evaluation.seed))
    magnified = 0.5 / attack.eps
    images = _attacked(net, x, y, moved, magnified)

    seed = derive_seed(config.seed, "weights")
    fresh = build_net(
        config.model, num_classes=data.num_classes, shape=data.shape, seed=seed
    ).eval()
    some = torch.arange(min(EMBEDDED, len(data.holdout)))
    seen, labels = to_unit(data.holdout.fetch(some)), data.holdout.labels[some]
    return Pictures(
        attack=attack.name,
        magnified=magnified,
        images=images,
        planes=[
            _plane("before training, the same seed", fresh, seen),
            _plane("after training", net, seen),
        ],
        labels=labels.tolist(),
        source=source,
    )


# --- the network ----------------------------------------------------------------------------------


def _network(
    recorded: Recorded, winner: Trial, config: RunConfig, shape: tuple[int, int, int], classes: int
) -> tuple[MorelNet, str]:
    """The winner's best network: from its checkpoint, else from the model that MLflow has."""
    from morel_core.models import MorelNet
    from orchestrator.evaluation.targets import find_target

    here = with_overrides(
        config, {"tracking.uri": recorded.uri, "tracking.experiment": recorded.experiment}
    )
    try:
        net = find_target(winner.run.run_id, here, {}).load(shape, classes)
        assert isinstance(net, MorelNet)
        return net, "its checkpoint"
    except (MorelError, OSError) as error:
        reason = str(error)
    state = _exported(recorded, winner)
    if state is None:
        raise MorelError(f"{reason}; MLflow has no exported model of it either")
    return _from_plain(config, state, shape, classes), "the exported model in MLflow"


def _exported(recorded: Recorded, winner: Trial) -> dict[str, Any] | None:
    """The state dict of the model that was logged with the run."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    from morel_core.checkpoint import load_tensors

    client = open_client(recorded.uri, create=False)
    try:
        outputs = client.get_run(winner.run.mlflow_id).outputs
        models = [output.model_id for output in outputs.model_outputs] if outputs else []
        for model in reversed(models):
            location = client.get_logged_model(model).artifact_location
            with tempfile.TemporaryDirectory(prefix="morel-report-") as folder:
                uri = f"{location}/model.safetensors"
                file = download_artifacts(artifact_uri=uri, dst_path=folder)
                return dict(load_tensors(Path(file)))
    except (MlflowException, OSError):
        return None
    return None


def _from_plain(
    config: RunConfig, state: dict[str, Any], shape: tuple[int, int, int], classes: int
) -> MorelNet:
    """The network with the weights of its plain architecture."""
    from morel_core.models import ExternalConfig, MorelNet, build_net

    model = config.model
    plain = build_net(model, num_classes=classes, shape=shape, seed=0).unwrap()
    try:
        plain.load_state_dict(state)
    except RuntimeError as error:
        raise MorelError(f"the exported model does not fit its config: {error}") from None
    head = model.head if isinstance(model, ExternalConfig) else None
    return MorelNet.wrap(plain, head=head, mean=model.mean, std=model.std).eval()


# --- images ---------------------------------------------------------------------------------------


def _attacked(
    net: MorelNet, x: torch.Tensor, y: torch.Tensor, moved: torch.Tensor, magnified: float
) -> list[Attacked]:
    """Half of them broken by the attack, half not, as far as there are such; all right when clean.

    The first ones of the split, not the prettiest.
    """
    import torch

    with torch.no_grad():
        before, after = net(x).argmax(1), net(moved).argmax(1)
    right = before == y
    broken = (right & (after != y)).nonzero().flatten().tolist()
    held = (right & (after == y)).nonzero().flatten().tolist()
    first = min(IMAGES - min(len(held), IMAGES // 2), len(broken))
    chosen = [*broken[:first], *held[: IMAGES - first]]
    return [
        Attacked(
            original=_png(x[i]),
            adversarial=_png(moved[i]),
            difference=_png((0.5 + magnified * (moved[i] - x[i])).clamp(0, 1)),
            label=int(y[i]),
            before=int(before[i]),
            after=int(after[i]),
        )
        for i in chosen
    ]


def _png(image: torch.Tensor) -> str:
    """An image (C, H, W) in [0, 1] as a data URI; one or three channels."""
    from PIL import Image

    pixels = (image * 255).round().byte().cpu()
    if pixels.shape[0] == 1:
        picture = Image.fromarray(pixels[0].numpy())
    else:
        picture = Image.fromarray(pixels[:3].permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((LARGEST, LARGEST))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


# --- the embedding --------------------------------------------------------------------------------


def _plane(title: str, net: MorelNet, x: torch.Tensor) -> Plane:
    """The first two principal components of the features g(x)."""
    import torch

    with torch.no_grad():
        features = net.features(x).double()
    centred = features - features.mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    flat = centred @ directions[:2].T
    if flat.shape[1] < 2:
        flat = torch.cat([flat, torch.zeros(len(flat), 1, dtype=flat.dtype)], dim=1)
    total = float(values.square().sum())
    share = float(values[:2].square().sum()) / total if total else 0.0
    points: Sequence[Sequence[float]] = flat.tolist()
    return Plane(title=title, points=[(p[0], p[1]) for p in points], explained=share)
