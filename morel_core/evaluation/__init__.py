"""Clean and robust accuracy: measured, recorded with how, and questioned."""

from morel_core.evaluation.measure import (
    ChunkOutcome,
    as_images,
    correct_predictions,
    evaluate,
    measure_chunk,
    outcome_of,
)
from morel_core.evaluation.outcome import CLEAN, EvaluationResult, Outcome
from morel_core.evaluation.provenance import model_hash, package_versions
from morel_core.evaluation.trust import Finding, examine, suspicious

__all__ = [
    "CLEAN",
    "ChunkOutcome",
    "EvaluationResult",
    "Finding",
    "Outcome",
    "as_images",
    "correct_predictions",
    "evaluate",
    "examine",
    "measure_chunk",
    "model_hash",
    "outcome_of",
    "package_versions",
    "suspicious",
]
