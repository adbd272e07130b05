"""A fresh PostgreSQL on loopback, from Debian's package ``postgresql``."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from servers import free_port


def programs() -> Path | None:
    """The folder of initdb and postgres: Debian does not put it on the path."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in versions), key=lambda p: float(p.parent.name), default=None)


@contextmanager
def postgres() -> Iterator[str]:
    """SQLAlchemy's URI of an empty database; skips where PostgreSQL is not installed."""
    there = programs()
    if there is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # Not below pytest's folders, which are root's alone where the tests run as root.
    folder = Path(tempfile.mkdtemp(prefix="morel-postgres-"))
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    port, password = free_port(), secrets.token_hex(16)
    (folder / "password").touch(mode=0o600)
    (folder / "password").write_text(password)
    if user:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    how = {"user": user, "cwd": folder, "stdin": subprocess.DEVNULL}
    create = [there / "initdb", "-D", "data", "-U", "morel", "--no-sync", "-E", "UTF8"]
    create += ["-A", "scram-sha-256", "--pwfile", "password"]
    serve = [there / "postgres", "-D", "data", "-h", "127.0.0.1", "-p", str(port)]
    serve += ["-k", folder, "-c", "fsync=off"]
    try:
        with (folder / "log").open("wb") as log:
            subprocess.run(create, check=True, stdout=log, stderr=log, **how)
            server = subprocess.Popen(serve, stdout=log, stderr=log, **how)
        try:
            uri = f"postgresql+psycopg2://morel:{password}@127.0.0.1:{port}/postgres"
            _wait(uri, server, folder / "log")
            yield uri
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(uri: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg2.connect(uri.replace("+psycopg2", "")).close()
            return
        except psycopg2.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
