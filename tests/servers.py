"""A real ``mlflow server`` in a process group of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_mlflow(
    folder: Path,
    port: int,
    *,
    database: str | None = None,
    artifacts: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """The server at ``http://127.0.0.1:port``, once it answers.

    Unless told otherwise by URIs, all it has lies in ``folder``. ``environment`` is added to ours.
    """
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"),
        *("--port", str(port), "--backend-store-uri", database or f"sqlite:///{folder}/server.db"),
        *("--artifacts-destination", artifacts or str(folder / "artifacts")),
    ]
    environment = {**os.environ, **(environment or {})}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, (folder / "server.log").read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return server
        except OSError:
            time.sleep(0.2)
    kill_group(server)
    raise AssertionError("the server did not come up: " + (folder / "server.log").read_text())


def kill_group(server: subprocess.Popen[bytes]) -> None:
    """Kill the server with the workers it started: the group that is its own."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)
