"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    config: RunConfig
    epochs: int
    seconds: float
    stop_reason: str
    metrics: dict[str, float]
    """As recorded in MLflow: best epoch on the held-out split, and the test set."""
    checkpoint: str
    diverged: bool
    not_measured: str
    """Epochs whose asynchronous evaluation failed, and why; empty if none did."""
    recorded: bool
    """False if MLflow lacks something that waits in the journal."""
