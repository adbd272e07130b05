"""Tune's callback and stopper pass on what Tune says, and pickle to a folder's name."""

import pickle
from types import SimpleNamespace

import pytest
from ray import cloudpickle

from orchestrator.search.follow import Follow, Limit, following


class Watch:
    """Notes what it and its book are told."""

    def __init__(self):
        self.told = []
        self.lock = open(__file__)  # noqa: SIM115  # like a recorder, it cannot be pickled
        self.book = self

    def __getattr__(self, name):
        return lambda *arguments: self.told.append((name, *arguments)) or name == "over"


@pytest.fixture
def watch():
    watch = Watch()
    yield watch
    watch.lock.close()


def test_events_reach_the_watch_of_the_folder(watch):
    trial = SimpleNamespace(trial_id="t")
    callback = Follow("/runs/hunt")
    with following("/runs/hunt", watch):
        callback.on_step_begin(1, [trial])
        callback.on_trial_start(1, [trial], trial)
        callback.on_trial_result(2, [trial], trial, {"epoch": 1})
        callback.on_checkpoint(2, [trial], trial, "there")
        callback.on_trial_recover(2, [trial], trial)
        callback.on_trial_complete(3, [trial], trial)
        callback.on_trial_error(4, [trial], trial)
    assert watch.told == [
        ("turn", [trial]),
        ("start", trial),
        ("report", trial, {"epoch": 1}),
        ("saved", trial),
        ("retry", trial),
        ("complete", trial),
        ("error", trial),
    ]


def test_the_stopper_asks_the_watch(watch):
    limit = Limit("/runs/hunt")
    with following("/runs/hunt", watch):
        assert not limit("t", {"epoch": 1})
        assert limit.stop_all()
    assert watch.told == [("stops", "t"), ("over",)]


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize("kind", [Follow, Limit])
def test_what_is_restored_finds_the_watch_of_this_process(watch, pickler, kind):
    with following("/runs/hunt", watch):
        content = pickler.dumps(kind("/runs/hunt"))
    assert len(content) < 1000
    restored = pickle.loads(content)
    second = Watch()
    with following("/runs/hunt", second):
        if kind is Follow:
            restored.on_trial_start(1, [], "trial")
        else:
            restored("trial", {})
    second.lock.close()
    assert second.told == [("start" if kind is Follow else "stops", "trial")]
    assert watch.told == []


def test_the_watch_is_gone_afterwards(watch):
    with pytest.raises(RuntimeError), following("/runs/hunt", watch):
        raise RuntimeError
    with pytest.raises(KeyError):
        Follow("/runs/hunt").on_step_begin(1, [])
