"""How a signal ends a command."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from orchestrator import storage
from orchestrator.driver import control, ending
from orchestrator.train import Pause

COMMAND = """
import threading, time
from orchestrator.driver.ending import closed_on_signal, interruptible, terminable
def close():
    print("closed", flush=True)
def work():
    print("ready", flush=True)
    cancelled.wait(60)
cancelled = threading.Event()
try:
    with terminable(), closed_on_signal(close):
        interruptible(work, lambda: None, cancelled.set)
except KeyboardInterrupt:
    time.sleep(0.5)
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_sigterm_closes_records_also_in_a_background_job(before):
    """Whose shell has asked it to ignore SIGINT."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, before),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    said, _ = process.communicate(timeout=20)
    assert said.splitlines() == ["closed", "interrupted"]


def test_what_a_look_raises_ends_the_wait(monkeypatch):
    monkeypatch.setattr(ending, "POLL_S", 0.01)
    cancelled, closed = threading.Event(), threading.Event()
    ended: list[bool] = []

    def work():
        ended.append(cancelled.wait(60))

    def look():
        raise ending.Paused("enough")

    with ending.closed_on_signal(closed.set), pytest.raises(ending.Paused):
        ending.interruptible(work, look, cancelled.set)
    assert ended == [True]  # nothing of it is left behind
    assert closed.wait(5)


def test_work_that_cannot_be_told_to_end_hides_no_signal(monkeypatch, caplog):
    monkeypatch.setattr(ending, "POLL_S", 0.01)
    monkeypatch.setattr(ending, "LEAVE_S", 0.01)
    left = threading.Event()

    def look():
        raise ending.Paused("enough")

    def cancel():
        raise RuntimeError("Ray is gone")

    with pytest.raises(ending.Paused):
        ending.interruptible(lambda: left.wait(60), look, cancel)
    left.set()
    assert "what runs cannot be told to end: Ray is gone" in caplog.text


def test_the_result_and_the_error_of_the_work_come_through():
    assert ending.interruptible(lambda: 3, lambda: None, pytest.fail) == 3
    with pytest.raises(ZeroDivisionError):
        ending.interruptible(lambda: 1 / 0, lambda: None, pytest.fail)


def test_a_handler_that_was_there_is_there_again():
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        with ending.terminable():
            assert signal.getsignal(signal.SIGTERM) is not own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_storage_that_is_away_asks_for_no_pause(monkeypatch):
    def away(path):
        raise OSError("the store is away")

    monkeypatch.setattr(storage, "open_filesystem", away)
    began = time.monotonic()
    assert not control.is_paused("s3://runs/hunt")
    control.forget_pause("s3://runs/hunt")
    assert time.monotonic() - began < 1


def test_a_pause_outlives_workers_that_are_lost(tmp_path):
    """It was asked of the run, not of its workers."""
    folder = f"{tmp_path}/first"
    pause = Pause(folder)
    pause.look(saved=0.0)
    control.ask_pause(folder)
    pause.look(saved=time.time())
    pause.look(saved=0.0)  # of others, which have not saved yet
    with pytest.raises(ending.Paused, match=r"the same command \(with name=first\) goes on"):
        pause.look(saved=time.time() + 1)
    assert control.requests(folder) == []
