"""The cluster that a job goes to: whether it answers, and what it is."""

from __future__ import annotations

import inspect
import json
import logging
import os
import platform
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morel_core.errors import MorelError
from orchestrator import cluster
from orchestrator.cluster import node_count, resources

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = "RAY_API_SERVER_ADDRESS"
DEFAULT = "http://127.0.0.1:8265"
TIMEOUT_S = 5.0
"""For one answer of the cluster's dashboard."""
LOOK_S = 120.0
"""For the job that looks at the cluster: seconds, unless it has no process to run it."""
MARK = "MOREL-FOUND "
TOKEN = (
    "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/path/of/token with the token that the cluster "
    "was started with"
)


@dataclass(frozen=True, kw_only=True)
class There:
    """What a job has found of the cluster."""

    python: str
    ray: str
    nodes: int
    """As it is, or can grow to, like ``cpus`` and ``gpus``."""
    cpus: float
    gpus: float
    packages: dict[str, str | None]
    """Name → version; None: not installed."""
    tracking: str
    """Scheme of the MLFLOW_TRACKING_URI there; empty if there is none."""

    @property
    def environment(self) -> dict[str, str]:
        """What is known of the environment that a driver has there."""
        return {"MLFLOW_TRACKING_URI": f"{self.tracking}://"} if self.tracking else {}


def api_address(given: str | None) -> str:
    """The dashboard's address: as given, else RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine.

    Raises:
        MorelError: it is not an ``http://`` address.
    """
    chosen = given or os.environ.get(ADDRESS) or os.environ.get(cluster.ADDRESS) or DEFAULT
    if not chosen.startswith(("http://", "https://")):
        raise MorelError(
            f"--address {chosen}: write the address of the cluster's dashboard, http://HOST:8265 "
            f"(or set {ADDRESS})"
        )
    return chosen.rstrip("/")


def answers(address: str) -> str | None:
    """Why the dashboard at ``address`` does not answer; None if it does, within `TIMEOUT_S`."""
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code < 500 else f"HTTP {error.code}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster at ``address``, which has let it in.

    Raises:
        MorelError: it does not answer, wants a token or refuses ours, or is no Ray.
    """
    reason = answers(address)
    if reason is not None:
        raise MorelError(
            f"the cluster at {address} does not answer ({reason}): start it, correct --address "
            f"(or {ADDRESS}), or open a tunnel to it (ssh -L 8265:127.0.0.1:8265 HEAD)"
        )
    logging.getLogger("ray.dashboard").setLevel(logging.ERROR)
    os.environ[ADDRESS] = address  # Ray's client takes it before what it is given
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for noisy in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()  # its version is told without a token
    except AuthenticationError as error:
        raise MorelError(_refused(address, str(error))) from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MorelError(f"the cluster at {address} cannot be used: {reason}") from None
    return client


def _refused(address: str, said: str) -> str:
    """What to do about a token that is missing or wrong."""
    if "required" in said.partition("\n")[0]:
        return f"the cluster at {address} wants a token: {TOKEN}"
    return f"the cluster at {address} refuses the token: {TOKEN}"


def look(client: JobSubmissionClient, packages: Sequence[str]) -> There:
    """Look at the cluster from inside, with a job of a few seconds that needs nothing uploaded.

    Args:
        client: of the cluster.
        packages: whose versions are asked for.

    Raises:
        MorelError: the job did not run.
    """
    functions = (resources, node_count, found)
    source = "\n".join(inspect.getsource(function) for function in functions)
    code = (
        f"from __future__ import annotations\nimport json, sys\n{source}\n"
        f"print({MARK!r} + json.dumps(found(sys.argv[1:])))"
    )
    job = client.submit_job(entrypoint=shlex.join(["python", "-c", code, *packages]))
    deadline = time.monotonic() + LOOK_S
    while not (info := client.get_job_info(job)).status.is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(job)
            raise MorelError(
                f"the cluster runs no job: one that only looks at it is {info.status} after "
                f"{LOOK_S:.0f} s ({info.message}): see ray job list and the cluster's dashboard"
            )
        time.sleep(0.3)
    log = client.get_job_logs(job)
    client.delete_job(job)
    line = next((line for line in log.splitlines() if line.startswith(MARK)), None)
    if line is None:
        last = (log.strip().splitlines() or [str(info.message)])[-1]
        raise MorelError(f"the cluster cannot run python and Ray in a job: {last}")
    return There(**json.loads(line.removeprefix(MARK)))


def found(packages: Sequence[str]) -> dict[str, Any]:
    """As `There`; runs there, where no module of this project is imported."""
    import logging
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import ray

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    cpus, gpus = resources()
    return {
        "python": platform.python_version(),
        "ray": ray.__version__,
        "nodes": node_count(),
        "cpus": cpus,
        "gpus": gpus,
        "packages": {name: installed(name) for name in packages},
        "tracking": os.environ.get("MLFLOW_TRACKING_URI", "").partition(":")[0],
    }


def check_versions(there: There, folder: Path) -> list[str]:
    """What differs between here and ``there`` and may be so, a line each.

    Args:
        there: what was found.
        folder: the checkout, whose ``pyproject.toml`` says what its code needs.

    Raises:
        MorelError: Python or a package there is missing or of a version that the code is not for.
    """
    import ray
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    project = _project(folder)
    python = SpecifierSet(project["requires-python"])
    if there.python not in python:
        raise MorelError(f"the cluster's Python is {there.python}, the code needs {python}")
    wrong: list[str] = []
    for text in project["dependencies"]:
        need = Requirement(text)
        version = there.packages.get(need.name)
        if version is None:
            wrong.append(f"{need.name} is missing")
        elif not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} is {version}, not {need.specifier}")
    if wrong:
        raise MorelError(
            f"the cluster's image does not do: {', '.join(wrong)}: install what pyproject.toml "
            "lists under dependencies on every node"
        )
    pairs = [
        ("Python", platform.python_version(), there.python),
        ("Ray", ray.__version__, there.ray),
        (project["name"], project["version"], there.packages.get(project["name"])),
    ]
    return [
        f"{name} is {here} here, {other} there"
        + ("; the uploaded code is used" if name == project["name"] else "")
        for name, here, other in pairs
        if other is not None and here != other
    ]


def needed_packages(folder: Path) -> list[str]:
    """Names of this project and of what its ``pyproject.toml`` depends on."""
    from packaging.requirements import Requirement

    project = _project(folder)
    return [project["name"], *(Requirement(text).name for text in project["dependencies"])]


def _project(folder: Path) -> Mapping[str, Any]:
    import tomllib

    path = folder / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text())["project"]
    except (OSError, ValueError, KeyError) as error:
        raise MorelError(f"{path}: cannot be read as the project's own: {error}") from None
