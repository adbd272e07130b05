"""How a search ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.search.budget import Cost
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import Trial


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """How a search ended."""

    search: SearchConfig
    trials: list[Trial]
    winner: Trial | None
    """See `orchestrator.search.selection.choose`; None if no trial was measured."""
    seconds: float
    """Of this command."""
    recorded: bool
    """False if MLflow lacks something that waits in the journal."""
    cost: Cost = field(default_factory=Cost)
    """Of all commands of this search."""
    cut: str = ""
    """The part of its budget that ended it before its trials were done."""
