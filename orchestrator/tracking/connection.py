"""Reaching MLflow, or saying within seconds and in one line why that is not possible."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import ssl
import urllib.error
import urllib.request
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from morel_core.errors import MorelError
from orchestrator.messages.masking import masked, masked_address

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PROBE_S = 4.0
_LOCAL = "tracking.uri=sqlite:////absolute/path/mlflow.db"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

# Set only where the user has not: by default a dead server blocks each call for four minutes,
# results and progress bars are printed, and names of experiments are sent to MLflow's makers.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of the database that a ``sqlite:`` URI names; None for other URIs."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


def open_client(uri: str, *, create: bool) -> MlflowClient:
    """A client of the MLflow at ``uri`` that has answered once.

    Args:
        uri: ``http(s)://host:port``, ``sqlite:////path/mlflow.db`` or another SQLAlchemy address.
        create: initialise a SQLite database that is not there yet. Only one process may do that.

    Raises:
        MorelError: within 10 seconds, where nothing answers or the address is not one.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("http", "https"):
        _probe_http(uri)
    elif scheme == "sqlite":
        _probe_sqlite(uri, create=create)
    elif scheme in _PORTS:
        _probe_port(uri, _PORTS[scheme])
    elif scheme in ("", "file") or len(scheme) == 1:  # one letter: a Windows drive
        raise MorelError(
            f"tracking.uri = {uri!r}: MLflow 3 keeps no runs in plain folders; "
            f"write {_LOCAL} or the http:// address of a server"
        )

    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    for noisy in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # The registry lives at the same address; left unset it would be read from the environment.
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        raise _unreachable(uri, _first_line(error)) from error
    return client


def _unreachable(uri: str, reason: str) -> MorelError:
    return MorelError(
        f"MLflow at tracking.uri = {masked_address(uri)} does not answer "
        f"({masked(reason)}): start it, correct the address, or record into a local file with "
        f"{_LOCAL}"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _probe_http(uri: str) -> None:
    """One bounded request: MLflow's own calls wait and retry for minutes."""
    try:
        parts = urlsplit(uri)  # urllib would take a user and password for part of the host
        address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        with urllib.request.urlopen(f"{address.rstrip('/')}/health", timeout=_PROBE_S):
            return
    except urllib.error.HTTPError:
        return  # something is there; MLflow's client will say what is wrong
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return  # MLflow's client may have been told of a certificate
        raise _unreachable(uri, str(error.reason)) from error
    except (OSError, ValueError, HTTPException) as error:
        raise _unreachable(uri, _first_line(error)) from error


def _probe_port(uri: str, default_port: int) -> None:
    try:
        parts = urlsplit(uri)
        if parts.hostname is None:  # a socket file, or parameters in the query
            return
        address = parts.hostname, parts.port or default_port
        socket.create_connection(address, timeout=_PROBE_S).close()
    except (OSError, ValueError) as error:
        raise _unreachable(uri, _first_line(error)) from error


def _probe_sqlite(uri: str, *, create: bool) -> None:
    """See that the file can be written: SQLAlchemy would retry for two minutes."""
    path = sqlite_path(uri)
    if not uri.startswith("sqlite:///") or path is None or path.is_dir():
        raise MorelError(f"tracking.uri = {uri!r}: names no file; write {_LOCAL}")
    if not create and not path.exists():
        raise MorelError(
            f"tracking.uri = {uri}: there is no file {path}; nothing was recorded there yet, or "
            "the address is another one"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_PROBE_S)) as database:
            database.execute("BEGIN IMMEDIATE" if create else "PRAGMA schema_version")
            database.rollback()
    except (OSError, sqlite3.Error) as error:
        raise MorelError(
            f"tracking.uri = {uri}: {path} cannot be used ({error}); write {_LOCAL} with a "
            "path that is writable"
        ) from error
