"""What a training run is made of: frozen dataclasses that check themselves.

Every class raises `ConfigError` (a ValueError) that names the key, the value and what is allowed.
Data sets and models with settings of their own have a subclass of `DataConfig`, `ModelConfig`.
"""

from morel_core.config.attack import AttackConfig, AttackLoss, Init, Iterate, Norm
from morel_core.config.data import DataConfig, ImageFolderConfig, SyntheticConfig
from morel_core.config.evaluation import EvaluationConfig, RungConfig
from morel_core.config.experiment import ExperimentConfig
from morel_core.config.model import (
    DigitsCnnConfig,
    ExternalConfig,
    ModelConfig,
    ResNetConfig,
    WideResNetConfig,
)
from morel_core.config.objective import Accuracy, ObjectiveConfig, Scalarisation
from morel_core.config.optimizer import OptimizerConfig
from morel_core.config.training import AwpConfig, Precision, TrainingConfig

__all__ = [
    "Accuracy",
    "AttackConfig",
    "AttackLoss",
    "AwpConfig",
    "DataConfig",
    "DigitsCnnConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "ExternalConfig",
    "ImageFolderConfig",
    "Init",
    "Iterate",
    "ModelConfig",
    "Norm",
    "ObjectiveConfig",
    "OptimizerConfig",
    "Precision",
    "ResNetConfig",
    "RungConfig",
    "Scalarisation",
    "SyntheticConfig",
    "TrainingConfig",
    "WideResNetConfig",
]
