"""Which network."""

from __future__ import annotations

from dataclasses import dataclass

from morel_core.errors import check


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and the embedding space that training adds to it."""

    name: str = "digits_cnn"
    embed_dim: int = 128
    attention: bool = True
    """False leaves the class-adaptive attention out (ablation): projections are compared as is."""
    num_heads: int = 2
    dropout: float = 0.0
    mean: list[float] | None = None
    """Per-channel mean that the network itself subtracts; inputs always lie in [0, 1]."""
    std: list[float] | None = None

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
