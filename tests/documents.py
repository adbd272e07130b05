"""What the tests of the documentation read: pages, their code blocks, their command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?P<run><!-- run -->\n)?```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
COMPLAINT = re.compile(r"^\$ morel (.*)\n(morel: .*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of code; ``run`` if ``<!-- run -->`` stands above it."""

    page: str
    language: str
    code: str
    run: bool


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    return [
        Block(page.name, match["language"], match["code"], match["run"] is not None)
        for match in BLOCK.finditer(page.read_text())
    ]


def command_lines(code: str) -> Iterator[list[str]]:
    """The arguments of every ``morel …`` in a block of bash, continued lines joined."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("morel "):
            yield shlex.split(line, comments=True)[1:]


def complaints(page: Path) -> list[tuple[str, str]]:
    """(arguments, the line that the command says) of the blocks of console."""
    return [
        (match[1], match[2])
        for block in blocks(page)
        if block.language == "console"
        for match in COMPLAINT.finditer(block.code)
    ]
