"""Which trials meet the test set at the end of a search, and that none does so twice."""

import dataclasses
import json

import pytest

from morel_core.errors import ConfigError
from orchestrator import storage
from orchestrator.search import final
from orchestrator.search.settings import FinalConfig
from orchestrator.search.space import load_search
from orchestrator.search.trial import Trial
from orchestrator.search.verify import record_verified
from orchestrator.tracking.recorder import Past

MEASURED = {"best_epoch": 2.0, "epoch": 2}
GUARDED = MEASURED | {"catastrophic_overfitting": 1.0}


def make(number, state="finished", **changes):
    fields = {"last": MEASURED, "checkpoint": "/there", **changes}
    return Trial(run_id=f"s/t{number}", number=number, label="", params={}, state=state, **fields)


def asking(trials, attacks=()):
    search = load_search("smoke")
    return dataclasses.replace(search, final=FinalConfig(trials=trials, attacks=list(attacks)))


def test_who_meets_the_test_set():
    good, early, worse = make(1), make(2, "stopped", last=GUARDED), make(3)
    lost = [make(4, "diverged"), make(5, "failed", checkpoint=None), make(6, last={})]
    lost.append(make(7, "stopped"))  # by a person
    trials = [good, early, worse, *lost]
    assert final.chosen(asking("winner"), trials, worse) == [worse]
    assert final.chosen(asking("winner"), trials, None) == []
    assert final.chosen(asking("all"), trials, worse) == [good, early, worse]
    assert final.chosen(asking("none"), trials, worse) == []


class Book:
    """What the recorder is told."""

    def __init__(self, past=()):
        self.ended = []
        self.past = dict(past)

    def finish(self, run_id, **what):
        self.ended.append((run_id, what))


@pytest.mark.parametrize(("known", "seconds"), [({"seconds": 7.0}, 7.0), ({}, 0.0)])
def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch, known, seconds):
    search, trial, book = asking("winner"), make(1), Book()
    base = dataclasses.replace(search.base, storage_path=str(tmp_path), name="s")
    search = dataclasses.replace(search, base=base)
    kept = {"metrics": {"test.clean": 0.5}, "model": {"path": "/m"}, "evaluation": "{}"} | known
    storage.write(final._place(search, trial), json.dumps(kept).encode())
    monkeypatch.setattr(final, "_start", lambda *_: pytest.fail("measured again"))
    final.measure_on_test(search, [trial], trial, book)
    assert (trial.test, trial.test_seconds) == ({"test.clean": 0.5}, seconds)
    ((run_id, what),) = book.ended
    assert run_id == trial.run_id
    assert what["metrics"] == trial.test
    assert what["tags"] == {"morel.winner": "true"}


def test_a_search_that_has_grown_has_one_winner():
    """And the networks of both lie apart."""
    search, old, new = asking("winner"), make(1), make(2)
    book = Book({old.run_id: Past(won=True)})
    record_verified(search, [old, new, make(3)], new, book)
    ((run_id, what),) = book.ended
    assert run_id == old.run_id
    assert what["tags"]["morel.winner"] == "false"
    assert not what["note"].startswith("Won")
    assert final._folder(search, old) != final._folder(search, new)


def test_other_attacks_are_another_measurement(tmp_path):
    trial = make(1)
    assert final._place(asking("all"), trial) != final._place(asking("all", ["pgd20"]), trial)


def test_attacks_are_known_before_the_search_starts():
    with pytest.raises(ConfigError, match=r"command line: final\.attacks = .pgdd.: attack"):
        load_search("smoke", ["final.attacks=[pgdd]"])
    with pytest.raises(ConfigError, match=r"final\.trials"):
        load_search("smoke", ["final.trials=some"])
