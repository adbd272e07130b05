"""The blocks of the docs under ``<!-- run -->`` run as they stand, on tiny settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from documents import PAGES, Block, blocks, command_lines

from orchestrator.cli import main

RUN = [block for page in PAGES for block in blocks(page) if block.run]
TINY = [
    "data.holdout=60", "data.train_size=320", "data.test_size=64", "model.width=4",
    "attack.num_steps=2", "evaluation.attack.num_steps=3", "training.epochs=1",
]  # fmt: skip


@pytest.mark.parametrize(
    "block", [b for b in RUN if b.language == "python"], ids=lambda block: block.page
)
def test_python_runs(block: Block) -> None:
    exec(compile(block.code, block.page, "exec"), {})


def test_five_minute_start_runs(
    local_ray: Any, shared_storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        argv for block in RUN if block.language == "bash" for argv in command_lines(block.code)
    ]
    assert {argv[0] for argv in lines} == {"train", "evaluate", "tune", "compare", "validate"}
    for argv in lines:
        added = [] if argv[0] == "validate" else [f"storage_path={shared_storage}"]
        if argv[0] in ("train", "tune"):
            added += TINY
        assert main([*argv, *added]) == 0, argv
    said = capsys.readouterr().out
    assert "first" in said
    assert "tryout" in said
