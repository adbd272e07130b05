"""Help that a newcomer can follow, and exit codes that scripts can rely on."""

import json

import pytest

from morel_core.errors import MorelError
from orchestrator import cli
from orchestrator.commands import results

COMMANDS = ["train", "tune", "campaign", "status", "top", "logs", "stop"]
COMMANDS += ["sync", "submit", "evaluate", "compare", "report", "validate"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: morel {command}")
    for part in ("key=value", "training.epochs=5", "--json", "--debug", "exit codes:"):
        assert part in shown


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"    {command}" in shown for command in COMMANDS)
    assert "key=value" in shown


@pytest.mark.parametrize(
    "argv", [[], ["trian"], ["tune"], ["evaluate"], ["train", "--epochs", "3"], ["train", "a", "b"]]
)
def test_wrong_arguments_exit_with_2_before_anything_runs(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "morel" in capsys.readouterr().err


@pytest.fixture
def command(monkeypatch):
    """Put a function in the place of ``morel validate``."""

    def replace(function):
        monkeypatch.setattr(results, "validate_command", function)

    return replace


def raising(error):
    def run(arguments, overrides):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MorelError("no data: set data.root"), 2, "morel: no data: set data.root"),
        (MorelError("of two\nlines"), 2, "morel: of two lines"),
        (KeyError("lost"), 1, "morel: KeyError: 'lost'"),
        (RuntimeError("first\nsecond"), 1, "morel: RuntimeError: first"),
        (
            RuntimeError(
                "Traceback (most recent call last):\n  File x\nOSError: the store is away"
            ),
            1,
            "morel: RuntimeError: OSError: the store is away",
        ),
        (RuntimeError(), 1, "morel: RuntimeError: "),
        (
            KeyboardInterrupt(),
            130,
            "morel: interrupted; the same command with the same name resumes it",
        ),
    ],
)
def test_one_line_for_whatever_is_raised(command, capsys, error, code, line):
    """And before it where it was, if nobody foresaw it."""
    command(raising(error))
    assert cli.main(["validate"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(line + "\n")
    before = err.removesuffix(line + "\n")
    assert before.startswith("Traceback (most recent call last)") if code == 1 else before == ""


def test_debug_shows_the_traceback_of_an_input_error(command, capsys):
    command(raising(MorelError("no data")))
    assert cli.main(["validate", "--debug"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("morel: no data\n")


def test_overrides_may_stand_anywhere(command):
    seen = {}

    def run(arguments, overrides):
        seen.update(vars(arguments), overrides=overrides)
        return 0

    command(run)
    argv = ["validate", "seed=1", "digits", "training.epochs=3", "demo", "--json", "a.b=c=d"]
    assert cli.main(argv) == 0
    assert seen["files"] == ["digits", "demo"]
    assert seen["json"] is True
    assert seen["overrides"] == ["seed=1", "training.epochs=3", "a.b=c=d"]


def test_validate_prints_json_and_nothing_else(capsys):
    assert cli.main(["validate", "digits", "smoke", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    recipe, search = json.loads(out)
    assert (recipe["file"], recipe["kind"]) == ("digits", "recipe")
    assert "digits_cnn on digits, trades, 12 epochs" in recipe["summary"]
    assert (search["file"], search["kind"]) == ("smoke", "search")
    assert "2 trials of 'digits' over objective.alpha" in search["summary"]


def test_validate_says_ok_for_each(capsys):
    assert cli.main(["validate", "digits", "training.epochs=3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ok  digits: recipe, ")
    assert "3 epochs" in out
