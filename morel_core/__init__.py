"""MOREL: adversarially robust training by multi-objective representation learning.

    net = MorelNet.wrap(model, head="fc")
    attack = PGD(eps=8/255, step_size=2/255, num_steps=10)
    objective = MorelObjective(ObjectiveConfig(accuracy="trades"))
    Trainer(ExperimentConfig(...)).fit()

Needs torch alone; knows nothing of Ray or MLflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from morel_core.config import (
    AttackConfig,
    AwpConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RungConfig,
    TrainingConfig,
)
from morel_core.errors import ConfigError, MorelError

if TYPE_CHECKING:
    from morel_core.attacks import PGD
    from morel_core.evaluation import EvaluationResult, evaluate
    from morel_core.losses import MorelObjective, Terms
    from morel_core.models import MorelNet
    from morel_core.trainer import Trainer

__all__ = [
    "PGD",
    "AttackConfig",
    "AwpConfig",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "EvaluationResult",
    "ExperimentConfig",
    "ModelConfig",
    "MorelError",
    "MorelNet",
    "MorelObjective",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RungConfig",
    "Terms",
    "Trainer",
    "TrainingConfig",
    "evaluate",
]

# What needs torch, which takes seconds to import, is imported when it is asked for (PEP 562).
_WITH_TORCH = {
    "PGD": "attacks",
    "EvaluationResult": "evaluation",
    "MorelNet": "models",
    "MorelObjective": "losses",
    "Terms": "losses",
    "Trainer": "trainer",
    "evaluate": "evaluation",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _WITH_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)

    def __dir__() -> list[str]:
        return __all__
