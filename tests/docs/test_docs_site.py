"""`make docs`: the site builds without a warning, and its reference has all keys and commands."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from documents import ROOT

from orchestrator.commands.arguments import parser
from orchestrator.config import RunConfig, flatten, to_dict


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs", reason="the extra [docs] is not installed")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    assert "WARNING" not in built.stderr
    return folder


def test_every_setting_of_a_run_has_its_row(site: Path) -> None:
    page = (site / "reference" / "config.html").read_text()
    keys = flatten(to_dict(RunConfig()))
    assert len(keys) > 80
    assert [key for key in keys if f"<code>{key}</code>" not in page] == []


def test_every_command_has_its_chapter(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text()
    whole = parser(defaultdict(lambda: lambda arguments, overrides: 0))
    names = [
        name
        for action in whole._actions
        if isinstance(action, argparse._SubParsersAction)
        for name in action.choices
    ]
    assert "train" in names
    assert [name for name in names if f'id="morel-{name}"' not in page] == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        for attribute in ('src="http', 'rel="stylesheet" href="http'):
            assert attribute not in text, page


def test_every_setting_says_what_it_is(site: Path) -> None:
    page = (site / "reference" / "config.html").read_text()
    rows = re.findall(r"<tr>\s*<td><code>(.*?)</code></td>.*?</tr>", page, re.DOTALL)
    empty = re.findall(r"<td><code>(\S*?)</code></td>(?:(?!</tr>).)*<td></td>\s*</tr>", page, re.S)
    assert len(rows) > 120
    assert empty == []
