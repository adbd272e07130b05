"""Every recipe builds the configs it names, and the published ones say what was published."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from morel_core.config import (
    AttackConfig,
    AwpConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainingConfig,
)
from morel_core.models import MODELS, WideResNetConfig

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "objective": ObjectiveConfig,
    "attack": AttackConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
}
PUBLISHED = ["cifar10_resnet18", "cifar10_wrn34_10", "cifar100_resnet18", "cifar100_wrn34_10"]
LARGE_BATCH = [f"{name}_large_batch" for name in PUBLISHED]
STRONG = "cifar10_resnet18_strong"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(name: str) -> dict[str, Any]:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    fraction = re.compile(r"\$\{frac:(\d+),(\d+)\}")
    document = yaml.safe_load(fraction.sub(lambda m: repr(int(m[1]) / int(m[2])), text))
    assert isinstance(document, dict)
    return document


def experiment(name: str) -> ExperimentConfig:
    sections = load(name)
    sections.pop("scaling", None)
    built: dict[str, Any] = {"seed": sections.pop("seed", 0)}
    model = sections.pop("model")
    built["model"] = MODELS.get(model["name"]).config_class(**model)
    evaluation = sections.pop("evaluation")
    attack = AttackConfig(**evaluation.pop("attack"))
    built["evaluation"] = EvaluationConfig(attack=attack, **evaluation)
    if "awp" in sections.get("training", {}):
        sections["training"]["awp"] = AwpConfig(**sections["training"]["awp"])
    for key, section in sections.items():
        built[key] = SECTIONS[key](**section)
    return ExperimentConfig(**built)


def test_the_recipes_are_all_there() -> None:
    assert {"digits", "fashion_mnist", STRONG, *PUBLISHED, *LARGE_BATCH} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_its_configs(name: str) -> None:
    config = experiment(name)
    assert isinstance(config.model, ModelConfig)
    assert config.evaluation.attack.num_steps == 20
    assert config.evaluation.attack.loss == "ce"
    assert set(load(name).get("scaling", {})) <= {
        "num_workers",
        "cpus_per_worker",
        "gpus_per_worker",
    }
    numbers = [
        value
        for section in dataclasses.asdict(config).values()
        if isinstance(section, dict)
        for key, value in section.items()
        if key in {"lr", "weight_decay", "eps", "step_size", "gamma", "alpha", "beta"}
    ]
    assert all(isinstance(value, float) for value in numbers), numbers  # YAML reads 1e-4 as text


@pytest.mark.parametrize("name", PUBLISHED + LARGE_BATCH)
def test_objective_attack_and_data_of_the_publication(name: str) -> None:
    config = experiment(name)
    assert config.objective == ObjectiveConfig(accuracy="trades", beta=6.0)
    assert config.objective.preference == (0.1, 0.9)
    assert config.attack == AttackConfig(
        norm="linf", eps=0.031, step_size=0.007, num_steps=10, init="gaussian", init_scale=0.001
    )
    assert (config.data.augmentation, config.data.crop_padding) == ("crop_flip", 4)
    assert config.data.holdout == 1000
    assert config.data.name == name.split("_")[0]
    assert config.training.epochs == 100
    assert config.evaluation.attack.eps == 8 / 255
    assert config.evaluation.num_images is None
    if "wrn34_10" in name:
        assert isinstance(config.model, WideResNetConfig)
        assert (config.model.depth, config.model.widen_factor) == (34, 10)
    else:
        assert config.model.name == "resnet18"


@pytest.mark.parametrize("name", PUBLISHED + LARGE_BATCH)
def test_what_was_not_published_is_off(name: str) -> None:
    """No option of stronger training, and none of faster passes."""
    config = experiment(name)
    assert config.training == TrainingConfig(epochs=100, batch_size=config.training.batch_size)
    assert config.data == DataConfig(
        name=config.data.name, holdout=1000, augmentation="crop_flip", crop_padding=4
    )
    assert config.optimizer.clip_norm is None
    assert not config.optimizer.no_decay_on_norm_and_bias
    assert config.objective.scalarisation == "weighted_sum"
    assert config.objective.label_smoothing == 0.0


@pytest.mark.parametrize("name", PUBLISHED)
def test_optimiser_of_the_publication(name: str) -> None:
    config = experiment(name)
    assert config.training.batch_size == 8
    assert config.optimizer == OptimizerConfig(
        lr=0.01 if "wrn" in name else 0.001,
        weight_decay=1e-4,
        schedule="piecewise",
        milestones=[74, 89],  # finished epochs: the 75th and the 90th already run at the lower rate
        factors=[0.01, 0.0001],
    )


@pytest.mark.parametrize("name", LARGE_BATCH)
def test_optimiser_of_the_large_batches(name: str) -> None:
    config = experiment(name)
    assert config.training.batch_size == 128
    assert config.optimizer == OptimizerConfig(
        lr=0.1 if "wrn" in name else 0.01,
        weight_decay=2e-4,
        schedule="piecewise",
        milestones=[74, 89, 99],
        factors=[0.1, 0.01, 0.001],
    )
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    assert "NOT a published setting" in text.splitlines()[0]


def test_the_strong_recipe_is_the_published_one_but_for_what_it_says() -> None:
    """Objective and network are the published ones, every other value names its source."""
    strong, published = experiment(STRONG), experiment("cifar10_resnet18")
    assert strong.model == published.model
    assert dataclasses.replace(strong.objective, label_smoothing=0.0) == published.objective
    assert strong.evaluation == published.evaluation
    assert (strong.data.augmentation, strong.data.erasing) == ("idbh", 0.5)
    assert strong.training.ema_decay == 0.995
    assert strong.training.awp == AwpConfig(gamma=0.005, warmup_epochs=10)
    text = (RECIPES / f"{STRONG}.yaml").read_text(encoding="utf-8")
    assert "NOT a published" in text.partition("seed:")[0]
