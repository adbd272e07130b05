"""Ray, MLflow and the ``morel`` command around `morel_core`.

In a notebook: ``results``, ``curves``, ``front_figure`` and ``curves_figure`` of
`orchestrator.notebook`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.notebook import curves, curves_figure, front_figure, results

__all__ = ["curves", "curves_figure", "front_figure", "results"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: commands do without pandas and matplotlib."""
    if name in __all__:
        return getattr(import_module("orchestrator.notebook"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
