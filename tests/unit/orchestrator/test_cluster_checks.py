"""Whether what is asked for is there, without starting Ray."""

import re
import socket

import pytest

from morel_core import ConfigError, MorelError
from orchestrator import cluster
from orchestrator.cluster import (
    check_address,
    check_scaling,
    check_tracking,
    cluster_address,
    local_resources,
    ray_session,
)
from orchestrator.config import ClusterConfig, RunConfig, ScalingConfig, TrackingConfig


def test_enough():
    check_scaling(ScalingConfig(num_workers=4, cpus_per_worker=2, gpus_per_worker=0.5), 8, 2)


@pytest.mark.parametrize(
    ("asked", "there", "message"),
    [
        (
            {"num_workers": 2, "gpus_per_worker": 1},
            (8, 1),
            r"^scaling\.gpus_per_worker = 1: 2 worker\(s\) × 1 = 2 GPUs, but 1 are there: ask for",
        ),
        (
            {"num_workers": 3, "cpus_per_worker": 3},
            (8, 0),
            r"^scaling\.cpus_per_worker = 3: 3 worker\(s\) × 3 = 9 CPUs, but 8 are there: ask for",
        ),
    ],
)
def test_too_little(asked, there, message):
    with pytest.raises(ConfigError, match=message):
        check_scaling(ScalingConfig(**asked), *there)


def test_measuring_beside_training_needs_room():
    asked = ScalingConfig(num_workers=2)
    check_scaling(asked, 3, 0, beside="evaluation.asynchronous")
    with pytest.raises(
        ConfigError,
        match=r"^evaluation\.asynchronous = True: 3 worker\(s\), one of them to measure, × 1 = 3",
    ):
        check_scaling(asked, 2, 0, beside="evaluation.asynchronous")


def test_address(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    chosen = RunConfig(cluster=ClusterConfig(address="10.0.0.1:6379"))
    assert cluster_address(RunConfig()) is None
    assert cluster_address(chosen) == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster_address(RunConfig()) == "auto"
    assert cluster_address(chosen) == "10.0.0.1:6379"


@pytest.mark.parametrize("key", ["cluster.address", "RAY_ADDRESS"])
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (
            "127.0.0.1:9",
            r"the Ray cluster at {key} = '127\.0\.0\.1:9' cannot be reached: .*refused; ",
        ),
        ("ray://[::1]:9", r"the Ray cluster at {key} = 'ray://\[::1\]:9' cannot be reached: "),
        ("127.0.0.1:99999", r"the Ray cluster at {key} = '127\.0\.0\.1:99999' cannot be reached: "),
        ("http://h:8265", r"{key} = 'http://h:8265': host:port \(or auto, .* morel submit takes"),
    ],
)
def test_a_cluster_that_is_not_there_is_named_before_ray_tries(monkeypatch, key, address, reason):
    import ray

    def refuse(**options):
        raise AssertionError("Ray was asked")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "auto" if key == "cluster.address" else address)
    given = ClusterConfig(address=address if key == "cluster.address" else None)
    with (
        pytest.raises(MorelError, match=reason.format(key=re.escape(key))),
        ray_session(RunConfig(cluster=given), dashboard=False),
    ):
        pass


def test_a_cluster_that_listens_is_left_to_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://localhost:{port}", "auto", "hosted://name"):
            check_address(RunConfig(cluster=ClusterConfig(address=address)))


def test_local_resources():
    cpus, gpus = local_resources()
    assert cpus >= 1
    assert gpus >= 0


@pytest.mark.parametrize(
    ("there", "most", "expected"),
    [
        ({"CPU": 4.0}, None, (4, 0)),  # a cluster of fixed size
        ({"CPU": 4.0, "GPU": 1.0}, {"CPU": 64, "GPU": 8}, (64, 8)),  # 7 of 8 nodes not started yet
        ({"CPU": 4.0, "GPU": 1.0}, {"GPU": 8}, (4, 8)),
    ],
)
def test_a_cluster_that_grows_counts_at_its_largest(monkeypatch, there, most, expected):
    import ray
    from ray._private.state import GlobalState

    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(GlobalState, "get_max_resources_from_cluster_config", lambda self: most)
    assert cluster.resources() == expected


@pytest.mark.parametrize("uri", [None, "sqlite:////data/mlflow.db"])
def test_sqlite_is_for_one_node(monkeypatch, uri):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = RunConfig(storage_path="/data/runs", tracking=TrackingConfig(uri=uri))
    check_tracking(config, 1)
    with pytest.raises(
        ConfigError,
        match=r"^tracking\.uri = 'sqlite:////data/.*not SQLite on a cluster of 3 nodes: its file .*"
        r"tracking\.uri=http://host:5000",
    ):
        check_tracking(config, 3)


def test_a_server_is_for_any_number_of_nodes(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    server = TrackingConfig(uri="http://host:5000")
    check_tracking(RunConfig(storage_path="/data/runs", tracking=server), 3)
    check_tracking(RunConfig(storage_path="s3://bucket/runs"), 3)  # nothing is recorded
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    check_tracking(RunConfig(storage_path="/data/runs"), 3)


@pytest.mark.parametrize(
    ("alive", "groups", "expected"),
    [([True], [], 1), ([True, True, False], [], 2), ([True], [4], 5)],
)
def test_nodes_are_those_that_live_or_can_come(monkeypatch, alive, groups, expected):
    import ray
    from ray._private.state import GlobalState
    from ray.core.generated.autoscaler_pb2 import ClusterConfig as Grows

    grows = Grows()
    for count in groups:
        grows.node_group_configs.add(max_count=count)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": lives} for lives in alive])
    monkeypatch.setattr(GlobalState, "get_cluster_config", lambda self: grows if groups else None)
    assert cluster.node_count() == expected
