"""A campaign file's content."""

from typing import Any


def content(**keys: Any) -> dict[str, Any]:
    """Two methods, tuned by two trials each; ``keys`` replace or, where None, remove."""
    whole: dict[str, Any] = {
        "recipe": "digits",
        "methods": {"plain": {"objective.morel": False}, "morel": {"objective.morel": True}},
        "pairs": {"morel": "plain"},
        "seeds": [1, 2, 3],
        "primary": {"metric": "robust_accuracy", "attack": "pgd20"},
        "tuning": {
            "num_trials": 2,
            "searcher": {"name": "random"},
            "scheduler": {"name": "none"},
            "parameters": {
                "optimizer.lr": {"type": "float", "low": 0.01, "high": 0.2},
                "objective.alpha": {
                    "type": "float",
                    "low": 1e-6,
                    "high": 1.0,
                    "log": True,
                    "when": {"objective.morel": True},
                },
            },
        },
    }
    return {key: value for key, value in (whole | keys).items() if value is not None}
