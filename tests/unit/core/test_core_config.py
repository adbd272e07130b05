"""Each setting out of range is refused in a line with its key, its value and what is allowed."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from morel_core import (
    AttackConfig,
    AwpConfig,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainingConfig,
)
from morel_core.data import SyntheticConfig
from morel_core.models import DigitsCnnConfig, ExternalConfig

TWO_MILESTONES = {"schedule": "piecewise", "milestones": [2, 4]}
NAN = float("nan")


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (DataConfig, {"holdout": 0}, "holdout = 0: at least 1 image must be held out"),
        (DataConfig, {"train_size": 0}, "train_size = 0: null (all) or a number of images >= 1"),
        (DataConfig, {"test_size": -3}, "test_size = -3: null (all) or a number of images >= 1"),
        (DataConfig, {"crop_padding": -1}, "crop_padding = -1: pixels >= 0"),
        (SyntheticConfig, {"num_classes": 1}, "num_classes = 1: must be >= 2"),
        (SyntheticConfig, {"holdout": 0}, "holdout = 0: at least 1 image must be held out"),
        (ModelConfig, {"embed_dim": 0}, "embed_dim = 0: a width >= 1"),
        (ModelConfig, {"num_heads": 3}, "num_heads = 3: must divide embed_dim = 128"),
        (ModelConfig, {"num_heads": 0}, "num_heads = 0: must divide embed_dim = 128"),
        (ModelConfig, {"dropout": 1.0}, "dropout = 1.0: a probability in [0, 1)"),
        (ModelConfig, {"mean": [0.5]}, "std = None: give mean and std, or neither"),
        (ModelConfig, {"mean": [0.5], "std": [0.0]}, "std = [0.0]: all entries > 0"),
        (DigitsCnnConfig, {"width": 0}, "width = 0: channels >= 1"),
        (
            DigitsCnnConfig,
            {"width": 12, "norm": "group"},
            "width = 12: a multiple of 8 with norm: group",
        ),
        (
            ExternalConfig,
            {"name": "resnet18"},
            "name = 'resnet18': torchvision/<model> or timm/<model>",
        ),
        (
            AttackConfig,
            {"eps": 8},
            "eps = 8: must be in (0, 1]; images lie in [0, 1], so 8/255 is written ${frac:8,255}",
        ),
        (AttackConfig, {"eps": 0.0}, "eps = 0.0: must be in (0, 1]"),
        (AttackConfig, {"eps": -0.1}, "eps = -0.1: must be in (0, 1]"),
        (AttackConfig, {"eps": NAN}, "eps = nan: must be in (0, 1]"),
        (AttackConfig, {"norm": "l2", "eps": 1e5}, "eps = 100000.0: must be in (0, 10000]"),
        (AttackConfig, {"step_size": 0.0}, "step_size = 0.0: must be > 0"),
        (
            AttackConfig,
            {"eps": 0.01, "step_size": 2},
            "step_size = 2: must be at most the ball's diameter, 2·eps = 0.02",
        ),
        (AttackConfig, {"num_steps": 0}, "num_steps = 0: must be >= 1"),
        (AttackConfig, {"init_scale": -0.1}, "init_scale = -0.1: must be >= 0"),
        (
            AttackConfig,
            {"loss": "kl", "init": "none"},
            "init = 'none': gaussian or uniform with loss: kl, whose gradient at x itself is zero",
        ),
        (ObjectiveConfig, {"beta": -1.0}, "beta = -1.0: must be >= 0"),
        (ObjectiveConfig, {"gamma": -1.0}, "gamma = -1.0: must be >= 0"),
        (ObjectiveConfig, {"alpha": -1e-5}, "alpha = -1e-05: must be >= 0"),
        (ObjectiveConfig, {"alpha": NAN}, "alpha = nan: must be >= 0"),
        (ObjectiveConfig, {"loat_theta": -1.0}, "loat_theta = -1.0: must be >= 0"),
        (ObjectiveConfig, {"loat_gamma": -1.0}, "loat_gamma = -1.0: must be >= 0"),
        (
            ObjectiveConfig,
            {"temperature": -0.1},
            "temperature = -0.1: must be > 0 (published: 0.1)",
        ),
        (ObjectiveConfig, {"temperature": 0.0}, "temperature = 0.0: must be > 0 (published: 0.1)"),
        (
            ObjectiveConfig,
            {"preference": (1.5, -0.5)},
            "preference = [1.5, -0.5]: two weights (k1, k2), each in [0, 1], not both 0 "
            "(published: [0.1, 0.9])",
        ),
        (ObjectiveConfig, {"preference": (0.0, 0.0)}, "preference = [0.0, 0.0]: two weights"),
        (ObjectiveConfig, {"preference": (0.1,)}, "preference = [0.1]: two weights"),
        (ObjectiveConfig, {"reference": (0.0,)}, "reference = [0.0]: two numbers"),
        (ObjectiveConfig, {"loat_early_epochs": -1}, "loat_early_epochs = -1: must be >= 0"),
        (
            ObjectiveConfig,
            {"loat_late_start": 0},
            "loat_late_start = 0: null or an epoch counted from 1",
        ),
        (OptimizerConfig, {"lr": 0.0}, "lr = 0.0: must be > 0"),
        (OptimizerConfig, {"lr": NAN}, "lr = nan: must be > 0"),
        (OptimizerConfig, {"momentum": 1.0}, "momentum = 1.0: must be in [0, 1)"),
        (
            OptimizerConfig,
            {"nesterov": True, "momentum": 0.0},
            "nesterov = True: needs momentum > 0",
        ),
        (
            OptimizerConfig,
            {"name": "adamw", "nesterov": True},
            "nesterov = True: only with name: sgd, not adamw",
        ),
        (OptimizerConfig, {"weight_decay": -1e-4}, "weight_decay = -0.0001: must be >= 0"),
        (
            OptimizerConfig,
            TWO_MILESTONES | {"factors": [0.1]},
            "factors = [0.1]: one factor for each milestone of [2, 4]",
        ),
        (
            OptimizerConfig,
            {"milestones": [2], "factors": [0.1]},
            "milestones = [2]: only with schedule: piecewise",
        ),
        (
            OptimizerConfig,
            {"schedule": "piecewise", "milestones": [4, 2], "factors": [0.1, 0.1]},
            "milestones = [4, 2]: rising epochs >= 1",
        ),
        (
            OptimizerConfig,
            {"schedule": "piecewise", "milestones": [0], "factors": [0.1]},
            "milestones = [0]: rising epochs >= 1",
        ),
        (
            OptimizerConfig,
            TWO_MILESTONES | {"factors": [0.1, -0.1]},
            "factors = [0.1, -0.1]: multiples of lr, each >= 0",
        ),
        (OptimizerConfig, {"warmup_epochs": -1}, "warmup_epochs = -1: must be >= 0"),
        (OptimizerConfig, {"clip_norm": 0.0}, "clip_norm = 0.0: null or > 0"),
        (TrainingConfig, {"epochs": 0}, "epochs = 0: must be >= 1"),
        (TrainingConfig, {"batch_size": 1}, "batch_size = 1: must be >= 2"),
        (TrainingConfig, {"micro_batches": 0}, "micro_batches = 0: from 1 to 64: at least 2 of"),
        (
            TrainingConfig,
            {"micro_batches": 4, "batch_size": 7},
            "micro_batches = 4: from 1 to 3: at least 2 of the batch_size = 7 images in each",
        ),
        (
            TrainingConfig,
            {"micro_batches": 2, "published_batchnorm": True},
            "micro_batches = 2: 1 with published_batchnorm, whose statistics are those of whole",
        ),
        (EvaluationConfig, {"every": 0}, "every = 0: must be >= 1"),
        (EvaluationConfig, {"batch_size": 0}, "batch_size = 0: must be >= 1"),
        (EvaluationConfig, {"num_images": 0}, "num_images = 0: null (all) or >= 1"),
        (EvaluationConfig, {"attack": AttackConfig()}, "attack.loss = 'auto': ce or kl"),
        (
            ExperimentConfig,
            {"data": DataConfig(holdout=10), "evaluation": EvaluationConfig(num_images=11)},
            "evaluation.num_images = 11: at most data.holdout = 10",
        ),
        (
            ExperimentConfig,
            {"objective": ObjectiveConfig(accuracy="custom")},
            "attack.loss = 'auto': say ce or kl",
        ),
        (
            ExperimentConfig,
            {
                "objective": ObjectiveConfig(accuracy="loat", loat_late_start=100),
                "training": TrainingConfig(epochs=99),
            },
            "objective.loat_late_start = 100: null (the last tenth) or an epoch up to "
            "training.epochs = 99",
        ),
        (
            ExperimentConfig,
            {"training": TrainingConfig(epochs=5, awp=AwpConfig(gamma=0.01, warmup_epochs=5))},
            "training.awp.warmup_epochs = 5: below training.epochs = 5, or it never begins",
        ),
        (
            ExperimentConfig,
            {"attack": AttackConfig(init="none")},
            "attack.init = 'none': gaussian or uniform with loss: kl",
        ),
    ],
)
def test_out_of_range(config_class, settings, message):
    with pytest.raises(ConfigError) as caught:
        config_class(**settings)
    said = str(caught.value)
    assert said.startswith(message)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("config_class", "settings"),
    [
        (AttackConfig, {"eps": 1.0, "step_size": 2.0}),
        (AttackConfig, {"norm": "l2", "eps": 100.0}),
        (ModelConfig, {"embed_dim": 1, "num_heads": 1, "dropout": 0.0}),
        (ObjectiveConfig, {"preference": (1.0, 0.0), "alpha": 0.0, "beta": 0.0, "gamma": 0.0}),
        (OptimizerConfig, {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": 1e-9}),
        (OptimizerConfig, TWO_MILESTONES | {"factors": [0.1, 0.0]}),
        (TrainingConfig, {"epochs": 1, "batch_size": 2}),
        (TrainingConfig, {"micro_batches": 3, "batch_size": 6}),
        (DataConfig, {"holdout": 1, "train_size": 1, "test_size": 1, "crop_padding": 0}),
        (ExperimentConfig, {"data": DataConfig(holdout=7), "evaluation": EvaluationConfig()}),
        (ExperimentConfig, {"training": TrainingConfig(epochs=1, awp=AwpConfig(gamma=0.01))}),
        (ExperimentConfig, {"training": TrainingConfig(epochs=1, awp=AwpConfig(warmup_epochs=9))}),
        (ExperimentConfig, {"objective": ObjectiveConfig(accuracy="loat", loat_late_start=10)}),
        (ExperimentConfig, {"objective": ObjectiveConfig(loat_late_start=100)}),
    ],
)
def test_the_bounds_themselves_are_allowed(config_class, settings):
    config = config_class(**settings)
    assert all(getattr(config, key) == value for key, value in settings.items())


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"accuracy": "trades"}, "kl"),
        ({"accuracy": "mart"}, "ce"),
        ({"accuracy": "at"}, "ce"),
        ({"accuracy": "loat"}, "ce"),
        ({"accuracy": "loat", "loat_base": "trades"}, "kl"),
        ({"accuracy": "mart", "loat_base": "trades"}, "ce"),  # loat_base is LOAT's alone
    ],
)
def test_attack_loss_that_auto_stands_for(settings, loss):
    objective = ObjectiveConfig(**settings)
    assert objective.attack_loss == loss
    without_start = AttackConfig(init="none")
    if loss == "kl":
        with pytest.raises(ConfigError, match=r"attack\.init"):
            ExperimentConfig(objective=objective, attack=without_start)
    else:
        ExperimentConfig(objective=objective, attack=without_start)


def test_lists_of_yaml_become_tuples_so_that_configs_compare_and_hash():
    listed = ObjectiveConfig(preference=[0.2, 0.8], reference=[0.0, 1.0])
    assert listed == ObjectiveConfig(preference=(0.2, 0.8), reference=(0.0, 1.0))
    assert hash(listed) == hash(ObjectiveConfig(preference=(0.2, 0.8), reference=(0.0, 1.0)))


def test_frozen_and_keyword_only():
    config = ExperimentConfig()
    with pytest.raises(FrozenInstanceError):
        config.seed = 1
    with pytest.raises(TypeError):
        AttackConfig("linf")


def test_replace_checks_again():
    with pytest.raises(ConfigError, match=r"^temperature = 0: "):
        replace(ObjectiveConfig(), temperature=0)


def test_defaults_are_the_published_setting():
    objective, attack = ObjectiveConfig(), AttackConfig()
    assert (objective.preference, objective.reference) == ((0.1, 0.9), (0.0, 0.0))
    assert (objective.gamma, objective.alpha, objective.temperature) == (2e-5, 1e-5, 0.1)
    assert (objective.accuracy, objective.beta, objective.features) == ("trades", 6.0, "natural")
    assert (attack.eps, attack.step_size, attack.num_steps) == (0.031, 0.007, 10)
    assert (attack.norm, attack.init, attack.init_scale) == ("linf", "gaussian", 0.001)


def test_no_default_is_shared_between_configs():
    for config_class in (OptimizerConfig, ModelConfig, ExperimentConfig):
        for spec in fields(config_class):
            if isinstance(getattr(config_class(), spec.name), list):
                first = getattr(config_class(), spec.name)
                assert first is not getattr(config_class(), spec.name)
