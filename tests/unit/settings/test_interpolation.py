"""What a config may read from the environment, and what not."""

import pytest

from morel_core.errors import ConfigError, MorelError
from orchestrator.config import compose
from orchestrator.settings.interpolation import number


def test_variables_of_the_list_are_put_in(monkeypatch, tmp_path):
    monkeypatch.setenv("MOREL_STORAGE", str(tmp_path))
    monkeypatch.setenv("MOREL_EPOCHS", "7")
    config = compose(
        "digits",
        [
            "storage_path=${oc.env:MOREL_STORAGE}/runs",
            "training.epochs=${oc.env:MOREL_EPOCHS}",
            "tracking.experiment=${oc.env:MOREL_UNSET,by default}",
        ],
    )
    assert config.storage_path == f"{tmp_path}/runs"
    assert config.training.epochs == 7
    assert config.tracking.experiment == "by default"


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
        *(
            "MOREL_DB_PASSWORD",
            "MOREL_DB_PASS",
            "MOREL_API_KEY",
            "MOREL_STATE_KEY",
            "RAY_AUTH_TOKEN",
            "XMOREL_A",
            "home",
        ),
    ],
)
def test_no_other_is_read_and_the_error_names_it_and_the_list(monkeypatch, name):
    monkeypatch.setenv(name, "planted-value")
    with pytest.raises(ConfigError) as caught:
        compose("digits", [f"tracking.experiment=${{oc.env:{name},x}}"])
    said = str(caught.value)
    assert said.startswith("tracking.experiment = ")
    assert "may read HOME, USER, MLFLOW_TRACKING_URI and what begins with MOREL_" in said
    assert f"not {name}" in said
    assert "planted-value" not in said
    assert "\n" not in said


def test_variable_that_is_not_set(monkeypatch):
    monkeypatch.delenv("MOREL_STORAGE", raising=False)
    with pytest.raises(MorelError, match=r"MOREL_STORAGE is not set: .*\$\{oc\.env:MOREL_STORAGE,"):
        number("${oc.env:MOREL_STORAGE}/runs")


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:${oc.env:HOME}}",
        "${oc.decode:${oc.env:HOME}}",
        "${oc.env:HOME,${oc.env:PATH}}",
        "${training.epochs}",
        "${oc.env:}",
        "${",
    ],
)
def test_nothing_else_is_replaced(text):
    with pytest.raises(MorelError, match="the only interpolations in a config are"):
        number(text)


def test_value_of_a_variable_is_taken_as_it_is(monkeypatch):
    monkeypatch.setenv("MOREL_TEXT", "${oc.env:PATH} !!python/name:os.system")
    assert number("${oc.env:MOREL_TEXT}") == "${oc.env:PATH} !!python/name:os.system"
