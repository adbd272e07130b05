"""Every command in README and the docs is one that the parser knows, with settings that exist."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

import pytest
import ray
from documents import PAGES, ROOT, blocks, command_lines, complaints

from orchestrator import cli, train, tune
from orchestrator.commands.arguments import parser, split_command, split_overrides
from orchestrator.config import compose
from orchestrator.validate import validate

ARGV = {
    (page.name, " ".join(argv)): argv
    for page in PAGES
    for block in blocks(page)
    if block.language == "bash"
    for argv in command_lines(block.code)
}
FAQ = ROOT / "docs" / "faq.md"
TEST = re.compile(r"`(?=tests/|::)(tests/[\w/]+\.py)?(?:::(\w+))?`")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home of its own, two CPUs, no GPU, and a Ray that must not start."""
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "MOREL_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for module in (train, tune):
        monkeypatch.setattr(module, "local_resources", lambda: (2.0, 0.0))

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("place", sorted(ARGV), ids=": ".join)
def test_command_is_known_and_its_settings_exist(place: tuple[str, str]) -> None:
    check(ARGV[place])


def check(argv: list[str]) -> None:
    """Parse a command and compose what it would run; raises what the command would."""
    own, remote = split_command(argv)
    overrides, rest = split_overrides(own)
    commands = defaultdict(lambda: lambda arguments, overrides: 0)
    arguments = parser(commands).parse_args(rest, argparse.Namespace(remote=remote))
    if remote:
        check(remote)
        return
    command = own[0]
    if command == "train":
        compose(arguments.recipe, overrides)
    elif command in ("tune", "campaign"):
        validate([arguments.space if command == "tune" else arguments.file], overrides)
    elif command == "validate":
        validate(arguments.files, overrides)
    else:
        compose("digits", overrides)


@pytest.mark.parametrize(("line", "said"), complaints(FAQ), ids=lambda text: text[:40])
def test_faq_quotes_what_the_command_says(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.replace(str(Path.home()), "~").rstrip("\n") == said


def test_every_test_that_the_docs_name_is_there() -> None:
    """A name without a file is of the one before."""
    missing: list[str] = []
    named = 0
    for page in [*PAGES, *sorted((ROOT / "docs" / "adr").glob("*.md"))]:
        file = ""
        for match in TEST.finditer(page.read_text()):
            file, test, named = match[1] or file, match[2], named + 1
            path = ROOT / file
            if not path.is_file() or (test and f"def {test}(" not in path.read_text()):
                missing.append(f"{page.name}: {match[0]}")
    assert not missing
    assert named > 30
