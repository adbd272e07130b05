"""`ray job submit` to a cluster with token authentication, as a user does it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import recorded

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Environment of a shell that may submit jobs to a head of its own, stopped by pid."""
    folder = Path(tempfile.mkdtemp(prefix="rj-", dir="/tmp"))  # Ray's sockets need a short path
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard = free_port(), free_port()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MOREL_"))
    }
    environment |= {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    head = subprocess.Popen(
        [
            *("ray", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"),
            *(f"--dashboard-port={dashboard}", "--num-cpus=2", f"--temp-dir={folder}/ray"),
            f"--ray-client-server-port={free_port()}",
            # Its default is taken where another Ray runs, and then there is no agent for jobs.
            f"--dashboard-agent-listen-port={free_port()}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys, time\n"
                "from ray.job_submission import JobSubmissionClient\n"
                "for _ in range(120):\n"
                "    try:\n"
                "        JobSubmissionClient(sys.argv[1]).list_jobs(); break\n"
                "    except Exception: time.sleep(0.5)\n"
                "else: raise SystemExit('the head did not come up')\n",
                environment["RAY_API_SERVER_ADDRESS"],
            ],
            env=environment,
            check=True,
        )
        yield environment | {"FOLDER": str(folder)}
    finally:
        ours = psutil.Process(head.pid)
        for process in [*ours.children(recursive=True), ours]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def submit(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", "job", "submit", "--working-dir", ".", "--", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def test_search_as_a_job_records_the_same(cluster: dict[str, str]) -> None:
    storage = Path(cluster["FOLDER"]) / "runs"
    done = submit(
        cluster,
        *("python", "-m", "orchestrator", "tune", "smoke"),
        *(f"storage_path={storage}", "name=jobbed", "overrides.model.width=4"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 1/2 paper: all 2 epochs trained" in done.stdout
    parent = recorded.one(storage, "jobbed")
    children = recorded.runs(storage, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == 2
    assert {run.data.tags["morel.stop_reason"] for run in children} == {"all 2 epochs trained"}
    assert any(key.startswith("test.robust.pgd") for key in parent.data.metrics)


def test_relative_storage_is_refused_in_a_job(cluster: dict[str, str]) -> None:
    refused = submit(cluster, "python", "-m", "orchestrator", "tune", "smoke", "storage_path=runs")
    assert refused.returncode == 1  # of the submit command: the job failed
    assert "storage_path = 'runs': must be absolute in a Ray job" in refused.stdout


def test_missing_token_is_refused(cluster: dict[str, str]) -> None:
    without = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH")}
    without |= {"HOME": cluster["FOLDER"]}
    refused = submit(without, "python", "-c", "print('ran')")
    assert refused.returncode != 0
    assert "ran" not in refused.stdout
