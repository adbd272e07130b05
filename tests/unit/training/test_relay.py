"""The driver's end of a run's reports: nothing that goes wrong there ends it, or is lost."""

import queue
import time
from types import SimpleNamespace

import pytest

from morel_core import MorelError
from orchestrator.config import RunConfig
from orchestrator.settings.building import build
from orchestrator.tracking import Journal, MemoryTracker, Recorder
from orchestrator.training import relay


@pytest.fixture
def journal(tmp_path):
    return Journal(str(tmp_path / "journal"))


@pytest.fixture
def recorder(journal):
    recorder = Recorder(journal, MemoryTracker())
    yield recorder
    recorder.close()


@pytest.fixture
def listen(monkeypatch, recorder):
    """A listener that hears without Ray."""
    monkeypatch.setattr(relay, "Queue", lambda **_: queue.Queue())
    monkeypatch.setattr(relay, "on_this_node", dict)
    monkeypatch.setattr(relay, "RETRY_S", 0.01)
    config = build(RunConfig, {"name": "run"})
    return lambda on_epoch=None: relay.Listener(config, recorder, "run", on_epoch)


def report(listener, epoch):
    metrics = {"epoch": epoch, "loss.total": 1.0}
    listener.queue.put({"epoch": epoch, "epochs": [metrics], "checkpoint_path": "there"})


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def epochs(journal):
    return [event.payload["epoch"] for event in journal.events()]


def test_a_journal_that_is_away_for_a_while_gets_every_epoch(
    listen, journal, recorder, monkeypatch
):
    listener, epoch = listen(), recorder.epoch
    report(listener, 1)
    until(lambda: listener.last)

    def away(*arguments, **options):
        raise MorelError("the storage is away")

    monkeypatch.setattr(recorder, "epoch", away)
    report(listener, 2)
    report(listener, 3)
    until(lambda: listener.error)
    monkeypatch.setattr(recorder, "epoch", epoch)
    listener.close()
    assert listener.error is None
    assert listener.last["epoch"] == 3
    assert epochs(journal) == [1, 2, 3]


def test_what_could_not_be_recorded_to_the_end_is_known(listen, journal, recorder, monkeypatch):
    def full(*arguments, **options):
        raise MorelError("no space left")

    monkeypatch.setattr(recorder, "epoch", full)
    monkeypatch.setattr(relay.records, "DELIVERY_S", 0.2)
    listener = listen()
    report(listener, 1)
    listener.close()
    assert str(listener.error) == "no space left"
    assert listener.last is None
    assert epochs(journal) == []


def test_what_cannot_be_shown_ends_the_showing_alone(listen, journal):
    shown = []

    def broken(metrics):
        shown.append(metrics["epoch"])
        raise BrokenPipeError

    listener = listen(broken)
    for epoch in (1, 2, 3):
        report(listener, epoch)
    listener.close()
    assert shown == [1]
    assert epochs(journal) == [1, 2, 3]


@pytest.mark.parametrize("known", [False, True])
def test_a_controller_is_ended_also_where_it_is_known_only_later(listen, known):
    listener, asked = listen(), []
    controller = SimpleNamespace(abort=SimpleNamespace(remote=lambda: asked.append("abort")))
    if known:
        listener.queue.put({relay.CONTROLLER: controller})
        report(listener, 1)
        until(lambda: listener.last)
        assert asked == []
    listener.end_workers()
    if not known:
        listener.queue.put({relay.CONTROLLER: controller})
    until(lambda: asked)
    listener.close()
    assert asked == ["abort"]
