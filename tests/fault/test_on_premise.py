"""`deploy/on_premise.yaml` for real: `ray up` by SSH on loopback, search, notice, `ray down`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("on_premise.sh")
NEEDED = ("/usr/sbin/sshd", "rsync", "unshare", "ip", "ssh-keygen")


def filled(folder: Path) -> dict[str, Any]:
    """The shipped file with a user's values."""
    config = yaml.safe_load((ROOT / "deploy" / "on_premise.yaml").read_text())
    config["cluster_name"] = folder.name  # Ray shares SSH connections between clusters of one name
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": ["127.0.0.2"]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "key")}
    return config


@pytest.mark.long  # some minutes on a busy machine, and it needs an SSH server
def test_search_on_a_cluster_that_ray_up_has_made() -> None:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root for namespaces, and {', '.join(missing) or 'nothing else'}")
    with tempfile.TemporaryDirectory(prefix="op-", dir="/var/tmp") as made:
        folder = Path(made)
        (folder / "on_premise.yaml").write_text(yaml.safe_dump(filled(folder)))
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MOREL_"))}
        done = subprocess.run(
            [
                *("timeout", "--kill-after=5", "480"),
                *("unshare", "--pid", "--net", "--mount", "--fork", "--mount-proc", "--kill-child"),
                *("bash", str(SCRIPT), str(folder), str(Path(sys.executable).parent), str(ROOT)),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        print(done.stdout)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
        status = json.loads((folder / "status.json").read_text())
        assert status["state"] == "finished"
        drained = (folder / "drained").read_text()
        assert drained.startswith("127.0.0.2: ")
        assert "AWS will terminate this spot instance" in drained
        assert {trial["why"] for trial in status["trials"]} == {"all 2 epochs trained"}
