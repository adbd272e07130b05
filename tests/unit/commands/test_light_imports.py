"""Commands that train nothing, and mistakes, answer without the seconds that torch imports for."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "mlflow")
SCRIPT = f"""
import contextlib, io, json, sys
from orchestrator import cli
storage, commands = sys.argv[1], json.loads(sys.argv[2])
found = {{}}
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = cli.main([*command.split(), f"storage_path={{storage}}"])
        except SystemExit as end:
            code = end.code
    found[command] = [code, [name for name in {HEAVY} if name in sys.modules]]
from mlflow import MlflowClient
found["the client of MLflow"] = [0, ["torch"] if "torch" in sys.modules else []]
print(json.dumps(found))
"""
DONE, MISTAKE = 0, 2
COMMANDS = {
    "--help": DONE,
    "compare --help": DONE,
    "compare": MISTAKE,  # nothing is recorded there
    "status hunt": MISTAKE,
    "top hunt --json": MISTAKE,
    "logs hunt": MISTAKE,
    "stop hunt": MISTAKE,
    "validate digits": DONE,
    "train digits training.epoch=5": MISTAKE,
    "train digits model.width=0": MISTAKE,
    "tune smoke num_trial=5": MISTAKE,
    "tune smoke attack.eps=8": MISTAKE,
    "campaign paper_comparison seed=3": MISTAKE,
    "evaluate hunt tracking.ur=x": MISTAKE,
}
"""Each with its exit code, in one process: the first that imports too much fails, and all later."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    storage = tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-c", SCRIPT, str(storage), json.dumps(list(COMMANDS))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_no_more_than_it_needs(found, command):
    assert found[command] == [COMMANDS[command], []]


def test_mlflow_does_not_bring_torch(found):
    assert found["the client of MLflow"] == [0, []]
