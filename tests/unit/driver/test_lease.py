"""One driver at a time: real processes, killed and suspended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from morel_core.errors import MorelError
from orchestrator import storage
from orchestrator.driver import lease
from orchestrator.driver.lease import LeaseHeldError, LeaseLostError, held
from orchestrator.tracking import Event, Journal, MemoryTracker, Recorder

SECONDS = 1.5

# Holds the lease and writes an event whenever a line comes in; says what came of it.
DRIVER = """
import sys, time
from orchestrator.driver.ending import terminable
from orchestrator.driver.lease import held
from orchestrator.tracking import Event, Journal, MemoryTracker, Recorder
folder = sys.argv[1]
journal = Journal(folder + "/journal")
try:
    with terminable(), held(folder, float(sys.argv[2])):
        print("holds", flush=True)
        for line in sys.stdin:
            event = journal.append("run", "epoch", line.strip(), {"epoch": 1, "metrics": {}})
            print("wrote", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
"""


class Driver:
    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(folder), str(SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.says() == "holds"

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def write(self, key: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{key}\n")
        self.process.stdin.flush()
        return self.says()

    def send(self, number: int) -> None:
        self.process.send_signal(number)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "hunt"


@pytest.fixture
def driver(folder):
    other = Driver(folder)
    yield other
    other.send(signal.SIGCONT)
    other.process.kill()
    other.process.communicate()


def elsewhere(folder, monkeypatch):
    """Let the holder seem to be on another machine, whose processes are not to be seen."""
    monkeypatch.setattr(lease, "_machine", lambda: "another machine")


def test_the_second_is_refused_and_told_who_holds_it(driver, folder):
    started = time.monotonic()
    with (
        pytest.raises(LeaseHeldError, match=rf"process {driver.process.pid}, since .* heartbeat"),
        held(str(folder), SECONDS),
    ):
        pass
    assert time.monotonic() - started < 0.5
    assert driver.write("a") == "wrote"


def test_from_another_machine_a_living_holder_is_seen_by_its_heartbeat(driver, folder, monkeypatch):
    elsewhere(folder, monkeypatch)
    with pytest.raises(LeaseHeldError, match="held by another driver"), held(str(folder), SECONDS):
        pass


def test_a_killed_holder_on_this_machine_hinders_nobody(driver, folder):
    driver.send(signal.SIGKILL)
    time.sleep(0.1)  # a zombie, as its parent has not asked for it
    started = time.monotonic()
    with held(str(folder), SECONDS):
        assert time.monotonic() - started < 0.5
    assert lease.holder(str(folder)) is None


def test_elsewhere_its_lease_runs_out(driver, folder, monkeypatch):
    driver.send(signal.SIGKILL)
    driver.process.wait()
    elsewhere(folder, monkeypatch)
    started = time.monotonic()
    with held(str(folder), SECONDS):
        assert SECONDS <= time.monotonic() - started < SECONDS + 2


def test_one_that_was_suspended_for_too_long_writes_nothing_more(driver, folder):
    assert driver.write("before") == "wrote"
    driver.send(signal.SIGSTOP)
    time.sleep(SECONDS)
    with held(str(folder), SECONDS):  # waits until the lease has run out
        journal = Journal(f"{folder}/journal")
        journal.append("run", "epoch", "mine", {"epoch": 2, "metrics": {}})
        driver.send(signal.SIGCONT)
        said = driver.write("after")
        assert said == "LeaseLostError"
        journal.append("run", "epoch", "mine too", {"epoch": 3, "metrics": {}})
    events = list(Journal(f"{folder}/journal").events())
    assert [(e.key, e.seq) for e in events] == [("before", 0), ("mine", 1), ("mine too", 2)]
    driver.process.wait(timeout=5)


def test_one_that_only_waits_is_told(driver, folder):
    driver.send(signal.SIGSTOP)
    time.sleep(SECONDS)
    with held(str(folder), SECONDS):
        driver.send(signal.SIGCONT)
        assert driver.says() == "LeaseLostError"


def test_a_lease_of_one_that_was_suspended_briefly_is_kept(driver, folder):
    driver.send(signal.SIGSTOP)
    time.sleep(SECONDS)
    driver.send(signal.SIGCONT)
    assert driver.write("a") == "wrote"


def test_what_a_worker_saves_is_fenced(folder):
    with held(str(folder), 60) as fence:
        fence.check()
        assert storage.create(f"{folder}/lease/000002.json", b"{}")  # another driver's
        with pytest.raises(LeaseLostError, match="another driver has taken over"):
            fence.check()


def test_without_heartbeats_each_write_asks_first(folder):
    """As in a process that has just woken up, or whose storage was away."""
    keeper = lease._Keeper(str(folder), SECONDS)
    keeper.take()
    with storage.guarded(str(folder), keeper):
        storage.write(f"{folder}/file", b"early")
        time.sleep(SECONDS / 2)
        storage.write(f"{folder}/file", b"its heartbeat is made up for")
        number = storage.check_guard(f"{folder}/file")
        time.sleep(SECONDS / 2)
        assert storage.create(f"{folder}/lease/{number + 1:06d}.json", b"{}")  # another driver's
        with pytest.raises(LeaseLostError):
            storage.write(f"{folder}/file", b"late")
    assert storage.read_text(f"{folder}/file") == "its heartbeat is made up for"


def test_one_that_was_replaced_delivers_nothing_more(folder):
    tracker = MemoryTracker()
    with held(str(folder), 60):
        recorder = Recorder(Journal(f"{folder}/journal"), tracker)
        recorder.epoch("run", 1, {"loss": 1.0})
        assert recorder.flush(10) == 0
        with storage.guarded(str(folder), Lost()):
            recorder._enqueue(Event("run", 1, "epoch", "epoch:2", 1.0, {}))
            began = time.monotonic()
            assert recorder.close(10) == 1
            assert time.monotonic() - began < 5
    assert [event.key for event in tracker.applied] == ["epoch:1"]


def test_a_full_storage_is_one_line(folder, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(MorelError, match="no lease can be written"), held(str(folder), SECONDS):
        pass


def test_without_hard_links_one_gets_it(folder, monkeypatch):
    def unknown(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unknown)
    with (
        held(str(folder), SECONDS),
        pytest.raises(LeaseHeldError),
        held(str(folder), SECONDS),
    ):
        pass
    assert not storage.create(f"{folder}/lease/000001.json", b"{}")
    with held(str(folder), SECONDS) as fence:
        assert fence.number == 2


class Lost:
    """A guard that knows that another driver is at work."""

    number = 1

    def check(self) -> None:
        raise LeaseLostError("lost")


def test_every_change_of_the_folder_is_guarded(folder):
    storage.write(f"{folder}/file", b"old")
    with storage.guarded(str(folder), Lost()):
        for change in (
            lambda: storage.write(f"{folder}/file", b"new"),
            lambda: storage.delete(f"{folder}/file"),
            lambda: storage.remove(f"{folder}"),
            lambda: Journal(f"{folder}/journal").append("r", "epoch", "k", {"epoch": 1}),
        ):
            with pytest.raises(LeaseLostError):
                change()
        storage.write(f"{folder}-other/file", b"")
    assert storage.read_text(f"{folder}/file") == "old"


def test_the_process_id_of_a_dead_holder_that_another_process_has_now(folder):
    with held(str(folder), SECONDS):
        pass
    path = f"{folder}/lease/000001.json"
    content = json.loads(storage.read_text(path))
    storage.write(path, json.dumps(content | {"released": False, "began": 1.0}).encode())
    assert content["pid"] == os.getpid()
    started = time.monotonic()
    with held(str(folder), SECONDS):
        assert time.monotonic() - started < 0.5


def test_a_lease_that_nobody_can_read_runs_out(folder):
    storage.write(f"{folder}/lease/000007.json", b"\x7bnonsense")
    started = time.monotonic()
    with held(str(folder), SECONDS) as fence:
        assert fence.number == 8
        assert time.monotonic() - started >= SECONDS


def test_of_many_that_come_at_once_one_gets_it(folder):
    many = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(folder), "30"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [process.stdout.readline().strip() for process in many]
    for process in many:
        process.kill()
        process.communicate()
    assert sorted(said) == ["LeaseHeldError"] * 3 + ["holds"]


def test_the_folders_it_makes_are_this_users_alone(folder):
    with held(str(folder), SECONDS):
        modes = {path.stat().st_mode & 0o777 for path in (folder, folder / "lease")}
    assert modes == {0o700}
