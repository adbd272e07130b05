"""What is evaluated: a checkpoint folder, a recorded run, a plain model, a module from code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from torch import Tensor, nn

from morel_core.checkpoint import MANIFEST, load_network, load_progress, load_pt, load_tensors
from morel_core.config import ModelConfig
from morel_core.errors import MorelError
from morel_core.export import Normalised
from morel_core.models import MODELS, ExternalConfig, build_net
from orchestrator import storage
from orchestrator.compare import RunRecord, load_runs
from orchestrator.config import RunConfig, names_first, put, tracking_uri, with_overrides
from orchestrator.settings.building import build
from orchestrator.settings.jobs import check_absolute
from orchestrator.tracking.events import Status

LIBRARIES = ("torchvision/", "timm/")
SHOWN_KEYS = 3  # of a state dict that does not fit

Shape = tuple[int, int, int]
Loader = Callable[[Shape, int], nn.Module]
"""``(shape of an image, number of classes) -> network``: images in [0, 1] to logits, eval mode."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A network to evaluate, and the run it belongs to, if it was named by one."""

    name: str
    """As a person calls it."""
    config: RunConfig
    load: Loader
    recorded: RunConfig | None = None
    """As it was trained: without what the command line changes."""
    run_id: str | None = None
    stop_reason: str = ""
    status: Status = "FINISHED"
    """How that run ended: evaluating it again does not change these two."""
    warnings: str = ""
    """The tag ``morel.warnings`` of that run: earlier evaluations' findings."""
    metrics: Mapping[str, float] = field(default_factory=lambda: dict[str, float]())
    """Of that run."""
    commit: str = ""
    """That trained it, if that is known."""

    @property
    def owner(self) -> str | None:
        """The name whose folder and journal hold the run: the search's for a trial."""
        return self.run_id.partition("/")[0] if self.run_id else None

    @property
    def folder(self) -> str:
        """Where its evaluations are kept: a local path or a URI."""
        owner = f"/{self.owner}" if self.owner else ""
        return f"{self.config.storage_path}{owner}/evaluations"

    @property
    def lease(self) -> str:
        """Where whoever evaluates it says so: others may evaluate the owner's other trials."""
        name = re.sub(r"[^\w.-]", "_", self.run_id or self.name)
        return f"{self.folder}/drivers/{name}"


def find_target(
    name: str, tracking: RunConfig, overrides: Mapping[str, Any], weights: str | None = None
) -> Target:
    """A checkpoint folder, a recorded run by its name or id, or a model by name with its weights.

    Args:
        name: path of a folder with a manifest, our run id, MLflow's run id, or a model's name, as
            in ``torchvision/resnet18``.
        tracking: whose MLflow is asked for runs; where other targets' evaluations are stored.
        overrides: for the target's config, as ``{"evaluation.attack.eps": 0.1}``.
        weights: file of a plain model's state dict.

    Raises:
        MorelError: nothing of that name, or it has no checkpoint.
    """
    if weights is not None or name.startswith(LIBRARIES):
        return _plain_model(name, overrides, weights)
    folder = Path(name).expanduser()
    if (folder / MANIFEST).is_file():
        check_absolute("checkpoint folder", name)
        here = {"storage_path": tracking.storage_path, **overrides}
        return _checkpoint(name, folder, here)
    run = find_run(name, tracking)
    location = run.tags.get("morel.checkpoint")
    if not location:
        raise MorelError(f"run {name!r} has no checkpoint: it ended before its first one")
    ended = run.status in get_args(Status)
    return replace(
        _checkpoint(run.run_id, storage.local_copy(location), overrides),
        run_id=run.run_id,
        stop_reason=run.tags.get("morel.stop_reason", ""),
        status=cast(Status, run.status) if ended else "FINISHED",
        warnings=run.tags.get("morel.warnings", ""),
        metrics=run.metrics,
        commit=run.tags.get("morel.commit", ""),
    )


def find_run(name: str, tracking: RunConfig) -> RunRecord:
    """The newest recorded run of that name or id; of a search, its winner."""
    runs = load_runs(tracking_uri(tracking), tracking.tracking.experiment)
    for run in sorted(runs, key=lambda run: -run.started):
        if name in (run.run_id, run.mlflow_id, run.name):
            winner = run.tags.get("morel.winner_run")
            return find_run(winner, tracking) if winner else run
    known = ", ".join(run.run_id for run in runs[:5])
    hint = "; a model's name needs --weights FILE" if name in MODELS else ""
    raise MorelError(
        f"{name!r} is neither a checkpoint folder nor a run of experiment "
        f"{tracking.tracking.experiment!r}; runs there: {known or 'none'}{hint}"
    )


def module_target(name: str, module: nn.Module, config: RunConfig) -> Target:
    """A module from code that maps images in [0, 1] to logits; its weights are used as they are."""
    return Target(name=name, config=config, load=lambda _shape, _classes: module)


# --- checkpoints ---------------------------------------------------------------------------------


def _checkpoint(name: str, folder: Path, overrides: Mapping[str, Any]) -> Target:
    recorded = build(RunConfig, load_progress(folder)["config"])
    config = with_overrides(recorded, overrides)
    load = partial(_best, folder, config.model)
    return Target(name=name, config=config, load=load, recorded=recorded)


def _best(folder: Path, model: ModelConfig, shape: Shape, num_classes: int) -> nn.Module:
    """The best network of a checkpoint."""
    net = build_net(model, num_classes=num_classes, shape=shape, seed=0)
    return _fitted(net, load_network(folder), str(folder), model.name).eval()


# --- plain models --------------------------------------------------------------------------------


def _plain_model(name: str, overrides: Mapping[str, Any], weights: str | None) -> Target:
    MODELS.get(name)  # a name that is none is an error here
    mapping: dict[str, Any] = {"model": {"name": name}}
    for key in names_first(overrides):
        put(mapping, key, overrides[key])
    config = build(RunConfig, mapping, source="the command line")
    pretrained = isinstance(config.model, ExternalConfig) and config.model.pretrained
    if weights is None:
        if not pretrained:
            raise MorelError(
                f"{name} alone has random weights: give --weights FILE (a state dict, .pt or "
                ".safetensors), or model.pretrained=true for the library's own"
            )
        return Target(name=name, config=config, load=partial(_plain, config.model, None))
    check_absolute("--weights", weights)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise MorelError(f"--weights {weights}: there is no such file")
    return Target(
        name=f"{name} ({path.name})", config=config, load=partial(_plain, config.model, path)
    )


def _plain(model: ModelConfig, path: Path | None, shape: Shape, num_classes: int) -> nn.Module:
    """The plain architecture with the weights of ``path``, behind its normalisation."""
    net = build_net(model, num_classes=num_classes, shape=shape, seed=0)
    plain = net.unwrap()
    if path is not None:
        _fitted(plain, _state_dict(path), str(path), model.name)
    if net.mean is not None and net.std is not None:
        plain = Normalised(plain, net.mean, net.std)
    return plain.eval()


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or .pt file, of which nothing is executed.

    The dict may lie under ``state_dict``, and its names may carry DataParallel's ``module.``.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if path.suffix == ".pt2":
        raise MorelError(f"--weights {path}: a program, not a state dict: give model.safetensors")
    try:
        content = load_pt(path)
    except MorelError as error:
        raise MorelError(f"--weights {error}: save model.state_dict()") from None
    if isinstance(content, Mapping):
        content = cast(Mapping[str, Any], content).get("state_dict", content)
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in cast(Mapping[str, Any], content).values()
    ):
        raise MorelError(f"--weights {path}: must be a state dict, tensors by name")
    state = cast(dict[str, Tensor], dict(content))
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _fitted(net: nn.Module, state: Mapping[str, Tensor], source: str, model: str) -> nn.Module:
    """``net`` with the weights ``state``; raises `MorelError` saying what does not fit."""
    own = net.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    other = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    parts = [
        f"{what} {', '.join(keys[:SHOWN_KEYS])}"
        + (f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")
        for what, keys in (("lacks", missing), ("has unknown", unknown), ("has another", other))
        if keys
    ]
    if parts:
        raise MorelError(f"{source} does not fit model.name = {model!r}: it {'; it '.join(parts)}")
    net.load_state_dict(state)
    return net
