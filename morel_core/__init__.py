"""MOREL: adversarially robust training by multi-objective representation learning.

    net = MorelNet.wrap(model, head="fc")
    attack = PGD(eps=8/255, step_size=2/255, num_steps=10)
    objective = MorelObjective(ObjectiveConfig(accuracy="trades"))
    Trainer(ExperimentConfig(...)).fit()

Needs torch alone; knows nothing of Ray or MLflow.
"""

from morel_core.attacks import PGD
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
