"""Trials that are trained already: of the same settings, seed, data, code and number of workers.

Where the checkpoint of a trial lies is noted when it ends, for all searches of a storage path. A
new trial that finds a note takes the checkpoint over and reports its history again; one that had
been stopped early is trained on from there. Schedulers, searcher and MLflow see an ordinary trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from morel_core import Trainer
from morel_core.checkpoint import MANIFEST, verify
from morel_core.config import DataConfig
from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.config import RunConfig, run_key
from orchestrator.training.staging import same_images


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A trial of before."""

    run_id: str
    checkpoint: str
    """Path or URI; its history, its last and its best network are what is taken over."""
    epochs: int

    @contextmanager
    def folder(self) -> Generator[Path]:
        """The checkpoint as a local folder, every file checked.

        Raises:
            MorelError, OSError: it is gone or damaged.
        """
        from ray.train import Checkpoint

        with Checkpoint(self.checkpoint).as_directory() as folder:
            verify(Path(folder))
            yield Path(folder)


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Notes on trials, a file each in ``folder``."""

    folder: str
    code: str
    """`orchestrator.provenance.fingerprint.code_hash`."""
    fingerprint: str
    """Of the data set that ``data`` loads."""
    data: DataConfig

    def find(self, run: RunConfig) -> Twin | None:
        """The trial that was trained as ``run`` is to be; None if there is none, or half a note."""
        place = self._place(run)
        text = storage.read_text(place) if place else None
        try:
            return Twin(**json.loads(text)) if text else None
        except (ValueError, TypeError):
            return None

    def note(self, run: RunConfig, twin: Twin) -> None:
        """Remember a trial that ended; of two, the one that was trained for longer, or later."""
        place, known = self._place(run), self.find(run)
        if place and (known is None or twin.epochs >= known.epochs):
            storage.write(place, json.dumps(asdict(twin), indent=2).encode())

    def verified(self, run: RunConfig, checkpoint: str, how: Any) -> str | None:
        """The file of the verification of a checkpoint's best network; None if that is gone.

        Args:
            run: it was trained by.
            checkpoint: path or URI.
            how: plain values that decide the numbers, beside network, data and code.
        """
        manifest = storage.read_text(f"{checkpoint}/{MANIFEST}")
        if manifest is None or not same_images(run.data, self.data):
            return None
        network = json.loads(manifest)["sha256"]["best.safetensors"]
        return f"{self.folder}/verified/{_digest(network, self.fingerprint, self.code, how)}.json"

    def _place(self, run: RunConfig) -> str | None:
        """Under what decides the numbers; with BatchNorm the number of workers does, too."""
        if not same_images(run.data, self.data):
            return None  # of other images than those whose hash is known
        rest = _digest(self.fingerprint, run.scaling.num_workers)
        return f"{self.folder}/{run_key(run)}-{self.code}-{rest[:8]}.json"


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def whole(twin: Twin | None) -> Twin | None:
    """``twin`` if its checkpoint is there and whole, else None: then the trial is trained."""
    if twin is None:
        return None
    try:
        with twin.folder():
            return twin
    except (MorelError, OSError):
        return None


def take_over(trainer: Trainer, twin: Twin | None) -> list[dict[str, float]]:
    """Put ``trainer`` where a `whole` twin ended; returns the epochs to report again."""
    if twin is None:
        return []
    with twin.folder() as folder:
        trainer.load(folder)
    return trainer.history
