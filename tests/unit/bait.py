"""What a stranger may put into a pickle."""

from __future__ import annotations

from pathlib import Path


class Bait:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))
