"""A trainable whose process dies while it is reset; importable by Ray's workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray import tune


class Dying(tune.Trainable):
    """One step; the third trial's reset kills the process, once."""

    def setup(self, config: dict[str, Any]) -> None:
        self.number = config["number"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if new_config["number"] == 3 and not Path(new_config["marker"]).exists():
            Path(new_config["marker"]).touch()
            os._exit(1)
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        return {"number": self.number, "done": True}
