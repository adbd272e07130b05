"""Which network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from morel_core.errors import check

GROUPS = 8
"""Of `DigitsCnn`'s group normalisation."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and the embedding space that training adds to it."""

    name: str = "digits_cnn"
    """Which network; the names are below."""
    embed_dim: int = 128
    """Width of the embedding space."""
    attention: bool = True
    """False leaves the class-adaptive attention out (ablation): projections are compared as is."""
    num_heads: int = 2
    """Of the attention; must divide embed_dim."""
    dropout: float = 0.0
    """Of the attention weights while training."""
    mean: list[float] | None = None
    """Per-channel mean that the network itself subtracts; inputs always lie in [0, 1]."""
    std: list[float] | None = None
    """Per-channel standard deviation that it divides by; both or neither."""

    def __post_init__(self) -> None:
        check(self.embed_dim >= 1, "embed_dim", self.embed_dim, "a width >= 1")
        check(
            self.num_heads >= 1 and self.embed_dim % self.num_heads == 0,
            "num_heads",
            self.num_heads,
            f"must divide embed_dim = {self.embed_dim}",
        )
        check(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "a probability in [0, 1)")
        check(
            (self.mean is None) == (self.std is None),
            "std",
            self.std,
            "give mean and std, or neither",
        )
        check(self.std is None or all(s > 0 for s in self.std), "std", self.std, "all entries > 0")


@dataclass(frozen=True, kw_only=True)
class DigitsCnnConfig(ModelConfig):
    """Settings of `DigitsCnn`."""

    width: int = 32
    """Channels of the first convolution; the other two have twice as many."""
    norm: Literal["batch", "group", "none"] = "batch"
    """group and none couple no samples: the loss then does not depend on the number of workers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.width >= 1, "width", self.width, "channels >= 1")
        check(
            self.norm != "group" or self.width % GROUPS == 0,
            "width",
            self.width,
            f"a multiple of {GROUPS} with norm: group",
        )


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(ModelConfig):
    """Settings of the residual networks."""

    name: str = "resnet18"
    width: int = 64
    """Channels of the first stage; every further stage has twice as many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.width >= 1, "width", self.width, "channels >= 1 (published: 64)")


@dataclass(frozen=True, kw_only=True)
class WideResNetConfig(ModelConfig):
    """Settings of `WideResNet`; WRN-34-10 by default."""

    name: str = "wide_resnet"
    depth: int = 34
    """6 n + 4: three stages of n blocks of two convolutions."""
    widen_factor: int = 10
    """Channels, relative to a plain residual network's 16, 32 and 64."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.depth >= 10 and (self.depth - 4) % 6 == 0,
            "depth",
            self.depth,
            "6 n + 4 with n >= 1: 10, 16, 22, 28, 34, 40, …",
        )
        check(self.widen_factor >= 1, "widen_factor", self.widen_factor, "must be >= 1")


@dataclass(frozen=True, kw_only=True)
class ExternalConfig(ModelConfig):
    """Settings of a torchvision or timm classifier.

    Most of them expect images of about 224 pixels and shrink small ones to nothing.
    """

    name: str = "torchvision/resnet18"
    pretrained: bool = False
    """Start from the library's default weights (downloaded when not cached), with a new head unless
    the number of classes agrees. Give their mean and std too."""
    head: str | None = None
    """Dotted name of the final linear layer; default: the last one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        family, _, model = self.name.partition("/")
        check(
            family in ("torchvision", "timm") and model != "",
            "name",
            self.name,
            "torchvision/<model> or timm/<model>",
        )
