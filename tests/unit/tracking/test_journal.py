"""The journal: what it has returned is there, once, whatever happened in between."""

import fcntl
import math
import os
import threading
from dataclasses import dataclass

import numpy as np
import pytest

from morel_core.errors import MorelError
from orchestrator import storage
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
def test_a_torn_end_is_left_out_now_and_later(tmp_path, torn):
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
    (tmp_path / "events" / "000000000001-000000.json").write_bytes(b'{"run_id":')
    again = Journal(str(tmp_path), one_object_per_event=True)
    second = epoch(again, "s/a", 2)
    assert (second.seq, list(again.events())) == (1, [first, second])
    assert "000000000001-000000.json is unreadable" in caplog.text


def test_a_failed_write_leaves_nothing_that_counts_and_can_be_repeated(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path))
    first = epoch(journal, "s/a", 1)
    write = os.write

    def full(descriptor, line):
        write(descriptor, line[:10])
        raise OSError(28, "No space left on device")

    def short(descriptor, line):
        return write(descriptor, line[:-1])  # without the end of the line

    for fails, why in ((full, "No space left"), (short, r"only \d+ of \d+ bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fails)
            with pytest.raises(MorelError, match=why):
                epoch(journal, "s/a", 2)
        assert list(journal.events()) == [first]
    second = epoch(journal, "s/a", 2)
    assert list(Journal(str(tmp_path)).events()) == [first, second]


def test_a_write_returns_when_it_is_on_disk(tmp_path, monkeypatch):
    flags, write = [], os.write

    def watched(descriptor, line):
        flags.append(fcntl.fcntl(descriptor, fcntl.F_GETFL))
        return write(descriptor, line)

    monkeypatch.setattr(os, "write", watched)
    epoch(Journal(str(tmp_path)), "s/a", 1)
    assert [flag & os.O_DSYNC for flag in flags] == [os.O_DSYNC]


def test_a_place_that_cannot_be_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MorelError, match="cannot write the run's journal") as caught:
        epoch(Journal(str(tmp_path / "file")), "s/a", 1)
    assert "\n" not in str(caught.value)


def test_a_write_that_failed_but_is_there_is_not_repeated(tmp_path, monkeypatch):
    journal, write = Journal(str(tmp_path)), os.write

    def late(descriptor, line):
        write(descriptor, line)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", late)
        with pytest.raises(MorelError, match="Input/output"):
            epoch(journal, "s/a", 1)
    assert epoch(journal, "s/a", 1) is None
    assert epoch(journal, "s/a", 2).seq == 1
    assert [e.seq for e in Journal(str(tmp_path)).events()] == [0, 1]


# --- under a lease --------------------------------------------------------------------------------


@dataclass
class Lease:
    """That of a holder who does not know yet that it was replaced, in the middle of a write."""

    number: int

    def check(self):
        pass


class Holder:
    """A process that writes under a lease."""

    def __init__(self, journal, number):
        self.journal, self.lease = journal, Lease(number)

    def __getattr__(self, name):
        def call(*given):
            with storage.guarded(self.journal.root, self.lease):
                return getattr(self.journal, name)(*given)

        return call


def test_what_a_replaced_holder_adds_does_not_count(open_journal):
    """It goes on where it thought the journal ended, before and after its successor's first."""
    replaced = Holder(open_journal(), 1)
    kept = [epoch(replaced, "s/a", 1)]
    successor = Holder(open_journal(), 2)
    successor.begin()
    epoch(replaced, "s/a", 7)
    kept.append(epoch(successor, "s/a", 2))
    epoch(replaced, "s/a", 8)
    epoch(replaced, "s/a", 9)
    kept.append(epoch(successor, "s/a", 3))
    assert [e.seq for e in kept] == [0, 1, 2]
    assert list(open_journal().events()) == kept
    third = Holder(open_journal(), 3)
    assert epoch(third, "s/a", 3) is None
    kept.append(epoch(third, "s/a", 7))
    assert list(open_journal().events()) == kept


def test_one_that_wakes_up_in_its_first_write_cuts_off_nothing(tmp_path, monkeypatch):
    """Another driver takes over between the last look at the lease and the write itself."""
    replaced, successor = Holder(Journal(str(tmp_path)), 1), Holder(Journal(str(tmp_path)), 2)
    kept, write = [], os.write

    def interrupted(descriptor, line):
        monkeypatch.setattr(os, "write", write)
        kept.extend(epoch(successor, "s/a", number) for number in (1, 2))
        return write(descriptor, line)

    monkeypatch.setattr(os, "write", interrupted)
    epoch(replaced, "s/a", 1)
    epoch(replaced, "s/a", 3)
    assert list(Journal(str(tmp_path)).events()) == kept


def test_where_the_leases_were_deleted_new_events_still_count(open_journal):
    kept = [epoch(Holder(open_journal(), 5), "s/a", 1), epoch(Holder(open_journal(), 1), "s/a", 2)]
    assert list(open_journal().events()) == kept


def test_without_a_lease_everything_counts(open_journal):
    kept = [epoch(Holder(open_journal(), 2), "s/a", 1), epoch(open_journal(), "s/a", 2)]
    assert list(open_journal().events()) == kept
