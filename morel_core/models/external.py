"""Any classifier of torchvision or timm: ``torchvision/<name>``, ``timm/<name>``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from morel_core.config import ExternalConfig
from morel_core.errors import ConfigError, MorelError, check
from morel_core.models.net import find_head

# Their training mode returns a tuple with the logits of auxiliary heads, and they warn unless told.
_AUXILIARY = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def _check_known(name: str, model: str, known: Iterable[str], listed_by: str) -> None:
    names = set(known)
    if model in names:
        return
    close = difflib.get_close_matches(model, sorted(names), n=3)
    family = name.partition("/")[0]
    hint = f"did you mean {', '.join(f'{family}/{other}' for other in close)}? " if close else ""
    raise ConfigError("model.name", name, f"{hint}{listed_by} lists all {len(names)} names")


def _unbuildable(name: str, shape: tuple[int, int, int], error: Exception) -> ConfigError:
    channels, height, width = shape
    reason = " ".join(str(error).split()) or type(error).__name__
    return ConfigError(
        "model.name", name, f"does not work on {channels}x{height}x{width} images ({reason})"
    )


def _accept_channels(model: nn.Module, channels: int) -> None:
    """Exchange the first convolution for a new one that takes ``channels`` channels."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels == channels:
                return
            stem = nn.Conv2d(
                channels,
                module.out_channels,
                cast(tuple[int, int], module.kernel_size),
                cast(tuple[int, int], module.stride),
                cast(Any, module.padding),
                cast(tuple[int, int], module.dilation),
                bias=module.bias is not None,
                padding_mode=cast(Any, module.padding_mode),
            )
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
            model.set_submodule(name, stem, strict=True)
            return


def _load_torchvision_weights(model: nn.Module, name: str) -> None:
    """Load the default weights, without unpickling anything but tensors.

    torchvision's own ``weights=`` argument unpickles freely; what its builders do besides is redone
    here: DenseNet's weights carry old key names, and auxiliary heads are dropped.
    """
    from torchvision import models

    weights = cast(Any, models.get_model_weights(name)).DEFAULT
    state = cast(
        dict[str, Tensor],
        weights.get_state_dict(progress=False, check_hash=True, weights_only=True),
    )
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", key): value
        for key, value in state.items()
        if not key.startswith(("aux1.", "aux2.", "AuxLogits."))
    }
    model.load_state_dict(state)


def _probe(model: nn.Module, config: ExternalConfig, shape: tuple[int, int, int]) -> nn.Module:
    """Return ``model`` once it has shown on one image that it ends in its head.

    The image passes in eval mode; the model's mode is restored.

    Raises:
        ConfigError: the model fails on such images, or its output is not that of its head.
    """
    head_name = find_head(model, config.head)
    head = model.get_submodule(head_name)
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
        outputs.append(output)

    modes = {module: module.training for module in model.modules()}
    handle = head.register_forward_hook(keep)
    try:
        with torch.no_grad():
            logits = model.eval()(torch.full((1, *shape), 0.5))
    except Exception as error:  # any operator may refuse the images, each in its own way
        raise _unbuildable(config.name, shape, error) from error
    finally:
        handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if not (
        isinstance(logits, Tensor)
        and len(outputs) == 1
        and outputs[0].ndim == 2
        and torch.equal(logits, outputs[0])
    ):
        raise ConfigError(
            "model.head",
            config.head,
            f"{config.name} does not end in {head_name!r} applied to a vector an image; "
            "name its final nn.Linear or choose another model",
        )
    return model


def torchvision_model(
    config: ExternalConfig, num_classes: int, shape: tuple[int, int, int]
) -> nn.Module:
    """A torchvision classifier, with torchvision's initialisation.

    Vision transformers are built for the size of the images. With other than 3 channels the first
    convolution is replaced.

    Raises:
        ConfigError: the name is unknown, the model cannot be built for such images, or pretrained
            weights are asked for other than 3 channels.
        MorelError: the pretrained weights could not be fetched.
    """
    from torchvision import models

    name = config.name.partition("/")[2]
    known = models.list_models(module=models)
    _check_known(config.name, name, known, "torchvision.models.list_models()")
    check(
        not config.pretrained or shape[0] == 3,
        "model.pretrained",
        config.pretrained,
        f"torchvision's weights take 3 channels, the data have {shape[0]}; use pretrained: false "
        "or a timm/ model, which adapts its weights",
    )
    options: dict[str, Any] = dict(_AUXILIARY.get(name, {}))
    if not config.pretrained:
        options["num_classes"] = num_classes
        if name.startswith("vit_"):
            options["image_size"] = shape[1]
    try:
        model = models.get_model(name, weights=None, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unbuildable(config.name, shape, error) from error
    if config.pretrained:
        try:
            _load_torchvision_weights(model, name)
        except Exception as error:  # network, disk, checksum: the library wraps none of them
            raise MorelError(f"pretrained weights of {config.name}: {error}") from error
        head_name = find_head(model, config.head)
        head = cast(nn.Linear, model.get_submodule(head_name))
        if head.out_features != num_classes:
            model.set_submodule(head_name, nn.Linear(head.in_features, num_classes), strict=True)
    else:
        _accept_channels(model, shape[0])
    return _probe(model, config, shape)


def timm_model(config: ExternalConfig, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A timm classifier, with timm's initialisation and its adaptation to channels and image size.

    Raises:
        ConfigError: the name is unknown, or the model cannot be built for such images.
        MorelError: timm is not installed, or the pretrained weights could not be fetched.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise MorelError(f"model.name = {config.name!r} needs timm: pip install timm") from error

    name = config.name.partition("/")[2]
    if not timm.is_model(name):
        _check_known(config.name, name, timm.list_models(), "timm.list_models()")
    options: dict[str, Any] = {}
    pretrained_cfg = timm.get_pretrained_cfg(name)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        options["img_size"] = shape[1:]  # position embeddings; timm resamples pretrained ones
    try:
        model = timm.create_model(
            name,
            pretrained=config.pretrained,
            num_classes=num_classes,
            in_chans=shape[0],
            **options,
        )
    except Exception as error:
        if config.pretrained:
            raise MorelError(f"pretrained weights of {config.name}: {error}") from error
        raise _unbuildable(config.name, shape, error) from error
    return _probe(model, config, shape)
