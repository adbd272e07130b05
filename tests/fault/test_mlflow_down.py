"""MLflow's server hangs, dies and comes back, or stays away: training does not notice.

Two runs at a time, each a command of its own. The server of the first is stopped (SIGSTOP: it takes
connections and answers nothing), goes on, is killed, and started again with its database. That of
the second is killed for good; `morel sync` delivers to another.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from servers import free_port, kill_group, start_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OUTAGE_S = 6.0
"""Of each of the two at least; ``MOREL_TEST_OUTAGE_S=60`` is the minute of docs/reliability.md."""
REQUEST_S, WITHOUT, ENOUGH_S = 60, 5, 120.0
"""A request waits so long for a server that hangs. Epochs that an outage lasts for at least, and
how long they may take: less than `WITHOUT` requests, so that no epoch waits for one."""
EPOCHS = 120
SECRET = "planted-password"
TINY = [
    *("model.width=4", "data.train_size=640", "data.holdout=60", "data.test_size=60"),
    *("attack.num_steps=4", "evaluation.attack.num_steps=3", "checkpoint.every_seconds=1000"),
]


@dataclass
class Outages:
    """What two runs with faulty servers left."""

    storage: Path
    uri: str
    """Of the server that came back."""
    ended: dict[str, tuple[int, str]]
    """Exit code and standard error of each run."""
    away: dict[str, tuple[float, float]]
    """Unix seconds between which the first run's server was stopped, and dead."""
    recovered_s: dict[str, float]
    """From a server's return until it had everything that was in the journal then."""
    clients: set[int]
    """Processes with a connection to the server while the first run trained."""
    driver: int
    secrets: list[str]
    """Of the processes that the driver started, those that had its password of MLflow."""
    synced: list[Any]
    """What `morel sync` printed: while a driver was alive, then three times after its end."""


def journal(storage: Path, name: str) -> list[dict[str, Any]]:
    path = storage / name / "journal" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in events if event["kind"] != "lease"]


def epochs(storage: Path, name: str) -> int:
    return sum(event["kind"] == "epoch" for event in journal(storage, name))


def wait(happened: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def recorded(uri: str, name: str) -> int:
    """Sequence number of the last event that a server has of a run."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("outage")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`morel.run_id` = '{name}'")
    return int(runs[0].data.tags.get("morel.seq", -1)) if runs else -1


def command(storage: Path, name: str, num_epochs: int, uri: str) -> list[str]:
    return [
        *(sys.executable, "-m", "orchestrator", "train", "digits", *TINY, f"name={name}"),
        *(f"training.epochs={num_epochs}", f"storage_path={storage}"),
        *(f"tracking.uri={uri}", "tracking.experiment=outage"),
    ]


def sync(storage: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "orchestrator", "sync", *arguments, "--json"),
            f"storage_path={storage}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed(syncing: subprocess.Popen[str]) -> Any:
    """The first entry of what `morel sync` printed, or its error."""
    out, err = syncing.communicate(timeout=120)
    return json.loads(out)[0] if syncing.returncode == 0 else err


def knowing(root: psutil.Process) -> list[str]:
    """Processes below ``root`` that have the password of its environment."""
    found: list[str] = []
    for process in root.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if SECRET in process.environ().values():
                found.append(" ".join(process.cmdline())[:80])
    return found


def connected(port: int) -> set[int]:
    """Processes of ours with a connection to a local port, the server's own aside."""
    found: set[int] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp")):
                found.add(process.pid)
    return found


@pytest.fixture(scope="module")
def outages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outages]:
    folder = tmp_path_factory.mktemp("outages")
    storage = folder / "runs"
    outage_s = float(os.environ.get("MOREL_TEST_OUTAGE_S", OUTAGE_S))
    places = {name: folder / name for name in ("back", "gone")}
    ports = {name: free_port() for name in places}
    uris = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    for place in places.values():
        place.mkdir()
    servers = {name: start_mlflow(places[name], ports[name]) for name in places}
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"MLFLOW_TRACKING_USERNAME": "someone", "MLFLOW_TRACKING_PASSWORD": SECRET}
    # MLflow's own attempts may outlast so short an outage, and there would be nothing to say.
    environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(REQUEST_S)
    lengths = {"back": int(EPOCHS * outage_s / OUTAGE_S), "gone": 6}
    runs = {
        name: subprocess.Popen(
            command(storage, name, lengths[name], uris[name]),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in places
    }
    away: dict[str, tuple[float, float]] = {}
    recovered: dict[str, float] = {}

    def last() -> None:
        seen = epochs(storage, "back")
        time.sleep(outage_s)
        wait(lambda: epochs(storage, "back") >= seen + WITHOUT, ENOUGH_S)

    def back_from(outage: str, began: float) -> None:
        returned = time.time()
        away[outage] = began, returned
        known = len(journal(storage, "back")) - 1
        wait(lambda: recorded(uris["back"], "back") >= known)
        recovered[outage] = time.time() - returned

    try:
        wait(lambda: epochs(storage, "gone") >= 1)
        kill_group(servers["gone"])
        wait(lambda: epochs(storage, "back") >= 3)
        clients = connected(ports["back"])
        secrets = knowing(psutil.Process(runs["back"].pid))

        began = time.time()
        os.killpg(servers["back"].pid, signal.SIGSTOP)
        last()
        os.killpg(servers["back"].pid, signal.SIGCONT)
        back_from("stopped", began)

        began = time.time()
        kill_group(servers["back"])
        busy = sync(storage, "back")
        last()
        servers["back"] = start_mlflow(places["back"], ports["back"])
        back_from("dead", began)
        synced = [printed(busy)]

        ended = {}
        for name, run in runs.items():
            _, errors = run.communicate(timeout=300)
            ended[name] = (run.returncode, errors)
        for options in (["--dry-run"], [], []):
            other = f"tracking.uri={uris['back']}"
            synced.append(printed(sync(storage, "gone", *options, other)))
        yield Outages(
            storage,
            uris["back"],
            ended,
            away,
            recovered,
            clients,
            runs["back"].pid,
            secrets,
            synced,
        )
    finally:
        for run in runs.values():
            run.kill()
        for server in servers.values():
            kill_group(server)


def test_training_never_waits(outages: Outages) -> None:
    """Epochs go on without the server, a few within what one request to it would take.

    How fast they are is printed, and no more: beside other tests an epoch takes what they leave it.
    """
    assert outages.ended["back"][0] == 0, outages.ended["back"][1]
    times = [e["time"] for e in journal(outages.storage, "back") if e["kind"] == "epoch"]
    gaps = {b: b - a for a, b in itertools.pairwise(times)}
    inside = [
        gap for end, gap in gaps.items() if any(a < end < b for a, b in outages.away.values())
    ]
    outside = [gap for gap in gaps.values() if gap not in inside]
    print(f"\nepochs: {len(times)}, {len(inside)} without the server")
    print(f"seconds an epoch, with the server: median {statistics.median(outside):.2f}", end=", ")
    print(f"largest {max(outside):.2f}; without: median {statistics.median(inside):.2f}", end=", ")
    print(f"largest {max(inside):.2f}; everything there {outages.recovered_s} s after its return")
    for began, end in outages.away.values():
        assert sum(began < time < end for time in times) >= WITHOUT


def test_everything_arrives_in_order_and_once(outages: Outages) -> None:
    check_recorded(outages, "back")
    assert "recording is delayed" in outages.ended["back"][1]


def check_recorded(outages: Outages, name: str) -> None:
    """MLflow holds one run with every number of the journal, once, at its own time."""
    client = MlflowClient(outages.uri)
    experiment = client.get_experiment_by_name("outage")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`morel.run_id` = '{name}'")
    assert run.info.status == "FINISHED"
    events = journal(outages.storage, name)
    assert run.data.tags["morel.seq"] == str(events[-1]["seq"])
    reported = [event for event in events if event["kind"] == "epoch"]
    for key in reported[0]["payload"]["metrics"]:
        rows = client.get_metric_history(run.info.run_id, key)
        assert [(row.step, row.value, row.timestamp) for row in rows] == [
            (e["payload"]["epoch"], e["payload"]["metrics"][key], int(1000 * e["time"]))
            for e in reported
        ]


def test_gone_for_good_leaves_all_in_the_journal(outages: Outages) -> None:
    code, said = outages.ended["gone"]
    assert code == 0, said
    assert "recording is delayed" in said
    assert epochs(outages.storage, "gone") == 6
    assert journal(outages.storage, "gone")[-1]["payload"]["status"] == "FINISHED"


def test_sync_delivers_to_another_server_and_doubles_nothing(outages: Outages) -> None:
    shown, first, second = outages.synced[1:]
    events = len(journal(outages.storage, "gone"))
    assert (shown["pending"], shown["delivered"]) == (events, 0)
    assert (first["delivered"], first["rejected"]) == (events, 0)
    assert (second["pending"], second["delivered"]) == (0, 0)
    check_recorded(outages, "gone")


def test_sync_lets_the_journal_of_a_driver_at_work_be(outages: Outages) -> None:
    assert "held by another driver" in outages.synced[0]
    assert f"process {outages.driver}," in outages.synced[0]


def test_only_the_driver_speaks_to_mlflow(outages: Outages) -> None:
    assert outages.clients <= {outages.driver}
    assert outages.secrets == []
