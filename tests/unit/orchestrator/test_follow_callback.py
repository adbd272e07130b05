"""Tune's callback passes events on, and pickles to a folder's name."""

import pickle
from types import SimpleNamespace

import pytest
from ray import cloudpickle

from orchestrator.follow import Follow, following


class Book:
    """Notes what it is told."""

    def __init__(self):
        self.told = []
        self.lock = open(__file__)  # noqa: SIM115  # like a recorder, it cannot be pickled

    def __getattr__(self, name):
        return lambda *arguments: self.told.append((name, *arguments))


@pytest.fixture
def book():
    book = Book()
    yield book
    book.lock.close()


def test_events_reach_the_book_of_the_folder(book):
    trial = SimpleNamespace(trial_id="t")
    callback = Follow("/runs/hunt")
    with following("/runs/hunt", book):
        callback.on_step_begin(1, [trial])
        callback.on_trial_start(1, [trial], trial)
        callback.on_trial_result(2, [trial], trial, {"epoch": 1})
        callback.on_trial_recover(2, [trial], trial)
        callback.on_trial_complete(3, [trial], trial)
        callback.on_trial_error(4, [trial], trial)
    assert book.told == [
        ("adopt", [trial]),
        ("start", trial),
        ("result", trial, {"epoch": 1}),
        ("retry", trial),
        ("complete", trial),
        ("error", trial),
    ]


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_restored_callback_finds_the_book_of_this_process(book, pickler):
    with following("/runs/hunt", book):
        content = pickler.dumps(Follow("/runs/hunt"))
    assert len(content) < 1000
    restored = pickle.loads(content)
    second = Book()
    with following("/runs/hunt", second):
        restored.on_trial_start(1, [], "trial")
    second.lock.close()
    assert second.told == [("start", "trial")]
    assert book.told == []


def test_the_book_is_gone_afterwards(book):
    with pytest.raises(RuntimeError), following("/runs/hunt", book):
        raise RuntimeError
    with pytest.raises(KeyError):
        Follow("/runs/hunt").on_step_begin(1, [])
