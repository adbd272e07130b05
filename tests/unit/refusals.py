"""How a wrong config is refused."""

from __future__ import annotations

import pytest

from morel_core import MorelError
from orchestrator.config import compose

SECRET = "a-secret-of-the-environment"


def refusal(recipe, *overrides):
    """The one line that says what is wrong."""
    with pytest.raises(MorelError) as caught:
        compose(recipe, overrides)
    said = str(caught.value)
    assert "\n" not in said
    assert SECRET not in said
    return said
