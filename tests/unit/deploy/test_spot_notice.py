"""`deploy/spot_notice.py` against a metadata service of AWS's kind on loopback."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "spot_notice.py"
TOKEN = "a-token-of-the-metadata-service"


@dataclass
class Metadata:
    """What the service answers, and which paths were asked for."""

    answers: list[str | None]
    """One for each look; the last one stays. None: no notice."""
    asked: list[str] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    end = datetime.now(UTC) + timedelta(seconds=120)
    announced = {"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")}
    service = Metadata([None, "not JSON", json.dumps(announced)])

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code: int, text: str = "") -> None:
            service.asked.append(f"{self.command} {self.path}")
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_PUT(self) -> None:
            valid = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            self.answer(200, TOKEN) if valid else self.answer(400)

        def do_GET(self) -> None:
            if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
                return self.answer(401)
            text = service.answers[0]
            if len(service.answers) > 1:
                service.answers.pop(0)
            return self.answer(404) if text is None else self.answer(200, text)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service.address = f"http://127.0.0.1:{server.server_port}"
    yield service
    server.shutdown()
    server.server_close()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the `ray` of this test notes what it was called with; its first call fails."""
    noted, ray = tmp_path / "calls", tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text(f'#!/bin/sh\necho "$*" >> {noted}\n[ "$(wc -l < {noted})" -gt 1 ]\n')
    ray.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ray.parent}:{os.environ['PATH']}")
    return noted


def poll(metadata: Metadata, lock: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--metadata", metadata.address),
            *("--every", "0.05", "--lock", str(lock), "--node-id", "ab12"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_notice_drains_the_node_whatever_goes_wrong_before(
    metadata: Metadata, calls: Path, tmp_path: Path
) -> None:
    done = poll(metadata, tmp_path / "lock")
    assert done.returncode == 0, done.stderr
    failed, drained = calls.read_text().splitlines()
    assert drained.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    assert "AWS will terminate this spot instance" in drained
    seconds = int(drained.partition("--deadline-remaining-seconds ")[2].split()[0])
    assert 60 < seconds <= 110  # two minutes, less what Ray does not get
    assert drained.endswith("--node-id ab12")
    assert failed.partition("--deadline")[0] == drained.partition("--deadline")[0]
    # No notice, an unreadable one, one that Ray did not hear of, one that it did.
    assert len([path for path in metadata.asked if path.startswith("GET")]) == 4
    assert done.stderr.count("looking again") == 2


def test_second_poller_on_a_machine_ends_at_once(
    metadata: Metadata, calls: Path, tmp_path: Path
) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert poll(metadata, tmp_path / "lock").returncode == 0
    assert not calls.exists()
    assert metadata.asked == []
