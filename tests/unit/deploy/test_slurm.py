"""`deploy/slurm.sh` with stand-ins for Slurm, Ray and the command: what it starts and returns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "slurm.sh"
STAND_INS = {
    # Slurm runs what follows its options, here on this machine.
    "srun": 'echo "srun $*" >> "$CALLS"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "printf 'node%s\\n' 1 2 3",
    "ray": """cat "$RAY_AUTH_TOKEN_PATH" > "$CALLS.token"
rights=$(stat -c %a "$RAY_AUTH_TOKEN_PATH")
echo "ray $* mode=$RAY_AUTH_MODE token=$rights" >> "$CALLS"
exec sleep 60""",
    # The nodes that have joined; the command itself; anything else is Python's.
    "python": f"""started=$(grep -c ^ray "$CALLS")
if [[ $2 == *ray.nodes* ]]; then echo "${{JOINED:-$started}}"; exit; fi
if [[ $1 == -m ]]; then
  echo "command $* at $RAY_ADDRESS" >> "$CALLS"
  [ -z "${{LONG:-}}" ] && exit "$CODE"
  trap 'echo saved >> "$CALLS"; exit "$CODE"' TERM
  sleep 60 & wait
fi
exec {sys.executable} "$@\"""",
}


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Start the script as Slurm would in a folder of its own; returns its process."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, body in STAND_INS.items():
        (bin / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin / name).chmod(0o755)
    environment = {
        "PATH": f"{bin}:/usr/bin:/bin",
        "MOREL_BIN": str(bin),
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "123",
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_GPUS_ON_NODE": "4",
        "MOREL_WAIT_S": "20",
    }
    started: list[subprocess.Popen[str]] = []

    def begin(**extra: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", str(SCRIPT), "tune", "demo", "name=a b"],
            cwd=tmp_path,
            env=environment | extra,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def calls(folder: Path, of: str) -> list[str]:
    lines = (folder / "calls").read_text().splitlines()
    return [line.removeprefix(f"{of} ") for line in lines if line.startswith(f"{of} ")]


def test_bash_reads_it_and_slurm_would_find_its_options_first() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    lines = SCRIPT.read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH ")]
    assert lines[1 : 1 + len(options)] == options  # sbatch stops looking at the first command


@pytest.mark.parametrize("code", [0, 3])
def test_head_workers_and_command(start: Any, tmp_path: Path, code: int) -> None:
    assert start(CODE=str(code)).wait(60) == code
    head, *workers = sorted(calls(tmp_path, "ray"), key=lambda line: "--head" not in line)
    assert "start --head --block --port=20123 --dashboard-host=127.0.0.1" in head
    assert '--num-cpus=32 --num-gpus=4 --resources={"control": 64}' in head
    assert len(workers) == 2
    for line in workers:
        assert line.startswith("start --block --address=node1:20123 --num-cpus=32 --num-gpus=4")
    for line in (head, *workers):
        assert line.endswith("mode=token token=600")
    placed = calls(tmp_path, "srun")
    assert sorted(line.partition("--nodelist=")[2].split()[0] for line in placed) == [
        *("node1", "node2", "node3"),
    ]
    assert all(line.startswith("--overlap --nodes=1 --ntasks=1 ") for line in placed)
    (command,) = calls(tmp_path, "command")
    assert command == "-m orchestrator tune demo name=a b at node1:20123"


def test_token_is_on_no_command_line_and_gone_at_the_end(start: Any, tmp_path: Path) -> None:
    assert start(CODE="0").wait(60) == 0
    token = (tmp_path / "calls.token").read_text().strip()
    assert len(token) == 64
    assert token not in (tmp_path / "calls").read_text()
    assert not list(tmp_path.glob(".ray-token-*"))


def test_signal_reaches_the_command_whose_exit_code_it_is(start: Any, tmp_path: Path) -> None:
    process = start(CODE="130", LONG="1")
    deadline = time.monotonic() + 60
    while not (tmp_path / "calls").exists() or not calls(tmp_path, "command"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # the stand-in has set its trap
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert "saved" in (tmp_path / "calls").read_text()


def test_node_that_does_not_join_is_an_error(start: Any, tmp_path: Path) -> None:
    process = start(CODE="0", JOINED="2", MOREL_WAIT_S="2")
    assert process.wait(60) == 1
    assert "2 of 3 nodes have joined the Ray at node1:20123" in process.stderr.read()
    assert calls(tmp_path, "command") == []
