"""A run without a dashboard of its own keeps away from that of another Ray on the same machine."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import os
from orchestrator.cluster import ray_session
from orchestrator.config import RunConfig

with ray_session(RunConfig(storage_path="/nowhere"), dashboard=False):
    import ray
    from ray.dashboard.utils import get_address_for_submission_client

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    print("ASKED", get_address_for_submission_client(None))
"""


def test_nobody_is_asked_where_another_rays_dashboard_would_be() -> None:
    """Ray Train's cleaner asks there whether its run is alive, and believes what it is told."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ASKED")]
    assert line.startswith("ASKED http://127.0.0.1:")
    assert not line.endswith(":8265")
