"""The loss terms as pure functions, and `MorelObjective`, which weighs them."""

from morel_core.losses.alignment import cosine_alignment
from morel_core.losses.contrastive import multi_positive_contrastive
from morel_core.losses.objective import MorelObjective, Terms
from morel_core.losses.outputs import Outputs
from morel_core.losses.scalarisation import augmented_weighted_sum, scalarise

__all__ = [
    "MorelObjective",
    "Outputs",
    "Terms",
    "augmented_weighted_sum",
    "cosine_alignment",
    "multi_positive_contrastive",
    "scalarise",
]
