"""`ray_cluster.yaml` and its Dockerfile, without a cloud: Ray's schema, and what that misses."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.cluster import CONTROL

ROOT = Path(__file__).parents[3]
FILE = ROOT / "ray_cluster.yaml"
# Of EC2's RunInstances, those that a cluster file may set; Ray passes anything on unseen.
EC2 = {
    "BlockDeviceMappings": {"DeviceName", "Ebs"},
    "CapacityReservationSpecification": set(),
    "IamInstanceProfile": {"Arn", "Name"},
    "ImageId": set(),
    "InstanceMarketOptions": {"MarketType", "SpotOptions"},
    "InstanceType": set(),
    "KeyName": set(),
    "MetadataOptions": {"HttpEndpoint", "HttpPutResponseHopLimit", "HttpTokens"},
    "NetworkInterfaces": set(),
    "Placement": set(),
    "SecurityGroupIds": set(),
    "SubnetIds": set(),
    "TagSpecifications": {"ResourceType", "Tags"},
}
EBS = {"DeleteOnTermination", "Encrypted", "Iops", "KmsKeyId", "Throughput", "VolumeSize"}
EBS |= {"VolumeType"}


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def validated(config: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def unknown_in(node_config: dict[str, Any]) -> set[str]:
    """Keys that EC2 does not know, as ``Ebs.VolumSize``."""
    unknown = node_config.keys() - EC2.keys()
    for key in node_config.keys() & EC2.keys():
        value = node_config[key]
        for part in value if isinstance(value, list) else [value]:
            if EC2[key]:
                unknown |= {f"{key}.{name}" for name in part.keys() - EC2[key]}
            if key == "BlockDeviceMappings":
                unknown |= {f"Ebs.{name}" for name in part["Ebs"].keys() - EBS}
    return unknown


def options(command: str) -> dict[str, str]:
    """``--key=value`` of a shell command."""
    words = [word for word in shlex.split(command) if word.startswith("--")]
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def ray_start(commands: list[str]) -> str:
    return next(command for command in commands if "ray start" in command)


def test_ray_accepts_the_file_and_refuses_a_misspelt_one(cluster: dict[str, Any]) -> None:
    validated(cluster)
    for change in (
        lambda c: c.update(idle_timeout_minuets=3),
        lambda c: c["available_node_types"]["gpu_spot"].update(min_worker=0),
        lambda c: c.update(head_node_type="heat"),
    ):
        wrong = copy.deepcopy(cluster)
        change(wrong)
        with pytest.raises((jsonschema.ValidationError, ValueError)):
            validated(wrong)


def test_ec2_knows_every_key_that_ray_does_not_look_at(cluster: dict[str, Any]) -> None:
    for name, kind in cluster["available_node_types"].items():
        assert not unknown_in(kind["node_config"]), name
    misspelt = copy.deepcopy(cluster["available_node_types"]["gpu_spot"]["node_config"])
    misspelt["BlockDeviceMappings"][0]["Ebs"]["VolumSize"] = misspelt["InstanceTyp"] = 1
    assert unknown_in(misspelt) == {"InstanceTyp", "Ebs.VolumSize"}


def test_head_is_on_demand_trains_nothing_and_holds_the_drivers(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert (head["resources"]["CPU"], head["resources"]["GPU"]) == (0, 0)
    assert head["resources"][CONTROL] >= 1  # what `orchestrator.cluster.driver_resources` asks for
    assert "InstanceMarketOptions" not in head["node_config"]
    started = options(ray_start(cluster["head_start_ray_commands"]))
    assert started["--num-cpus"] == "0"
    assert json.loads(started["--resources"]) == {CONTROL: head["resources"][CONTROL]}


def test_spot_comes_before_its_on_demand_twin(cluster: dict[str, Any]) -> None:
    spot, fallback = (cluster["available_node_types"][n] for n in ("gpu_spot", "gpu_on_demand"))
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in fallback["node_config"]
    assert spot["priority"] > fallback["priority"]
    same = {key: spot["node_config"][key] for key in fallback["node_config"]}
    assert same == fallback["node_config"]
    # Drivers must not sit on a machine that may vanish; training must fit on either.
    assert CONTROL not in spot["resources"]
    assert {k: v for k, v in fallback["resources"].items() if k != CONTROL} == spot["resources"]
    assert spot["max_workers"] + fallback["max_workers"] <= cluster["max_workers"]
    assert spot["min_workers"] == fallback["min_workers"] == 0
    assert cluster["idle_timeout_minutes"] > 0


def test_nobody_gets_in_without_the_token(cluster: dict[str, Any]) -> None:
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in ray_start(commands)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # Ray's own place
    assert options(ray_start(cluster["head_start_ray_commands"]))["--dashboard-host"] == "127.0.0.1"
    for kind in cluster["available_node_types"].values():
        # Ray's own group would open SSH to everybody.
        assert kind["node_config"]["SecurityGroupIds"]
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_workers_are_told_of_their_end(cluster: dict[str, Any]) -> None:
    (poller,) = [c for c in cluster["worker_start_ray_commands"] if "spot_notice.py" in c]
    (there,) = re.findall(r"~/(\S+/spot_notice\.py)", poller)
    mounted = cluster["file_mounts"]["~/" + there.split("/")[0]]
    assert (ROOT / mounted / "spot_notice.py").is_file()
    assert "RAY_AUTH_MODE=token" in poller


def test_every_value_of_the_users_is_marked(cluster: dict[str, Any]) -> None:
    lines = FILE.read_text().splitlines()
    placeholders = [line for line in lines if "CHANGE-ME" in line]
    marked = [line for line in lines if "# CHANGE ME" in line]
    assert not [line for line in placeholders if line not in marked]
    keys = {re.split(r"[:\s]", line.strip().removeprefix("- "))[0] for line in marked}
    assert keys == {
        *("region", "availability_zone", "image", "--env", "aws"),
        *("InstanceType", "ImageId", "SecurityGroupIds", "IamInstanceProfile"),
    }


def test_image_has_the_dependencies_and_nothing_of_this_package() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    python = re.search(r"FROM python:(\d+\.\d+)-", dockerfile)
    # Ray refuses nodes of another Python or Ray than the client's: constraints.txt says which.
    assert python is not None
    assert f"Python {python[1]}" in (ROOT / "constraints.txt").read_text()
    assert re.findall(r"^COPY (.+)$", dockerfile, re.M) == [
        "pyproject.toml constraints.txt /tmp/build/"
    ]
    (extract,) = re.findall(r'python -c "([^"]+)"', dockerfile)
    listed = subprocess.run(
        [sys.executable, "-c", extract],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert any(line.startswith("ray[default,train,tune]") for line in listed)
    assert any(line.startswith("torch>=") for line in listed)
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    assert f":{pinned['ray']}" in FILE.read_text()
