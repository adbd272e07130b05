"""Data sets and classifiers by name, with the class of their settings.

Checks configs without torch: what makes the data or the network is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from morel_core.config import (
    DataConfig,
    DigitsCnnConfig,
    ExternalConfig,
    ImageFolderConfig,
    ResNetConfig,
    SyntheticConfig,
    WideResNetConfig,
)
from morel_core.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from morel_core.data.base import Official

DataFactory: TypeAlias = "Callable[[Any], Official]"
"""``config -> data set``."""
ModelFactory: TypeAlias = "Callable[[Any, int, tuple[int, int, int]], nn.Module]"
"""``(config, num_classes, (channels, height, width)) -> classifier`` whose last `nn.Linear` is its
head, unless the config is an `ExternalConfig`, which can name another."""

DATASETS: Registry[DataFactory] = Registry("data.name")
DATASETS.enter("digits", DataConfig, "morel_core.data.digits:digits")
DATASETS.enter("synthetic", SyntheticConfig, "morel_core.data.synthetic:synthetic")
DATASETS.enter("image_folder", ImageFolderConfig, "morel_core.data.image_folder:image_folder")
for _name in ("cifar10", "cifar100", "svhn", "fashion_mnist"):
    DATASETS.enter(_name, DataConfig, f"morel_core.data.torchvision_sets:{_name}")

MODELS: Registry[ModelFactory] = Registry("model.name")
MODELS.enter("digits_cnn", DigitsCnnConfig, "morel_core.models.digits_cnn:digits_cnn")
MODELS.enter("preact_resnet18", ResNetConfig, "morel_core.models.preact_resnet:preact_resnet18")
MODELS.enter("wide_resnet", WideResNetConfig, "morel_core.models.wide_resnet:wide_resnet")
MODELS.enter("torchvision/", ExternalConfig, "morel_core.models.external:torchvision_model")
MODELS.enter("timm/", ExternalConfig, "morel_core.models.external:timm_model")
for _name in ("resnet18", "resnet34", "resnet50"):
    MODELS.enter(_name, ResNetConfig, f"morel_core.models.resnet:{_name}")
