"""What the site has beside its pages: generated reference pages, the list of decisions, sources.

MkDocs calls these functions by their names (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import commands
import settings
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(?:#[^)]*)?\)")
ADR = re.compile(r"(\d{4})-.*\.md")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every decision into the navigation: `docs/adr` is the list of them."""
    for section in config.nav or []:
        if "Decisions" in section:
            section["Decisions"] += [f"adr/{path.name}" for path in decisions(config)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written from the code."""
    pages = {
        "reference/config.md": settings.page(),
        "reference/cli.md": commands.page(),
        "adr/index.md": index_of(decisions(config)),
    }
    for place, content in pages.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, **_: Any) -> str:
    """Links to files of the repository that are no page here become the files' paths."""
    folder = Path(config.docs_dir, page.file.src_uri).parent
    root = Path(config.docs_dir).parent.resolve()

    def shown(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        outside = target.is_relative_to(root) and not target.is_relative_to(root / "docs")
        if not outside or not target.exists():
            return link[0]
        path = f"`{target.relative_to(root)}`"
        return path if link[1].strip("`") in path else f"{link[1]} ({path})"

    return LINK.sub(shown, markdown)


def decisions(config: MkDocsConfig) -> list[Path]:
    """The records of decisions, in their order."""
    return sorted(p for p in Path(config.docs_dir, "adr").iterdir() if ADR.fullmatch(p.name))


def index_of(records: list[Path]) -> str:
    """The page that lists them by their titles."""
    titles = {path.name: path.read_text().partition("\n")[0].lstrip("# ") for path in records}
    lines = [f"- [{title}]({name})" for name, title in titles.items()]
    about = "Why things are as they are: what was decided, what was rejected, what it costs."
    return "\n".join(["# Decisions", "", about, "", *lines, ""])
