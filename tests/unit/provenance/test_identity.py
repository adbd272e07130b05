"""What a name stands for, and the code that began it."""

import json
from types import SimpleNamespace

import pytest

from morel_core.errors import MorelError
from orchestrator.config import compose, to_dict
from orchestrator.provenance import identity
from orchestrator.provenance.identity import check_identity, noted_data
from orchestrator.search.space import load_search
from orchestrator.tracking.records import ended_record
from orchestrator.train import train
from orchestrator.tune import definition, tune


@pytest.fixture
def code(monkeypatch):
    """The code of the moment, to be changed."""
    parts = {"morel_core/step.py": "aa", "torch": "2.14.1"}
    monkeypatch.setattr(identity, "code_parts", lambda: dict(parts))
    return parts


@pytest.fixture
def check(tmp_path):
    def check(definition=None, **options):
        return check_identity(
            str(tmp_path / "run"), definition or {"num_trials": 3}, may_change=set(), **options
        )

    return check


@pytest.fixture
def noted(tmp_path):
    return lambda: json.loads((tmp_path / "run" / "definition.json").read_text())


def test_the_code_is_noted(check, code, noted):
    assert check() == ""
    assert noted()["code"] == code


def test_resuming_under_changed_code_is_refused(check, code):
    check()
    code["morel_core/step.py"] = "bb"
    for _ in range(2):  # a refusal notes nothing
        with pytest.raises(MorelError) as caught:
            check()
        said = str(caught.value)
        assert "morel_core/step.py has changed" in said
        assert "--force-code" in said


def test_forced_changes_are_listed_and_then_the_norm(check, code, noted):
    check()
    code["morel_core/step.py"] = "bb"
    changes = check(force_code=True)
    assert changes.endswith("morel_core/step.py has changed")
    assert check() == changes  # the new code is the run's own now
    code["torch"] = "2.15.0"
    first, second = check(force_code=True).splitlines()
    assert first == changes
    assert second.endswith("torch 2.14.1 is now 2.15.0")
    assert noted()["code"] == code


def test_a_definition_without_code_is_accepted(check, noted, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "definition.json").write_text('{"num_trials": 3}')
    assert check() == ""
    with pytest.raises(MorelError, match="num_trials = 4"):
        check({"num_trials": 4})


def test_a_number_that_may_grow_does_not_shrink(check, noted):
    grow = frozenset({"num_trials"})
    check(may_grow=grow)
    check({"num_trials": 5}, may_grow=grow)
    assert noted()["num_trials"] == 5
    with pytest.raises(MorelError, match=r"num_trials = 4 \(there: 5\)"):
        check({"num_trials": 4}, may_grow=grow)


def test_other_data_make_another_run(tmp_path, monkeypatch):
    """Its split would be drawn anew, and trained images held out."""
    monkeypatch.setattr("orchestrator.train.local_resources", lambda: (2.0, 0.0))
    monkeypatch.setattr("orchestrator.tune.local_resources", lambda: (2.0, 0.0))
    given = [f"storage_path={tmp_path}", "name=mine"]
    config, search = compose("digits", given), load_search("smoke", given)
    for kind, again in ((config, train), (search, tune)):
        seen = {} if kind is config else {**definition(search), "base": to_dict(search.base)}
        other = noted_data(SimpleNamespace(fingerprint="f" * 64))
        folder = tmp_path / "mine"
        check_identity(str(folder), {**(seen or to_dict(config)), **other}, may_change=set())
        with pytest.raises(MorelError, match=r"dataset.fingerprint = '\w{16}' \(there: 'ffff"):
            again(kind)
        (folder / "definition.json").unlink()


def test_changed_code_is_tagged_on_the_run(recorder, tracker):
    recorder.start_run("run", name="run", params={}, config={})
    with ended_record(recorder, "run", code_changes="today: x has changed"):
        pass
    recorder.flush(10)
    assert tracker.applied[-1].payload["tags"] == {"morel.code_changes": "today: x has changed"}
