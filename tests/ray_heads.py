"""A Ray head with token authentication, in processes of its own, as `ray start` makes it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from servers import free_port

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# No process of the cluster finds an installed copy of this project: only what a job brings.
UNINSTALLED = f"""
import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in finder.__module__]
sys.path[:] = [folder for folder in sys.path if folder != {str(ROOT)!r}]
"""


class Head:
    """A node that takes jobs, with ``num_cpus`` CPUs; killed by pid, may be started again.

    ``environment`` is that of a shell that may submit jobs to it.
    """

    def __init__(self, num_cpus: int = 2) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rj-", dir="/tmp"))  # sockets: a short path
        self.num_cpus = num_cpus
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        (self.folder / "site").mkdir()
        (self.folder / "site" / "sitecustomize.py").write_text(UNINSTALLED)
        names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
        # The agent's default is taken where another Ray runs, and then there is none for jobs.
        self.ports = {name: free_port() for name in names}
        self.address = f"http://127.0.0.1:{self.ports['dashboard-port']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MOREL_"))}
        self.environment = kept | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_API_SERVER_ADDRESS": self.address,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def inside(self) -> dict[str, str]:
        """Environment of the processes of the cluster."""
        return self.environment | {"PYTHONPATH": str(self.folder / "site")}

    def start(self) -> None:
        """Start it, and wait until it takes jobs."""
        command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
        command += [f"--{name}={port}" for name, port in self.ports.items()]
        command += [f"--num-cpus={self.num_cpus}", f"--temp-dir={self.folder}/ray"]
        with (self.folder / "head.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.inside, stdout=log, stderr=log, cwd=self.folder
            )
        code = (
            "import sys, time\n"
            "from ray.job_submission import JobSubmissionClient\n"
            "for _ in range(240):\n"
            "    try:\n"
            "        JobSubmissionClient(sys.argv[1]).list_jobs(); break\n"
            "    except Exception: time.sleep(0.5)\n"
            "else: raise SystemExit('the head did not come up')\n"
        )
        subprocess.run([sys.executable, "-c", code, self.address], env=self.inside, check=True)

    def add_node(self) -> None:
        """Start one more node without CPUs, and wait until it has joined; killed with the head."""
        command = ["ray", "start", f"--address=127.0.0.1:{self.ports['port']}", "--num-cpus=0"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        subprocess.run(
            command, env=self.inside, cwd=self.folder, check=True, capture_output=True, timeout=120
        )

    def kill(self) -> None:
        """SIGKILL the node with all that runs on it."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            ours = psutil.Process(self.process.pid)
            processes = [*ours.children(recursive=True), ours]
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        # Workers and drivers are in sessions of their own.
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and (left := self.processes()):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.1)
        self.process.wait(timeout=30)
        self.process = None

    def processes(self) -> list[psutil.Process]:
        """All that belong to it, by what is in their environment alone."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if f"{self.folder}/site" in process.environ().get("PYTHONPATH", ""):
                    found.append(process)
        return found

    def remove(self) -> None:
        """Kill it and remove its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
