"""`morel train` as a process of its own: what it writes holds no secret, what it opens is local."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from servers import free_port, kill_group, start_mlflow

PLANTED = {
    "MLFLOW_TRACKING_USERNAME": "planted-user-name",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "MLFLOW_TRACKING_TOKEN": "planted-mlflow-token",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret-key",
    "HF_TOKEN": "planted-hub-token",
}
IN_ADDRESS = "planted-address-password"


@dataclass
class Run:
    """What a run left behind, and where its processes listened."""

    output: str
    folder: Path
    """Holds all that was written: storage, MLflow's database, Ray's logs, the home folder."""
    listening: dict[tuple[str, int], str] = field(default_factory=dict)
    """(address, port) → name of the process."""


def watch(process: subprocess.Popen[str], run: Run) -> None:
    """Note where the process and those that it starts listen, until it ends."""
    ours = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            found = [ours, *ours.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        for one in found:
            try:
                for connection in one.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        run.listening[connection.laddr] = " ".join(one.cmdline())[:200]
            except psutil.Error:
                continue
        time.sleep(0.5)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Two workers, MLflow behind a server whose address holds a password, secrets all around."""
    with tempfile.TemporaryDirectory(prefix="ms-", dir="/tmp", ignore_cleanup_errors=True) as made:
        folder = Path(made)  # short: Ray's sockets lie in it
        (folder / "home").mkdir()
        port = free_port()
        server = start_mlflow(folder, port)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        environment |= PLANTED | {
            "HOME": str(folder / "home"),
            "RAY_TMPDIR": str(folder),
            "MLFLOW_TRACKING_URI": f"http://planted-user:{IN_ADDRESS}@127.0.0.1:{port}",
        }
        command = [
            *(sys.executable, "-m", "orchestrator", "train", "digits", "name=secretive"),
            *("training.epochs=1", "data.holdout=60", "data.train_size=320", "data.test_size=60"),
            *("model.width=4", "attack.num_steps=1", "evaluation.attack.num_steps=1"),
            *("scaling.num_workers=2", f"storage_path={folder}/runs"),
        ]
        result = Run("", folder)
        try:
            with (folder / "output").open("w") as output:
                process = subprocess.Popen(
                    command, env=environment, stdout=output, stderr=output, text=True
                )
                watch(process, result)
            result.output = (folder / "output").read_text()
            assert process.returncode == 0, result.output
        finally:
            kill_group(server)
        yield result


def test_no_secret_is_written_anywhere(run: Run) -> None:
    token = (run.folder / "home" / ".ray" / "auth_token").read_text().strip()  # Ray made it
    secrets = [*PLANTED.values(), IN_ADDRESS, token]
    seen, found = 0, []
    for path in run.folder.rglob("*"):
        if path.is_file() and path.name != "auth_token":
            content = path.read_bytes()
            seen += 1
            found += [(str(path), secret) for secret in secrets if secret.encode() in content]
    assert not found
    names = {path.name for path in run.folder.rglob("*")}
    assert {"definition.json", "events.jsonl", "gcs_server.out", "output"} <= names
    assert seen > 30
    assert (run.folder / "home" / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


def test_result_says_where_it_is_recorded(run: Run) -> None:
    assert "open http://***@127.0.0.1:" in run.output


def test_only_loopback_is_listened_on(run: Run) -> None:
    assert any("gcs_server" in name for name in run.listening.values())
    beyond = {}
    for (address, port), name in run.listening.items():
        here = ipaddress.ip_address(address)
        mapped = getattr(here, "ipv4_mapped", None) or here
        if not mapped.is_loopback:
            beyond[address, port] = name
    # torch's rendezvous of data-parallel workers has no such setting: SECURITY.md says so.
    assert len(beyond) <= 1, beyond
    assert all("RayTrainWorker" in name for name in beyond.values()), beyond


def test_what_is_written_is_the_owners_alone(run: Run) -> None:
    assert (run.folder / "runs").stat().st_mode & 0o077 == 0
