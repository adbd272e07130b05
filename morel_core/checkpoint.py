"""Checkpoints: plain files, a manifest with checksums written last, nothing unpickled.

A folder holds ``last.safetensors`` and ``best.safetensors`` (network states; with an average of
the weights ``averaged.safetensors`` too), ``optimizer.pt``
(tensors and numbers, read with ``weights_only=True``), ``progress.json`` (epoch, history) and
``manifest.json``. Without a manifest that fits, there is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from morel_core.errors import MorelError

FORMAT = 1
MANIFEST = "manifest.json"

KIND = (
    ("objective", "morel", True),
    ("optimizer", "name", "sgd"),
    ("optimizer", "no_decay_on_norm_and_bias", False),
    ("training", "ema_decay", None),
    ("training", "swa_start_epoch", None),
)
"""Settings that say what a checkpoint's tensors are; with what older ones, without them, had."""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, content: str) -> None:
    """Write beside, flush to disk, rename: the file is there whole or not at all."""
    beside = path.with_name(path.name + ".part")
    with beside.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def save_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """A state dict as safetensors; shared storage is written once for each name."""
    from safetensors.torch import save_file  # here, so that training alone needs torch alone

    save_file({name: value.detach().cpu().clone() for name, value in state.items()}, path)


def save_checkpoint(
    folder: Path,
    *,
    networks: Mapping[str, Mapping[str, Tensor]],
    optimizer: dict[str, Any],
    progress: Mapping[str, Any],
) -> None:
    """Write a checkpoint into ``folder``; it exists once its manifest does.

    Args:
        folder: made if missing.
        networks: name → state dict, each a ``<name>.safetensors``.
        optimizer: the optimiser's ``state_dict``.
        progress: JSON values: epoch, history, config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in networks.items():
        save_tensors(folder / f"{name}.safetensors", state)
    torch.save(optimizer, folder / "optimizer.pt")
    (folder / "progress.json").write_text(json.dumps(progress))
    files = [*(f"{name}.safetensors" for name in networks), "optimizer.pt", "progress.json"]
    manifest = {"format": FORMAT, "sha256": {name: sha256(folder / name) for name in files}}
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=2))


def verify(folder: Path, *needed: str) -> None:
    """Check every file against the manifest, which must list those ``needed``.

    Raises `MorelError` naming what is wrong.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise MorelError(f"{folder}: no {MANIFEST}, so no finished checkpoint") from None
    except ValueError as error:
        raise MorelError(f"{folder / MANIFEST}: not JSON: {error}") from None
    content = cast(dict[str, Any], manifest) if isinstance(manifest, dict) else {}
    if content.get("format") != FORMAT:
        raise MorelError(f"{folder}: format {content.get('format')!r}, this version reads {FORMAT}")
    checksums = content.get("sha256")
    listed = cast(dict[str, str], checksums) if isinstance(checksums, dict) else {}
    for name in (*listed, *needed):
        path = folder / name
        inside = Path(name).name == name and path.is_file()
        if name not in listed or not inside or sha256(path) != listed[name]:
            raise MorelError(f"{path}: missing, truncated or altered: its checksum does not fit")


def load_network(folder: Path, name: str = "best") -> dict[str, Tensor]:
    """The state dict saved as ``name`` ("last", "best", "averaged") in a verified checkpoint."""
    verify(folder, f"{name}.safetensors")
    return load_tensors(folder / f"{name}.safetensors")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; raises `MorelError` if it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise MorelError(f"{path}: not a safetensors file: {error}") from None


def load_progress(folder: Path) -> dict[str, Any]:
    """The JSON part of a verified checkpoint."""
    verify(folder, "progress.json")
    path = folder / "progress.json"
    try:
        progress = json.loads(path.read_text())
    except ValueError as error:
        raise MorelError(f"{path}: not JSON: {error}") from None
    if not isinstance(progress, dict):
        raise MorelError(f"{path}: not a JSON object")
    return cast(dict[str, Any], progress)


def check_kind(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `MorelError` if tensors saved under one config would mean others under another.

    Of ``training.ema_decay`` it matters whether there is one: its value may change.

    Args:
        folder: for the message.
        saved: plain config of the checkpoint.
        wanted: plain config of the run that goes on from it.
    """
    for section, key, default in KIND:
        was, now = saved[section].get(key, default), wanted[section][key]
        if was != now and (key != "ema_decay" or None in (was, now)):
            raise MorelError(f"{folder}: was trained with {section}.{key} = {was!r}, not {now!r}")


def load_optimizer(folder: Path) -> dict[str, Any]:
    """The optimiser's state of a verified checkpoint; nothing in the file is executed."""
    verify(folder, "optimizer.pt")
    return load_pt(folder / "optimizer.pt")


def load_pt(path: Path) -> Any:
    """What `torch.save` wrote, of tensors and plain values alone: nothing in it is executed.

    Raises:
        MorelError: it holds anything else, or is no such file.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch has no common type for what it refuses to unpickle
        kind = type(error).__name__
        raise MorelError(f"{path}: holds anything but tensors and numbers ({kind})") from None
