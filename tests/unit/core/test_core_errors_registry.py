"""Errors travel through processes whole; names are looked up, never imported."""

import pickle

import pytest

from morel_core.config import DataConfig, ModelConfig
from morel_core.errors import ConfigError, MorelError, check
from morel_core.registry import Registry, suggestion


@pytest.fixture
def shapes():
    registry = Registry("shape.name")
    registry.register("circle", DataConfig)(lambda: "a circle")
    registry.register("square", ModelConfig)(lambda: "a square")
    registry.register("star/", ModelConfig)(lambda: "a star")
    return registry


def test_config_error_survives_pickling():
    error = ConfigError("attack.eps", 8, "must be in (0, 1]")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is ConfigError
    assert (copy.key, copy.value, copy.allowed) == ("attack.eps", 8, "must be in (0, 1]")
    assert str(copy) == str(error) == "attack.eps = 8: must be in (0, 1]"


def test_morel_error_survives_pickling():
    copy = pickle.loads(pickle.dumps(MorelError("no data in /data: set data.root=…")))
    assert type(copy) is MorelError
    assert str(copy) == "no data in /data: set data.root=…"


def test_config_error_is_a_value_error_and_a_morel_error():
    error = ConfigError("k", 1, "less")
    assert isinstance(error, ValueError)
    assert isinstance(error, MorelError)


def test_within_prefixes_the_section():
    error = ConfigError("eps", 8, "too large").within("attack").within("evaluation")
    assert error.key == "evaluation.attack.eps"
    assert str(error) == "evaluation.attack.eps = 8: too large"


def test_check_raises_only_where_it_does_not_hold():
    check(True, "key", 1, "anything")
    with pytest.raises(ConfigError, match=r"^key = 'no': yes$"):
        check(False, "key", "no", "yes")


def test_registry_gives_factory_and_config_class(shapes):
    assert shapes.get("circle").factory() == "a circle"
    assert shapes.get("circle").config_class is DataConfig
    assert list(shapes) == ["circle", "square", "star/"]


def test_a_family_is_found_by_what_stands_before_the_slash(shapes):
    assert shapes.get("star/five").factory() == "a star"
    with pytest.raises(ConfigError):
        shapes.get("circle/five")


def test_a_name_taken_twice_is_refused_and_the_first_kept(shapes):
    with pytest.raises(ValueError, match=r"shape\.name 'circle' is registered already"):
        shapes.register("circle", DataConfig)(lambda: "another circle")
    assert shapes.get("circle").factory() == "a circle"


def test_unknown_name_is_answered_with_the_closest(shapes):
    with pytest.raises(ConfigError) as caught:
        shapes.get("cirlce")
    said = str(caught.value)
    assert said == "shape.name = 'cirlce': did you mean 'circle'? known: circle, square, star/"


def test_suggestion_without_anything_close():
    assert suggestion("zzz", ["circle", "square"]) == "known: circle, square"
