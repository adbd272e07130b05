"""A real local cluster of several Ray nodes, which tests kill parts of.

Every node is a `ray start` of its own, so that the test process holds no connection to Ray and the
real command joins it from a subprocess, as on machines of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from orchestrator.cluster import CONTROL

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
# A process of its own, since the test's must not hold a connection: a list for every line it reads.
LIST_NODES = """
import json, sys
from ray._raylet import GcsClientOptions, GlobalStateAccessor
accessor = GlobalStateAccessor(GcsClientOptions.create(sys.argv[1], None, True, True))
accessor.connect()
for _ in sys.stdin:
    ids = [node["NodeID"] for node in accessor.get_node_table() if node["Alive"]]
    print(json.dumps(ids), flush=True)
"""


@dataclasses.dataclass
class ClusterNode:
    """One node: a `ray start` and all that it started."""

    process: subprocess.Popen[bytes]
    label: str

    def processes(self) -> list[psutil.Process]:
        """The node's own `ray start`, its raylet, its agents and its workers; only the living."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def kill(self) -> None:
        """SIGKILL of everything on the node at once, as when its machine is gone."""
        processes = self.processes()
        for process in processes:  # stopped first: none may notice the death of another
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in {*processes, *self.processes()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=30)


TRAINING = ("RayTrainWorker", "ResourceTrainable", "MorelTrial")
"""In titles of processes that train: Ray Train's, a trial at work, one between two calls."""


class Cluster:
    """A head without CPUs for trials, and nodes that tests add and kill.

    Attributes:
        address: of the head, ``host:port``.
        folder: a short path; nodes, sockets and logs lie in it, and storage may.
        environment: of a subprocess that joins the cluster.
    """

    def __init__(self, *, head_cpus: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rf-", dir="/tmp"))  # sockets: short paths
        self.address = f"127.0.0.1:{free_port()}"
        self.nodes: list[ClusterNode] = []
        self._lister: subprocess.Popen[str] | None = None
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MOREL_"))}
        self.environment = kept | {
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self.folder),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")])),
            "OMP_NUM_THREADS": "1",
        }
        self.dashboard = free_port()
        self._start(
            "head",
            *("--head", f"--port={self.address.rpartition(':')[2]}", f"--temp-dir={self.folder}"),
            *(f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={free_port()}"),
            *(f"--num-cpus={head_cpus}", f'--resources={{"{CONTROL}": 1000}}'),
        )
        try:
            self.wait_for_nodes(1)
        except BaseException:
            self.stop()
            raise

    def add_node(self, *, cpus: int = 1) -> ClusterNode:
        """One more node, which is there on return."""
        return self.add_nodes(1, cpus=cpus)[0]

    def add_nodes(self, count: int, *, cpus: int = 1) -> list[ClusterNode]:
        """``count`` more nodes, started together, which are there on return."""
        before = len(self.alive())
        asked = (f"--address={self.address}", f"--num-cpus={cpus}")
        nodes = [self._start(f"node {len(self.nodes) + i}", *asked) for i in range(count)]
        started = time.monotonic()
        while len(self.alive()) != before + count:
            assert time.monotonic() - started < 200, "the nodes did not come up"
            # Ray gives a node half a minute to start, which a busy machine may not.
            for place, node in enumerate(nodes):
                if node.process.poll() is not None:
                    self._kill_orphans([*self.nodes, *nodes])
                    nodes[place] = self._start(node.label, *asked)
            time.sleep(0.1)
        self.nodes += nodes
        return nodes

    def kill_node(self, node: ClusterNode) -> None:
        """SIGKILL of a node's raylet, workers and agents; the head notices by itself."""
        node.kill()
        self.nodes.remove(node)

    def drain(self, node_id: str, deadline_s: float) -> None:
        """What a spot poller does when a cloud gives notice: the node goes in ``deadline_s``."""
        command = [
            *(RAY, "drain-node", f"--address={self.address}", f"--node-id={node_id}"),
            *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot notice"),
            f"--deadline-remaining-seconds={deadline_s:g}",
        ]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def alive(self) -> list[str]:
        """Ids of the nodes that the head counts as alive, itself too."""
        if self._lister is None or self._lister.poll() is not None:  # it ends while there is none
            self._lister = subprocess.Popen(
                [sys.executable, "-c", LIST_NODES, self.address],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._lister.stdin is not None
        assert self._lister.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._lister.stdin.write("\n")
            self._lister.stdin.flush()
        line = self._lister.stdout.readline()
        return json.loads(line) if line else []

    def wait_for_nodes(self, count: int) -> None:
        wait_until(lambda: len(self.alive()) == count, 90, f"{count} nodes")

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`python -m orchestrator …` on this cluster, in the background."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python -m orchestrator …` on this cluster, to its end."""
        process = self.start(*arguments, **environment)
        out, err = finished(process)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def workers(self) -> list[psutil.Process]:
        """The processes that train: Ray Train's workers and Tune's trials, on all nodes."""
        found: list[psutil.Process] = []
        for process in (p for node in self.nodes for p in node.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                title = " ".join(process.cmdline())
                if any(name in title for name in TRAINING):
                    found.append(process)
        return found

    def stop(self) -> None:
        """Every process of it is killed by pid, and its folder removed."""
        for node in [*self.nodes, self.head]:
            node.kill()
        self._kill_orphans([])
        if self._lister is not None:
            self._lister.kill()
            self._lister.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill_orphans(self, nodes: Sequence[ClusterNode]) -> None:
        """Kill what belongs to this cluster, but neither to the head nor to these nodes."""
        known = {p.pid for node in [self.head, *nodes] for p in node.processes()}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = f"{self.folder}/session_" in " ".join(process.cmdline())
                if ours and process.pid not in known:
                    process.kill()

    def _start(self, label: str, *arguments: str) -> ClusterNode:
        process = subprocess.Popen(
            [
                *(RAY, "start", "--block", "--node-ip-address=127.0.0.1", *arguments),
                *("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
                f"--dashboard-agent-listen-port={free_port()}",
            ],
            env={k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"},
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / f"{label.replace(' ', '-')}.err").open("w"),
        )
        node = ClusterNode(process, label)
        if label == "head":
            self.head = node
        return node


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_until(
    true: Callable[[], Any], seconds: float, what: str, process: subprocess.Popen[str] | None = None
) -> None:
    """Fails if it has not become ``true`` within ``seconds``, or before ``process`` ended."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def finished(process: subprocess.Popen[str], seconds: float = 240) -> tuple[str, str]:
    """What a command printed to standard output and error; ended if it takes too long."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"not ended within {seconds:g} s:\n{out}\n{err}") from None


def events(storage: Path, name: str) -> list[dict[str, Any]]:
    """What the journal of a run or search holds so far."""
    path = storage / name / "journal" / "events.jsonl"
    lines: Sequence[str] = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
