"""An MLflow that cannot be had is reported at once, in one line that says what to do."""

import socket
import subprocess
import sys
import time

import pytest

from morel_core.errors import MorelError
from orchestrator.messages.masking import masked_address
from orchestrator.tracking import MlflowTracker
from orchestrator.tracking.connection import open_client


def refusal(uri, create=True):
    before = time.monotonic()
    with pytest.raises(MorelError) as caught:
        open_client(uri, create=create)
    assert time.monotonic() - before < 10
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "http://no-such-host.invalid:5000", "http://127.0.0.1:notaport"]
)
def test_nothing_there(uri):
    before = time.monotonic()
    with pytest.raises(MorelError) as caught:
        MlflowTracker.connect(uri, "demo")
    assert time.monotonic() - before < 10
    message = str(caught.value)
    assert uri in message
    assert "tracking.uri=sqlite:///" in message
    assert "\n" not in message


def test_a_port_that_accepts_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "does not answer" in refusal(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_database_server_that_is_down_does_not_show_its_password():
    message = refusal("postgresql://user:hunter2@127.0.0.1:9/mlflow")
    assert "127.0.0.1:9" in message
    assert "hunter2" not in message


def test_passwords_are_masked():
    assert masked_address("https://me:pw@host/x") == "https://***@host/x"
    assert masked_address("http://host:5000") == "http://host:5000"


@pytest.mark.parametrize("uri", ["", "mlruns", "/tmp/mlruns", "file:///tmp/mlruns", "C:\\mlruns"])
def test_plain_folders(uri):
    message = refusal(uri)
    assert repr(uri) in message
    assert "sqlite:///" in message


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:mlflow.db", "sqlite:////"])
def test_sqlite_without_a_file(uri):
    assert "names no file" in refusal(uri)


def test_sqlite_that_is_no_database(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_text("certainly not a database, " * 10)
    assert "cannot be used" in refusal(f"sqlite:///{path}")


def test_sqlite_in_a_place_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be used" in refusal(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_reading_does_not_make_a_database(tmp_path):
    assert "there is no file" in refusal(f"sqlite:///{tmp_path}/mlflow.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_importing_does_not_import_mlflow():
    code = (
        "import sys, orchestrator.tracking, orchestrator.compare;"
        "sys.exit(any(name in sys.modules for name in ('mlflow', 'ray', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
