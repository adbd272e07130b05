"""The manifests for KubeRay against its own schema, and what that leaves open."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.cluster import CONTROL

DEPLOY = Path(__file__).parents[3] / "deploy"
SCHEMA = json.loads(Path(__file__).with_name("kuberay_schema.json").read_text())
CLUSTER, JOB = DEPLOY / "kuberay_cluster.yaml", DEPLOY / "kuberay_job.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(CLUSTER.read_text())


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load(JOB.read_text())


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}


def custom(group: dict[str, Any]) -> dict[str, float]:
    """The custom resources in a group's `ray start`, as its shell would read them."""
    written = group["rayStartParams"].get("resources", '"{}"')
    assert re.fullmatch(r'".*"', written)
    return json.loads(json.loads(written))


def test_kuberay_knows_every_field(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    jsonschema.validate(cluster, SCHEMA)
    jsonschema.validate(job, SCHEMA)
    assert (cluster["kind"], job["kind"]) == ("RayCluster", "RayJob")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["spec"].update(rayVersoin="2.60.0"),
        lambda c: c["spec"]["authOptions"].update(mode="tokens"),
        lambda c: c["spec"]["workerGroupSpecs"][0].update(maxReplica=3),
        lambda c: c["spec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda c: c["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0].update(img="x"),
        lambda c: c["spec"]["headGroupSpec"]["template"]["spec"].pop("containers"),
    ],
)
def test_mistake_is_found(cluster: dict[str, Any], change: Any) -> None:
    wrong = copy.deepcopy(cluster)
    change(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_head_trains_nothing_and_holds_the_drivers(cluster: dict[str, Any]) -> None:
    head = cluster["spec"]["headGroupSpec"]
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert custom(head)[CONTROL] >= 1
    spot, fallback = groups(cluster)["gpu-spot"], groups(cluster)["gpu-on-demand"]
    assert (custom(spot), custom(fallback).keys()) == ({}, {CONTROL})
    assert spot["priority"] > fallback["priority"]
    assert spot["minReplicas"] == fallback["minReplicas"] == 0
    assert cluster["spec"]["enableInTreeAutoscaling"] is True


def test_token_is_asked_for_and_credentials_stay_on_the_head(cluster: dict[str, Any]) -> None:
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "morel-ray-token"}
    assert "dashboard-host" not in cluster["spec"]["headGroupSpec"]["rayStartParams"]
    for group in groups(cluster).values():
        for container in group["template"]["spec"]["containers"]:
            assert not {"env", "envFrom"} & container.keys()


def test_pod_that_goes_is_drained_first(cluster: dict[str, Any]) -> None:
    for group in groups(cluster).values():
        pod = group["template"]["spec"]
        *_, command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION" in command
        (deadline,) = re.findall(r"--deadline-remaining-seconds (\d+)", command)
        assert int(deadline) < pod["terminationGracePeriodSeconds"]


def test_job_runs_on_that_cluster(cluster: dict[str, Any], job: dict[str, Any]) -> None:
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]).keys() == {"working_dir", "env_vars"}
    assert job["spec"]["entrypoint"].startswith("python -m orchestrator tune ")
    assert "#" not in job["spec"]["entrypoint"]


@pytest.mark.parametrize("file", [CLUSTER, JOB, DEPLOY / "on_premise.yaml"], ids=lambda f: f.stem)
def test_every_value_of_the_users_is_marked(file: Path) -> None:
    lines = file.read_text().splitlines()
    placeholders = [line for line in lines if "CHANGE-ME" in line]
    assert placeholders
    assert not [line for line in placeholders if "# CHANGE ME" not in line]
