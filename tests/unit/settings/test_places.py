"""Where runs are kept and recorded: paths made absolute, and what is refused."""

import pytest
from refusals import refusal

from morel_core import ConfigError
from orchestrator.config import absolute_storage, compose, tracking_uri
from orchestrator.settings.jobs import as_in_job

pytestmark = pytest.mark.usefixtures("bare_environment")


def test_storage_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute_storage("runs") == f"{tmp_path}/runs"
    assert absolute_storage("~/runs") == "/home/someone/runs"
    assert absolute_storage("/data/runs") == "/data/runs"
    assert absolute_storage("s3://bucket/runs") == "s3://bucket/runs"
    assert absolute_storage("file:///data/my%20runs") == "/data/my runs"
    assert compose("digits", ["storage_path=runs"]).storage_path == f"{tmp_path}/runs"


def test_a_relative_storage_is_refused_in_a_ray_job(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    said = refusal("digits", "storage_path=runs")
    assert said.startswith("storage_path = 'runs': must be absolute in a Ray job")
    assert compose("digits", ["storage_path=/data/runs"]).storage_path == "/data/runs"
    assert compose("digits", ["storage_path=gs://b/r"]).storage_path == "gs://b/r"
    assert compose("digits").storage_path.startswith("/")  # ~ is absolute


RELATIVE = [
    ("storage_path=runs", "storage_path = 'runs': must be absolute in a Ray job"),
    ("data.root=.data", "data.root = '.data': must be absolute in a Ray job"),
    ("data.extra=more.npz", "data.extra = 'more.npz': must be absolute in a Ray job"),
    ("tracking.uri=sqlite:///mlflow.db", "tracking.uri = 'sqlite:///mlflow.db': must name an abs"),
]


@pytest.mark.parametrize(("item", "reason"), RELATIVE)
def test_no_relative_path_reaches_into_the_folder_of_a_job(monkeypatch, item, reason):
    """Nor does one that is to be sent: `as_in_job` judges it here as it will be judged there."""
    recipe = "cifar10_resnet18"
    compose(recipe, [item])
    with as_in_job():
        assert refusal(recipe, item).startswith(reason)
    compose(recipe, [item])
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    said = refusal(recipe, item)
    assert said.startswith(reason)
    assert "the job's working directory vanishes with it" in said
    for absolute in ("data.root=/data", "data.root=~/data", "tracking.uri=sqlite:////d/mlflow.db"):
        compose(recipe, [absolute])


@pytest.mark.parametrize(
    ("name", "value"),
    [("MOREL_DATA_ROOT", ".data"), ("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")],
)
def test_nor_does_one_of_the_environment(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    compose("digits")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert refusal("digits").startswith(f"{name} = '{value}': must ")


def test_tracking_uri(monkeypatch):
    local = compose("digits", ["storage_path=/data/runs"])
    assert tracking_uri(local) == "sqlite:////data/runs/mlflow.db"
    remote = compose("digits", ["storage_path=s3://b/runs"])
    with pytest.raises(ConfigError, match=r"^tracking\.uri = None: needed with storage_path"):
        tracking_uri(remote)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment:5000")
    assert tracking_uri(local) == tracking_uri(remote) == "http://from-environment:5000"
    chosen = compose("digits", ["tracking.uri=http://chosen:5000"])
    assert tracking_uri(chosen) == "http://chosen:5000"
