"""What is redrawn on a terminal, and lines anywhere else."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.live import Live


class Display:
    """While it is open, ``live`` is drawn if ``console`` is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def say(self, line: str) -> None:
        """A line of its own, as it is."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
