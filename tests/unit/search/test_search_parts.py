"""What a search decides before and around Ray: milestones, concurrency, schedulers, identity."""

import json
import stat
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_tune import ATTACK

from morel_core import ConfigError, MorelError
from orchestrator import storage, tune
from orchestrator.provenance.identity import check_identity
from orchestrator.search.milestones import milestones
from orchestrator.search.settings import ResourcesConfig, SchedulerConfig
from orchestrator.search.space import load_search


def with_scheduler(search, **settings):
    return replace(search, scheduler=SchedulerConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"name": "asha", "grace_period": 1, "reduction_factor": 3}, [1, 3]),  # 9 is the end
        ({"name": "asha", "grace_period": 2, "reduction_factor": 2}, [2, 4, 8]),
        ({"name": "asha", "grace_period": 9}, []),
        ({"name": "hyperband", "grace_period": 2, "reduction_factor": 2}, [2, 4, 8]),
        ({"name": "pareto", "grace_period": 1, "reduction_factor": 3}, [1, 3]),
        ({"name": "pbt", "interval": 3}, [3, 6]),
        ({"name": "median", "grace_period": 2}, []),
        ({"name": "none"}, []),
    ],
)
def test_milestones(search, settings, epochs):
    assert milestones(with_scheduler(search, **settings).scheduler, 9) == epochs


def test_milestones_are_measured_epochs():
    asha = SchedulerConfig(name="asha", grace_period=1, reduction_factor=2)
    assert milestones(asha, 9, every=3) == [3, 6]  # 1, 2, 4 and 8, which gives way to the end
    assert milestones(SchedulerConfig(name="pbt", interval=2), 9, every=3) == [3, 6]


@pytest.mark.parametrize(
    ("resources", "there", "limit", "expected"),
    [
        ({}, (4, 0), None, 4),
        ({}, (4, 0), 2, 2),
        ({}, (64, 0), None, 5),  # no more than there are trials
        ({"cpus_per_worker": 3}, (8, 0), None, 2),
        ({"gpus_per_worker": 1}, (64, 2), None, 2),
        ({"gpus_per_worker": 0.5}, (64, 1), None, 2),
        ({"workers": 2}, (8, 0), None, 4),  # the driver asks for no CPU here …
        ({"workers": 2, "gpus_per_worker": 1}, (64, 8), None, 4),
    ],
)
def test_concurrency(search, monkeypatch, resources, there, limit, expected):
    monkeypatch.setattr(tune, "driver_resources", lambda: {"control": 1})
    asked = replace(search, resources=ResourcesConfig(**resources), max_concurrent=limit)
    assert tune.concurrency(asked, *there) == expected


def test_drivers_are_counted_where_they_take_cpus(search, monkeypatch):
    """Otherwise they could fill the cluster and wait for workers that never fit."""
    monkeypatch.setattr(tune, "driver_resources", lambda: {"CPU": 0.01})
    asked = replace(search, resources=ResourcesConfig(workers=2))
    assert tune.concurrency(asked, 8, 0) == 3
    with pytest.raises(ConfigError, match=r"resources\.workers = 2: one trial and its driver"):
        tune.concurrency(asked, 2, 0)


def test_folders_of_trials_hold_nothing_from_a_config():
    assert tune.trial_folder(SimpleNamespace(trial_id="ab12_00003")) == "trial_ab12_00003"


def test_search_params(search):
    assert tune.search_params(search) == {
        "search.space": "fake",
        "search.recipe": "digits",
        "search.searcher": "tpe",
        "search.scheduler": "asha",
        "search.num_trials": 5,
        "search.seed": 0,
        "search.metric": "robust_accuracy",
        "search.ladder": ATTACK,
        "search.verify": "none",
        "search.workers_per_trial": 1,
    }


def test_definition_is_plain_and_tells_searches_apart(search):
    definition = tune.definition(search)
    assert json.loads(json.dumps(definition)) == definition
    assert definition["parameters"]["objective.alpha"]["high"] == 1.0
    assert tune.definition(replace(search, num_trials=6)) != definition
    assert tune.definition(replace(search, seed=1)) != definition
    assert tune.definition(with_scheduler(search, name="none")) != definition


def test_trial_config_is_the_base_with_the_trials_point(search):
    run = search.trial_config({"k1": 0.25, "objective.alpha": 0.5})
    assert run.objective.preference == (0.25, 0.75)
    assert run.objective.alpha == 0.5
    assert replace(run, objective=search.base.objective) == search.base


@pytest.mark.parametrize("name", ["demo", "smoke"])
def test_packaged_searches_define_themselves_the_same_way_twice(name):
    first, second = (load_search(name, ["name=a"]) for _ in range(2))
    assert tune.definition(first) == tune.definition(second)


# --- what a name stands for ----------------------------------------------------------------------


def test_the_same_definition_may_come_again(tmp_path):
    definition = {"seed": 1, "base": {"epochs": 3, "address": None}}
    for _ in range(2):
        check_identity(str(tmp_path / "run"), definition, may_change=set())


def test_another_definition_is_refused_by_what_differs(tmp_path):
    folder = str(tmp_path / "run")
    check_identity(folder, {"seed": 1, "base": {"epochs": 3}}, may_change=set())
    with pytest.raises(MorelError) as caught:
        check_identity(folder, {"seed": 1, "base": {"epochs": 4}}, may_change=set())
    said = str(caught.value)
    assert "base.epochs = 4 (there: 3)" in said
    assert "name=…" in said
    check_identity(folder, {"seed": 1, "base": {"epochs": 3}}, may_change=set())  # still the first


def test_what_may_change(tmp_path):
    folder = str(tmp_path / "run")
    check_identity(folder, {"a": 1, "scaling": {"n": 1}, "b": {"c": 1}}, may_change=set())
    check_identity(
        folder, {"a": 1, "scaling": {"n": 2}, "b": {"c": 2}}, may_change={"scaling", "b.c"}
    )
    with pytest.raises(MorelError, match="a = 2"):
        check_identity(folder, {"a": 2, "scaling": {"n": 1}, "b": {"c": 1}}, may_change={"b"})


def test_the_folder_that_will_hold_tunes_state_is_the_owners_alone(tmp_path):
    check_identity(str(tmp_path / "deep" / "run"), {"a": 1}, may_change=set())
    assert stat.S_IMODE((tmp_path / "deep" / "run").stat().st_mode) == 0o700


# --- storage -------------------------------------------------------------------------------------


def test_write_and_read(tmp_path):
    path = f"{tmp_path}/deep/er/file.json"
    assert storage.read_text(path) is None
    storage.write(path, b"content")
    assert storage.read_text(path) == "content"
    assert (tmp_path / "deep" / "er" / "file.json").read_bytes() == b"content"


def test_a_local_copy_of_a_local_path_is_that_path(tmp_path):
    (tmp_path / "file").write_text("content")
    assert storage.local_copy(str(tmp_path)) == Path(tmp_path)
    copied = storage.local_copy(f"file://{tmp_path}")
    assert (copied / "file").read_text() == "content"


def test_scheme_of_paths_that_ray_gives_without_it():
    assert storage.uri("/data", "/data/run/c1") == "/data/run/c1"
    assert storage.uri("s3://bucket/runs", "bucket/runs/c1") == "s3://bucket/runs/c1"
    assert storage.uri("s3://bucket/runs", "s3://bucket/runs/c1") == "s3://bucket/runs/c1"


def test_unwritable_storage(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MorelError, match="cannot be written"):
        storage.check_writable(f"{tmp_path}/file/below")
    storage.check_writable(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
