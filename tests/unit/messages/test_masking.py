"""Credentials do not get into what is shown or recorded."""

import pytest

from morel_core.errors import ConfigError
from orchestrator.cli import main
from orchestrator.config import RunConfig, compose
from orchestrator.messages.failures import failure_reason
from orchestrator.messages.masking import masked, masked_address
from orchestrator.settings.building import build

PLANTED = "s3cr3t-Pa55w0rd"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host:5000/x", "http://***@host:5000/x"),
        ("at https://a-token@host, again", "at https://***@host, again"),
        ("postgresql+psycopg2://u:p%40w@db/m", "postgresql+psycopg2://***@db/m"),
        ("http://u:p@w@host", "http://***@host"),
        ("http://me:se/cret@host:5000/x", "http://***@host:5000/x"),
        ("http://me:s?e#c/r@t@host, again", "http://***@host, again"),
        ("at https://a/token@host", "at https://***@host"),
        ("s3://bucket/runs?region=eu&secret_key=abc", "s3://bucket/runs?region=eu&secret_key=***"),
        ("http://host:5000 mail@example.org", "http://host:5000 mail@example.org"),
        ("sqlite:////runs/me@home/mlflow.db", "sqlite:////runs/me@home/mlflow.db"),
    ],
)
def test_addresses(text, shown):
    assert masked_address(text) == shown


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("MLFLOW_TRACKING_PASSWORD", PLANTED, True),
        ("AWS_SECRET_ACCESS_KEY", PLANTED, True),
        ("HF_TOKEN", PLANTED, True),
        ("DB_PASS", PLANTED, True),
        ("MYSQL_PWD", PLANTED, True),
        ("REGISTRY_AUTH", PLANTED, True),
        ("PWD", PLANTED, False),
        ("OLDPWD", PLANTED, False),
        ("COMPASS", PLANTED, False),
        ("MLFLOW_TRACKING_URI", f"http://me:{PLANTED}@host", True),
        ("RAY_AUTH_TOKEN_PATH", PLANTED, False),  # where it is, not what it is
        ("SOME_TOKEN", "on", False),  # too short: "on" is in every other word
    ],
)
def test_values_of_the_environment(monkeypatch, name, value, hidden):
    monkeypatch.setenv(name, value)
    said = f"refused {PLANTED} on line 3"
    assert masked(said) == (said.replace(PLANTED, "***") if hidden else said)
    assert (PLANTED not in failure_reason(ValueError(said))) is hidden


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tracking.uri", f"http://me:{PLANTED}@host:5000"),
        ("tracking.uri", f"http://me:a/{PLANTED}@host:5000"),
        ("cluster.address", f"ray://me:{PLANTED}@host:1"),
        ("cluster.address", f"ray://me:a/{PLANTED}@host:1"),
        ("tracking.uri", f"postgresql://host/mlflow?password={PLANTED}"),
        ("storage_path", f"s3://AKIA:{PLANTED}@bucket/runs"),
    ],
)
def test_configs_hold_none(key, value):
    with pytest.raises(ConfigError, match="must hold no credentials") as caught:
        compose("digits", [f"{key}={value}"])
    assert str(caught.value).startswith(f"{key} = ")
    assert PLANTED not in str(caught.value)


def test_config_that_takes_the_address_from_the_environment_holds_none_either(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PLANTED}@host")
    with pytest.raises(ConfigError, match="must hold no credentials") as caught:
        build(RunConfig, {"tracking": {"uri": "${oc.env:MLFLOW_TRACKING_URI}"}})
    assert PLANTED not in str(caught.value)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_command_that_fails_shows_none(monkeypatch, tmp_path, capfd, debug):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PLANTED}@127.0.0.1:9")
    assert main(["compare", *debug, f"storage_path={tmp_path}"]) == 2
    out, err = capfd.readouterr()
    assert "MLflow at tracking.uri = http://***@127.0.0.1:9 does not answer" in err
    assert ("Traceback" in err) is bool(debug)
    assert PLANTED not in out + err
