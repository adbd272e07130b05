"""The blocks of the docs under ``<!-- run -->`` run as they stand."""

from __future__ import annotations

import pytest
from documents import PAGES, Block, blocks

RUN = [block for page in PAGES for block in blocks(page) if block.run]


@pytest.mark.parametrize(
    "block", [b for b in RUN if b.language == "python"], ids=lambda block: block.page
)
def test_python_runs(block: Block) -> None:
    exec(compile(block.code, block.page, "exec"), {})
