"""What holds inside a Ray job, whose working directory is a cache that Ray empties."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from morel_core.errors import check

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a job
_judged_as_job: ContextVar[bool] = ContextVar("judged_as_job", default=False)


def in_job() -> bool:
    """Whether this process is the driver of a Ray job, or judges a config for one."""
    return JOB in os.environ or _judged_as_job.get()


@contextmanager
def as_in_job() -> Generator[None]:
    """Inside, configs are judged as in a Ray job: what `morel submit` sends must hold there."""
    token = _judged_as_job.set(True)
    try:
        yield
    finally:
        _judged_as_job.reset(token)


def check_absolute(key: str, path: str | None) -> None:
    """Raise `ConfigError` if ``path`` is relative in a Ray job; a URI or ``~`` is not."""
    if path is None or "://" in path or not in_job():
        return
    check(
        Path(path).expanduser().is_absolute(),
        key,
        path,
        "must be absolute in a Ray job: the job's working directory vanishes with it",
    )


def check_written(key: str, path: str | None) -> None:
    """As `check_absolute`, for what a command writes: no URI, and by default into its folder."""
    if in_job():
        check(
            path is not None and Path(path).expanduser().is_absolute(),
            key,
            path,
            f"must be absolute in a Ray job, as in {key} /shared/result: the job's working "
            "directory, where it would be written, vanishes with it",
        )


def check_database(key: str, uri: str | None) -> None:
    """As `check_absolute`, for the file that a ``sqlite:`` URI names."""
    if uri is None or not uri.startswith("sqlite:") or not in_job():
        return
    check(
        uri.startswith("sqlite:////"),
        key,
        uri,
        "must name an absolute file in a Ray job, with four slashes (sqlite:////folder/mlflow.db): "
        "the job's working directory vanishes with it",
    )


def check_environment() -> None:
    """Raise `ConfigError` if a job's environment has a relative path where configs look for one."""
    if JOB in os.environ:
        check_absolute("MOREL_DATA_ROOT", os.environ.get("MOREL_DATA_ROOT"))
        check_database("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI"))
