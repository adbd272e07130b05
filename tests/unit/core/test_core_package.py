"""What `morel_core` offers, of which some is imported only when it is asked for."""

import pytest

import morel_core
from morel_core.catalogue import DATASETS, MODELS
from morel_core.errors import ConfigError
from morel_core.registry import Registry


def test_every_name_is_there():
    assert {name for name in morel_core.__all__ if getattr(morel_core, name, None) is None} == set()
    assert dir(morel_core) == sorted(morel_core.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Trainers'"):
        _ = morel_core.Trainers


def test_a_factory_is_imported_when_it_is_called():
    shapes = Registry("shape")
    shapes.enter("line", dict, "fractions:Fraction")
    shapes.enter("gone", dict, "fractions:Nothing")
    assert shapes.get("line").factory(6, 4) == 1.5
    with pytest.raises(AttributeError, match="Nothing"):
        shapes.get("gone").factory()
    with pytest.raises(ConfigError, match=r"^shape = 'lime': did you mean 'line'"):
        shapes.get("lime")


@pytest.mark.parametrize("registry", [DATASETS, MODELS], ids=["data", "models"])
def test_what_a_name_stands_for_is_there(registry):
    """Called without arguments each complains about these, not about its place."""
    for name in registry:
        with pytest.raises(TypeError, match="missing"):
            registry.get(name).factory()
