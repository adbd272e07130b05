"""Classifiers by name, and `MorelNet`, which adds MOREL's embedding space to one."""

from __future__ import annotations

import dataclasses

import torch

from morel_core.catalogue import MODELS, ModelFactory
from morel_core.config import (
    DigitsCnnConfig,
    ExternalConfig,
    ModelConfig,
    ResNetConfig,
    WideResNetConfig,
)
from morel_core.errors import ConfigError, check
from morel_core.models.digits_cnn import DigitsCnn
from morel_core.models.net import MorelNet
from morel_core.models.preact_resnet import PreActResNet
from morel_core.models.resnet import ResNet
from morel_core.models.wide_resnet import WideResNet

__all__ = [
    "MODELS",
    "DigitsCnn",
    "DigitsCnnConfig",
    "ExternalConfig",
    "ModelFactory",
    "MorelNet",
    "PreActResNet",
    "ResNet",
    "ResNetConfig",
    "WideResNet",
    "WideResNetConfig",
    "build_net",
]


def build_net(
    config: ModelConfig,
    *,
    num_classes: int,
    shape: tuple[int, int, int],
    seed: int | None = None,
) -> MorelNet:
    """Build the network that ``config`` names, in training mode, on torch's default device.

    Args:
        config: the config class registered for its ``name``, or a plain `ModelConfig`, which leaves
            the settings of that model at their defaults.
        num_classes: K.
        shape: (channels, height, width) of the images.
        seed: of all initial weights; torch's global generators are left as they were. None draws
            from the global generator.

    Raises:
        ConfigError: the name is unknown, the config belongs to another model, ``mean`` has not one
            entry a channel, or a torchvision or timm model does not fit the images.
        MorelError: timm is not installed, or pretrained weights could not be fetched.
    """
    entry = MODELS.get(config.name)
    if type(config) is ModelConfig:
        settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        try:
            config = entry.config_class(**settings)
        except ConfigError as error:
            raise error.within("model") from error
    check(
        isinstance(config, entry.config_class),
        "model.name",
        config.name,
        f"is configured by {entry.config_class.__name__}, not {type(config).__name__}",
    )
    channels = shape[0]
    if config.mean is not None and config.std is not None:
        for key, values in (("model.mean", config.mean), ("model.std", config.std)):
            if len(values) != channels:
                raise ConfigError(key, values, f"one entry a channel: the images have {channels}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed reseeds the GPUs as well
        return MorelNet.wrap(
            entry.factory(config, num_classes, shape),
            head=config.head if isinstance(config, ExternalConfig) else None,
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            dropout=config.dropout,
            attention=config.attention,
            mean=config.mean,
            std=config.std,
        )
