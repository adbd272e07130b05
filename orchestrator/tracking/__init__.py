"""Recording: events, a durable journal, and one idempotent writer to MLflow."""

from orchestrator.tracking.events import (
    DatasetPayload,
    EpochPayload,
    Event,
    FinalPayload,
    ModelPayload,
    ProgressPayload,
    RegisterPayload,
    StartPayload,
    ViewPayload,
)
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.late import LateTracker
from orchestrator.tracking.mlflow_tracker import MlflowTracker
from orchestrator.tracking.parameters import all_params, all_tags, own_params, own_tags
from orchestrator.tracking.recorder import Recorder, Rejection, Replay, replay
from orchestrator.tracking.tracker import MemoryTracker, NullTracker, Tracker

__all__ = [
    "DatasetPayload",
    "EpochPayload",
    "Event",
    "FinalPayload",
    "Journal",
    "LateTracker",
    "MemoryTracker",
    "MlflowTracker",
    "ModelPayload",
    "NullTracker",
    "ProgressPayload",
    "Recorder",
    "RegisterPayload",
    "Rejection",
    "Replay",
    "StartPayload",
    "Tracker",
    "ViewPayload",
    "all_params",
    "all_tags",
    "own_params",
    "own_tags",
    "replay",
]
