"""The journal: what it has returned is there, once, whatever happened in between."""

import fcntl
import math
import os
import threading

import numpy as np
import pytest

from morel_core.errors import MorelError
from orchestrator.tracking import Journal


@pytest.fixture(params=["file", "objects"])
def open_journal(request, tmp_path):
    """Opens the same journal again at each call, as a new process would."""
    if request.param == "file":
        return lambda: Journal(str(tmp_path / "storage"))
    uri = (tmp_path / "storage").as_uri()
    return lambda: Journal(uri, one_object_per_event=True)


def epoch(journal, run_id, number, loss=0.5):
    payload = {"epoch": number, "metrics": {"loss": loss}}
    return journal.append(run_id, "epoch", f"epoch:{number}", payload)


def test_events_come_back_in_order_with_a_sequence_for_each_run(open_journal):
    journal = open_journal()
    written = [epoch(journal, run, n) for n in (1, 2) for run in ("s/a", "s/b")]
    assert [(e.run_id, e.seq) for e in written] == [
        ("s/a", 0),
        ("s/b", 0),
        ("s/a", 1),
        ("s/b", 1),
    ]
    assert list(journal.events()) == written
    assert list(open_journal().events()) == written


def test_a_resumed_run_repeats_itself_in_vain(open_journal):
    epoch(open_journal(), "s/a", 1, loss=0.5)
    journal = open_journal()
    assert epoch(journal, "s/a", 1, loss=0.7) is None
    event = epoch(journal, "s/a", 2)
    assert event is not None
    assert event.seq == 1
    assert [e.payload["metrics"]["loss"] for e in journal.events()] == [0.5, 0.5]


def test_the_event_returned_is_the_one_that_is_read(open_journal):
    journal = open_journal()
    event = journal.append("s/a", "start", "start", {"shape": (3, 32), "x": [math.inf]})
    assert event is not None
    assert event.payload == {"shape": [3, 32], "x": [math.inf]}
    assert list(journal.events()) == [event]


def test_two_threads_lose_and_double_nothing(open_journal):
    journal = open_journal()
    numbers = range(1, 26)

    def write(run_id):
        for number in numbers:
            epoch(journal, run_id, number)
            epoch(journal, "s/shared", number)

    threads = [threading.Thread(target=write, args=(run,)) for run in ("s/a", "s/b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = list(open_journal().events())
    for run_id in ("s/a", "s/b", "s/shared"):
        own = [e for e in events if e.run_id == run_id]
        assert [e.seq for e in own] == list(range(25))
        assert [e.payload["epoch"] for e in own] == list(numbers)


def test_what_is_not_plain_is_refused_and_leaves_nothing(open_journal):
    journal = open_journal()
    with pytest.raises(TypeError):
        epoch(journal, "s/a", 1, loss=np.float32(0.5))
    assert list(journal.events()) == []
    assert epoch(journal, "s/a", 1).seq == 0


def test_reading_creates_nothing(open_journal, tmp_path):
    assert list(open_journal().events()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [b'{"run_id":"s/a","se', b"\x00\x00\n", b'{"half": \n{"x'])
def test_a_torn_end_is_ignored_and_then_overwritten(tmp_path, torn):
    journal = Journal(str(tmp_path))
    kept = [epoch(journal, "s/a", 1), epoch(journal, "s/a", 2)]
    path = tmp_path / "events.jsonl"
    with path.open("ab") as file:
        file.write(torn)

    again = Journal(str(tmp_path))
    assert list(again.events()) == kept
    kept.append(epoch(again, "s/a", 3))
    assert [e.seq for e in kept] == [0, 1, 2]
    assert list(Journal(str(tmp_path)).events()) == kept
    assert path.read_bytes() == b"".join(e.to_json().encode() + b"\n" for e in kept)


def test_an_event_without_its_line_end_was_never_acknowledged(tmp_path):
    epoch(Journal(str(tmp_path)), "s/a", 1)
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    journal = Journal(str(tmp_path))
    assert list(journal.events()) == []
    assert epoch(journal, "s/a", 1).seq == 0
    assert len(list(journal.events())) == 1


def test_damage_in_the_middle_costs_one_event_and_is_said(tmp_path, caplog):
    journal = Journal(str(tmp_path))
    for number in (1, 2, 3):
        epoch(journal, "s/a", number)
    path = tmp_path / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"damaged\n" + lines[2])
    again = Journal(str(tmp_path))
    assert [e.seq for e in again.events()] == [0, 2]
    assert epoch(again, "s/a", 4).seq == 3
    assert "line 2 is unreadable" in caplog.text


def test_a_torn_object_is_left_out(tmp_path, caplog):
    journal = Journal(str(tmp_path), one_object_per_event=True)
    first = epoch(journal, "s/a", 1)
    (tmp_path / "events" / "000000000001-000001.json").write_bytes(b'{"run_id":')
    again = Journal(str(tmp_path), one_object_per_event=True)
    second = epoch(again, "s/a", 2)
    assert (second.seq, list(again.events())) == (1, [first, second])
    assert "000000000001-000001.json is unreadable" in caplog.text


def test_a_failed_write_is_taken_back_and_can_be_repeated(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path))
    first = epoch(journal, "s/a", 1)
    write = os.pwrite

    def full(descriptor, line, place):
        write(descriptor, line[:10], place)
        raise OSError(28, "No space left on device")

    def short(descriptor, line, place):
        return write(descriptor, line[:-1], place)  # without the end of the line

    for fails, why in ((full, "No space left"), (short, r"only \d+ of \d+ bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fails)
            with pytest.raises(MorelError, match=why):
                epoch(journal, "s/a", 2)
        assert list(journal.events()) == [first]
    second = epoch(journal, "s/a", 2)
    assert list(Journal(str(tmp_path)).events()) == [first, second]


def test_a_write_returns_when_it_is_on_disk(tmp_path, monkeypatch):
    flags, write = [], os.pwrite

    def watched(descriptor, line, place):
        flags.append(fcntl.fcntl(descriptor, fcntl.F_GETFL))
        return write(descriptor, line, place)

    monkeypatch.setattr(os, "pwrite", watched)
    epoch(Journal(str(tmp_path)), "s/a", 1)
    assert [flag & os.O_DSYNC for flag in flags] == [os.O_DSYNC]


def test_a_place_that_cannot_be_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MorelError, match="cannot write the run's journal") as caught:
        epoch(Journal(str(tmp_path / "file")), "s/a", 1)
    assert "\n" not in str(caught.value)


def test_objects_of_a_writer_that_was_replaced_do_not_count(tmp_path):
    """It went on where it thought the journal ended, before and after its successor's first."""
    replaced = Journal(str(tmp_path), one_object_per_event=True)
    first = epoch(replaced, "s/a", 1)
    successor = Journal(str(tmp_path), one_object_per_event=True)
    second = epoch(successor, "s/a", 2)
    epoch(replaced, "s/a", 7)
    epoch(replaced, "s/a", 8)
    third = epoch(successor, "s/a", 3)
    found = Journal(str(tmp_path), one_object_per_event=True).events()
    assert list(found) == [first, second, third]


def test_a_line_of_a_writer_that_was_replaced_lands_on_no_other(tmp_path):
    replaced = Journal(str(tmp_path))
    first = epoch(replaced, "s/a", 1)
    successor = Journal(str(tmp_path))
    second = epoch(successor, "s/a", 2)
    (tmp_path / "events.jsonl").open("ab").write(b'{"late": true}\n')
    third = epoch(successor, "s/a", 3)
    assert list(Journal(str(tmp_path)).events()) == [first, second, third]
