"""`MorelNet`: a classifier taken apart into encoder and head, plus MOREL's embedding space."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from morel_core.errors import ConfigError, MorelError, check

_LISTED_HEADS = 8  # a transformer has dozens of linear layers; heads come last


def find_head(model: nn.Module, head: str | None) -> str:
    """The dotted name of ``model``'s classification head.

    Args:
        model: a classifier.
        head: the dotted name wanted, or None for the last `nn.Linear` in the module's order.

    Raises:
        ConfigError: ``head`` names no `nn.Linear` inside ``model``, or ``model`` has none.
    """
    # The output projection inside nn.MultiheadAttention is a Linear that nothing calls as a module.
    linear = [
        name
        for name, module in model.named_modules()
        if name
        and isinstance(module, nn.Linear)
        and not isinstance(module, NonDynamicallyQuantizableLinear)
    ]
    kind = type(model).__name__
    if not linear:
        raise ConfigError("model.head", head, f"{kind} holds no nn.Linear that could be its head")
    if head is None:
        return linear[-1]
    if head not in linear:
        listed = ", ".join(linear[-_LISTED_HEADS:])
        dots = "… " if len(linear) > _LISTED_HEADS else ""
        raise ConfigError(
            "model.head", head, f"is no nn.Linear of {kind}; choose one of: {dots}{listed}"
        )
    return head


class MorelNet(nn.Module):
    """Encoder g, head h and, for training only, the embedding space of MOREL (arXiv 2410.01697).

    Made by `wrap`; `unwrap` gives the plain classifier back. Parameters are named and laid out as
    those of `nn.Linear`, `nn.LayerNorm` and `nn.MultiheadAttention`.

    Attributes:
        encoder: the classifier with its head replaced by the identity, (B, C, H, W) → (B, D).
        head: the classifier's last linear layer, (B, D) → (B, K).
        projection: (B, D) → (B, embed_dim).
        pre_norm: LayerNorm before the attention; None without it.
        attention: class-adaptive, over projections; None without it.
        encoder_passes: how to run the encoder while training (`precision.EncoderPasses`); None: as
            it is.
        mean: (C, 1, 1) or None; subtracted from inputs before the encoder. Not part of the state
            dict.
        std: as ``mean``; inputs are divided by it.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Linear,
        *,
        head_name: str,
        embed_dim: int,
        num_heads: int,
        dropout: float,
        attention: bool,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        check(embed_dim >= 1, "model.embed_dim", embed_dim, "a width >= 1")
        device, dtype = head.weight.device, head.weight.dtype
        self._head_name = head_name
        self.encoder_passes: Callable[[Tensor], Tensor] | None = None
        self.encoder = encoder
        self.head = head
        self.projection = nn.Linear(head.in_features, embed_dim, device=device, dtype=dtype)
        self.pre_norm: nn.LayerNorm | None = None
        self.attention: nn.MultiheadAttention | None = None
        if attention:
            check(
                num_heads >= 1 and embed_dim % num_heads == 0,
                "model.num_heads",
                num_heads,
                f"must divide embed_dim = {embed_dim}",
            )
            self.pre_norm = nn.LayerNorm(embed_dim, eps=1e-6, device=device, dtype=dtype)
            self.attention = nn.MultiheadAttention(
                embed_dim, num_heads, dropout=dropout, batch_first=True, device=device, dtype=dtype
            )
        if (mean is None) != (std is None) or len(mean or ()) != len(std or ()):
            raise ConfigError("model.std", std, f"one entry for each of mean = {mean}")
        for name, values in (("mean", mean), ("std", std)):
            channels = (
                None
                if values is None
                else torch.tensor(list(values), dtype=dtype, device=device).view(-1, 1, 1)
            )
            self.register_buffer(name, channels, persistent=False)

    @classmethod
    def wrap(
        cls,
        model: nn.Module,
        head: str | None = None,
        embed_dim: int = 128,
        num_heads: int = 2,
        dropout: float = 0.0,
        attention: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> MorelNet:
        """Take a deep copy of a classifier apart and add a fresh embedding space to it.

        Args:
            model: any classifier (B, C, H, W) → (B, K) with a linear head and nothing after it.
                It is left as it is; its weights, mode and ``requires_grad`` are copied.
            head: dotted name of that head (``"fc"``, ``"classifier.6"``); default: the last
                `nn.Linear` in the module's order.
            embed_dim: width of the embedding space.
            num_heads: attention heads; must divide ``embed_dim``.
            dropout: of the attention weights, in training mode.
            attention: False compares the projections directly.
            mean: per channel; the net subtracts it and divides by ``std`` before the encoder,
                because its own inputs always lie in [0, 1].
            std: as ``mean``; both or neither.

        Returns:
            A net with ``net(x) == model((x - mean) / std)``, on the device and in the dtype of
            ``model``. The embedding space is initialised from torch's global generator.

        Raises:
            ConfigError: there is no such head, ``num_heads`` does not divide ``embed_dim``, or
                ``mean`` and ``std`` do not belong together.
        """
        head_name = find_head(model, head)
        encoder = copy.deepcopy(model)
        encoder.zero_grad(set_to_none=True)  # a deep copy carries .grad along
        linear = cast(nn.Linear, encoder.get_submodule(head_name))
        identity = nn.Identity().train(linear.training)
        encoder.set_submodule(head_name, identity, strict=True)
        net = cls(
            encoder,
            linear,
            head_name=head_name,
            embed_dim=embed_dim,
            num_heads=num_heads,
            dropout=dropout,
            attention=attention,
            mean=mean,
            std=std,
        )
        net.training = model.training
        for module in (net.projection, net.pre_norm, net.attention):
            if module is not None:
                module.train(model.training)
        return net

    def unwrap(self) -> nn.Module:
        """The plain classifier: a deep copy of the original architecture with the trained weights.

        Same class and same state-dict keys as the module given to `wrap`, on the net's device, in
        eval mode (it is made to be used or stored), without gradients and without the embedding
        space. It takes what the encoder takes: if the net normalises, the plain classifier has to
        be given ``(x - mean) / std``.
        """
        model, head = copy.deepcopy((self.encoder, self.head))  # together: keeps tied weights tied
        model.set_submodule(self._head_name, head, strict=True)
        model.zero_grad(set_to_none=True)
        return model.eval()

    def features(self, x: Tensor) -> Tensor:
        """g(x): the encoder's output.

        Args:
            x: (B, C, H, W) in [0, 1].

        Returns:
            (B, D) with D = ``head.in_features``.

        Raises:
            MorelError: the images have other channels than ``mean``, or what comes out of the
                encoder is not (B, D).
        """
        if self.mean is not None and self.std is not None:
            if x.ndim != 4 or x.shape[1] != self.mean.shape[0]:  # else 1 channel becomes 3 silently
                raise MorelError(
                    f"model.mean has {self.mean.shape[0]} channels, the images are {tuple(x.shape)}"
                )
            x = (x - self.mean) / self.std
        features = (self.encoder_passes or self.encoder)(x)
        wanted = (x.shape[0], self.head.in_features)
        if not isinstance(features, Tensor) or features.shape != wanted:
            given = (
                f"a tensor of shape {tuple(features.shape)}"
                if isinstance(features, Tensor)
                else f"a {type(features).__name__}"
            )
            raise MorelError(
                f"{type(self.encoder).__name__} without its head {self._head_name!r} gave {given} "
                f"instead of {wanted}: name the layer that ends the network as model.head"
            )
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Logits h(g(x)), (B, K), of images x: (B, C, H, W) in [0, 1]."""
        return self.head(self.features(x))

    def attend(
        self, z: Tensor, y: Tensor, others: Tensor | None = None, other_y: Tensor | None = None
    ) -> Tensor:
        """Class-adaptive attention: u = normalise(z + MHA(LN(z))), attending within each class.

        The published code calls the attention once for each class of the batch. One call whose
        mask lets row i see row j only if y_i == y_j computes the same, at a cost that does not
        depend on the number of classes and without waiting for the device.

        Args:
            z: (b, embed_dim) projections.
            y: (b,) labels.
            others: (B, embed_dim) the rows that are attended to, those of ``z`` among them, as a
                rank that holds part of a batch gathers them; default: ``z`` alone.
            other_y: (B,) their labels.

        Returns:
            (b, embed_dim), rows of length 1, in the order of ``z``; without attention z itself,
            normalised. Gradients flow to z, to ``others`` and to the attention's parameters.
        """
        if self.attention is not None and self.pre_norm is not None:
            rows = keys = self.pre_norm(z)
            if others is not None and others is not z:
                keys = self.pre_norm(others)
            labels = y if other_y is None else other_y
            hidden = y[:, None] != labels  # never a whole row: a sample sees itself
            attended, _ = self.attention(rows, keys, keys, attn_mask=hidden, need_weights=False)
            z = z + attended
        return F.normalize(z, dim=1)

    def embedder_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the embedding space: projection, pre_norm and attention."""
        for module in (self.projection, self.pre_norm, self.attention):
            if module is not None:
                yield from module.parameters()
