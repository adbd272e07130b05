"""Drain this node of a Ray cluster when AWS announces the end of its spot instance.

Ray has no such poller. AWS gives notice two minutes ahead in the instance's metadata; a drained
node gets no new work, and training on it can save itself and go on elsewhere. `ray_cluster.yaml`
starts this on each worker. It needs the standard library and the `ray` command, and ends after the
drain, or at once where another one of it runs on the same machine.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

METADATA = "http://169.254.169.254"
NOTICE = "latest/meta-data/spot/instance-action"
TOKEN = "latest/api/token"
MARGIN_S = 10  # before the machine goes: what Ray has not moved by then is killed with it


def ask(request: urllib.request.Request) -> str | None:
    """The answer's text; None where there is no such thing (404)."""
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def notice(metadata: str) -> tuple[str, float] | None:
    """(What will happen to the instance, seconds until then); None without a notice."""
    life = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = ask(urllib.request.Request(f"{metadata}/{TOKEN}", headers=life, method="PUT"))
    given = {"X-aws-ec2-metadata-token": token or ""}
    text = ask(urllib.request.Request(f"{metadata}/{NOTICE}", headers=given))
    if text is None:
        return None
    announced = json.loads(text)
    end = datetime.strptime(announced["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return announced["action"], (end - datetime.now(UTC)).total_seconds()


def drain(node_id: str | None, action: str, seconds: float) -> None:
    """Tell Ray that the node goes, by default this one; raises `subprocess.CalledProcessError`."""
    subprocess.run(
        [
            *("ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message", f"AWS will {action} this spot instance"),
            *("--deadline-remaining-seconds", str(max(0, int(seconds) - MARGIN_S))),
            *(("--node-id", node_id) if node_id else ()),
        ],
        check=True,
    )


def main() -> int:
    """Poll until there is a notice and Ray has heard of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metadata", default=METADATA, help="address of the metadata service")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--lock", default="/tmp/spot_notice.lock", help="file that one of it holds")
    parser.add_argument("--node-id", help="Ray's id of the node, where this machine has several")
    arguments = parser.parse_args()
    lock = open(arguments.lock, "w")  # noqa: SIM115 - held until the process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    while True:
        try:
            if (announced := notice(arguments.metadata)) is not None:
                drain(arguments.node_id, *announced)
                return 0
        except (OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
            print(f"{datetime.now()}: {error}; looking again", file=sys.stderr, flush=True)
        time.sleep(arguments.every)


if __name__ == "__main__":
    sys.exit(main())
