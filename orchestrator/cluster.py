"""Reaching Ray: a running cluster or a local one, and whether what is asked for is there."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from morel_core.errors import ConfigError, MorelError
from orchestrator.config import RunConfig, ScalingConfig, tracking_uri
from orchestrator.driver.ending import terminable
from orchestrator.messages.masking import masked_address

ADDRESS = "RAY_ADDRESS"
HOST_AND_PORT = re.compile(r"(?:ray://)?\[?([\w.:-]+?)\]?:(\d{1,5})")
ANSWER_S = 5.0
"""For a cluster to take a connection: Ray itself would try again for a quarter of an hour."""
CONTROL = "control"  # resource of nodes that hold drivers and controllers, not training
MLFLOW_CREDENTIALS = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
# Ray reads these when it starts; a user's own setting wins.
RAY_ENVIRONMENT = {
    # A report waits for the controller's next poll: 2 s would be most of a small run.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables: ours stands in their place
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `orchestrator.search.watch` has its own
}


def cluster_address(config: RunConfig) -> str | None:
    """The address of the Ray to join; None for a local Ray of this command's own."""
    return config.cluster.address or os.environ.get(ADDRESS) or None


def check_address(config: RunConfig) -> None:
    """Raise `MorelError` if nothing listens where the Ray to join should be.

    A dashboard's address is refused; only ``host:port`` and ``ray://host:port`` are tried: what
    others mean is Ray's business.
    """
    address = cluster_address(config)
    if address is None:
        return
    key = "cluster.address" if config.cluster.address else ADDRESS
    place = HOST_AND_PORT.fullmatch(address)
    if place is None:
        if address.startswith(("http://", "https://")):
            raise ConfigError(
                key,
                masked_address(address),
                "host:port (or auto, on a node of the cluster): an http:// address is its "
                "dashboard's, which morel submit takes",
            )
        return
    try:
        socket.create_connection((place[1], int(place[2])), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise unreachable(config, getattr(error, "strerror", None) or str(error)) from error


def unreachable(config: RunConfig, reason: str) -> MorelError:
    """The Ray of ``config`` does not answer, and what to do about it."""
    address = cluster_address(config)
    if address is None:
        return MorelError(f"a local Ray cannot be reached: {reason}")
    key = "cluster.address" if config.cluster.address else ADDRESS
    return MorelError(
        f"the Ray cluster at {key} = {address!r} cannot be reached: {reason}; start it, correct "
        "the address (host:port, or auto), or leave it out for a local Ray"
    )


def local_resources() -> tuple[float, float]:
    """(CPUs, GPUs) of this machine, without starting Ray."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return float(cpus or 1), float(torch.cuda.device_count())


def check_scaling(scaling: ScalingConfig, cpus: float, gpus: float, beside: str = "") -> None:
    """Raise `ConfigError` if the workers ask for more than ``cpus`` and ``gpus``.

    ``beside`` is the setting that asks for what one worker has on top, if there is one.
    """
    workers = scaling.min_workers + bool(beside)
    for kind, each, there in (
        ("gpus_per_worker", scaling.gpus_per_worker, gpus),
        ("cpus_per_worker", scaling.cpus_per_worker, cpus),
    ):
        unit = f"{kind[:3].upper()}s"
        asking = f"{workers} worker(s)" + (", one of them to measure," if beside else "")
        if workers * each > there:
            raise ConfigError(
                beside or f"scaling.{kind}",
                True if beside else each,
                f"{asking} × {each:g} = {workers * each:g} {unit}, but {there:g} are "
                "there: ask for fewer, or give a larger cluster with cluster.address",
            )


def check_tracking(
    config: RunConfig, nodes: int, environment: Mapping[str, str] = os.environ
) -> None:
    """Raise `ConfigError` if MLflow is a SQLite file on a cluster of more than one node."""
    try:
        uri = tracking_uri(config, environment)
    except ConfigError:  # none is known: whoever needs one says so
        return
    if uri.startswith("sqlite:") and nodes > 1:
        raise ConfigError(
            "tracking.uri",
            uri,
            f"not SQLite on a cluster of {nodes} nodes: its file is on one of them and lost with "
            "it, and a driver that goes on elsewhere would not find it; start mlflow server and "
            "write tracking.uri=http://host:5000 (or set MLFLOW_TRACKING_URI)",
        )


@contextmanager
def ray_session(config: RunConfig, *, dashboard: bool) -> Generator[tuple[float, float]]:
    """Ray, joined or started for the time inside; yields the (CPUs, GPUs) it has or can grow to.

    Args:
        config: ``cluster.address`` chooses.
        dashboard: start the local Ray with its dashboard: without it, stopped multi-worker trials
            keep their CPUs.

    Raises:
        ConfigError: MLflow is a SQLite file, and the cluster has more than one node; the address is
            a dashboard's.
        MorelError: the cluster does not answer.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    # A failed trial is recorded with its reason; its traceback stays in its folder.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():  # a notebook's or a test session's own
        check_tracking(config, node_count())
        yield resources()
        return
    check_address(config)
    address = cluster_address(config)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        cpus, _ = local_resources()
        options |= {"address": "local", "include_dashboard": dashboard, "num_cpus": int(cpus)}
        options["resources"] = {CONTROL: 10_000}
        if not dashboard:
            options["dashboard_port"] = unused_port()
    else:
        options["address"] = address
    try:
        if address is None:
            with on_loopback(), without_credentials():
                ray.init(**options)
        else:
            ray.init(**options)
        if address is None:
            own_token()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise unreachable(config, reason) from error
    try:
        check_tracking(config, node_count())
        with terminable():  # `ray.init` has set a handler of its own
            yield resources()
    finally:
        # Ray ends the whole process if another thread frees one of its handles while it shuts down:
        # free the forgotten ones here first.
        gc.collect()
        ray.shutdown()


def unused_port() -> int:
    """A port where nothing listens.

    Without its dashboard Ray notes an address of it all the same, by default port 8265. Another
    Ray of this machine may have its own there, which does not know our runs: Ray Train would take
    their controllers for dead, and their workers away.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def on_loopback() -> Generator[None]:
    """A Ray that is started inside listens on loopback only, as on a laptop under macOS or Windows.

    On Linux its parts would listen on every interface. Whoever has set Ray's own switch, by which
    that is decided, keeps it.
    """
    from ray._private import ray_constants

    switch, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    if switch in os.environ:
        yield
        return
    os.environ[switch] = "0"  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        del os.environ[switch]
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def without_credentials() -> Generator[None]:
    """A Ray that is started inside does not inherit the credentials of MLflow.

    Only the driver speaks to MLflow; a request of its writer in these seconds is repeated.
    """
    names = [name for name in MLFLOW_CREDENTIALS if name in os.environ]
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)


def own_token() -> None:
    """Nobody else may read the token that Ray makes for whoever may run code on it."""
    with contextlib.suppress(OSError):  # none was made, or it is somebody else's
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


@contextmanager
def address_passed_on() -> Generator[None]:
    """Inside, Ray Train tells its own actors the address of the Ray that we are on.

    One of them frees the workers' CPUs when their controller is killed, as that of a stopped trial
    is. Untold, it looks for a Ray on its machine, and gives up where there are several.
    """
    import ray
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.add(ADDRESS)
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if before is None:
            del os.environ[ADDRESS]
        else:
            os.environ[ADDRESS] = before


@contextmanager
def watched_for_hanging(scaling: ScalingConfig) -> Generator[None]:
    """Inside, Ray Train counts a worker as lost that does not answer for ``hang_timeout_s``.

    It then asks the workers to leave their process group, which one that hangs never does: it waits
    for that no longer than 5 s instead of 30.
    """
    from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S as LEAVE
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
    from ray.train.v2._internal.constants import WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR as ANSWER

    ENV_VARS_TO_PROPAGATE.add(LEAVE)
    before = {name: os.environ.get(name) for name in (LEAVE, ANSWER)}
    os.environ |= {ANSWER: str(scaling.hang_timeout_s), LEAVE: before[LEAVE] or "5"}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def on_this_node() -> dict[str, Any]:
    """Options of an actor that takes no CPU and lives and dies with this process's node.

    Left to Ray, it may be put on any node: what passes reports on would go with one that trains.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }


def driver_resources() -> dict[str, float]:
    """What a trial's driver, which only waits for its workers, asks of the cluster we are on.

    A node with a ``control`` resource takes it; without one it needs a sliver of a CPU, since Ray
    has no placement group that asks for nothing.
    """
    import ray

    return {CONTROL: 1} if ray.cluster_resources().get(CONTROL) else {"CPU": 0.01}


def node_count() -> int:
    """Nodes of the cluster we are on; of one that grows by itself, how many it can have."""
    import ray
    from ray._private.state import state

    there = sum(bool(node["Alive"]) for node in ray.nodes())
    grows = state.get_cluster_config()
    more = sum(group.max_count for group in grows.node_group_configs) if grows else 0
    return max(there, 1 + more)


def resources() -> tuple[float, float]:
    """CPUs and GPUs of the cluster we are on; of one that grows by itself, what it can grow to.

    Ray's autoscaler starts nodes for what is asked for: asked for only what is there, it never
    would.
    """
    import ray
    from ray._private.state import state

    there, most = ray.cluster_resources(), state.get_max_resources_from_cluster_config() or {}
    cpus, gpus = (float(max(there.get(kind, 0), most.get(kind, 0))) for kind in ("CPU", "GPU"))
    return cpus, gpus
