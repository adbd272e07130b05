"""What a config may hold beside plain values: fractions, and a few environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, cast

from morel_core.errors import MorelError
from orchestrator.messages.masking import is_secret

DECIMAL = r"\s*(\d+\.?\d*|\.\d+)\s*"
FRACTION = re.compile(rf"^(?:\$\{{frac:{DECIMAL},{DECIMAL}\}}|{DECIMAL}/{DECIMAL})$")
ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([^,{}\s]+)\s*(?:,([^{}]*))?\}")
ALLOWED = ("HOME", "USER", "MLFLOW_TRACKING_URI")
ALLOWED_PREFIX = "MOREL_"  # unless the rest of the name says that it is a secret


def number(value: Any) -> Any:
    """A config's plain value of what is written: numbers for fractions, the environment's text.

    Args:
        value: ``"${frac:8,255}"`` and ``"8/255"`` become floats; ``${oc.env:NAME}`` and
            ``${oc.env:NAME,default}`` inside a text become the variable's; lists and mappings of
            such values, too.

    Raises:
        MorelError: any other interpolation, a division by zero, or a variable that is not set or
            not in `ALLOWED`.
    """
    if isinstance(value, list):
        return [number(item) for item in cast(list[Any], value)]
    if isinstance(value, Mapping):
        return {key: number(item) for key, item in cast(Mapping[str, Any], value).items()}
    if not isinstance(value, str):
        return value
    match = FRACTION.match(value.strip())
    if match:
        top, bottom = (float(part) for part in match.groups() if part is not None)
        if bottom == 0:
            raise MorelError(f"{value!r} divides by zero")
        return top / bottom
    if "${" in ENVIRONMENT.sub("", value):
        raise MorelError(
            f"the only interpolations in a config are ${{frac:8,255}} and ${{oc.env:NAME}}, "
            f"not {value!r}"
        )
    return ENVIRONMENT.sub(_variable, value)


def _variable(match: re.Match[str]) -> str:
    name: str = match[1]
    default: str | None = match[2]
    if not (name in ALLOWED or name.startswith(ALLOWED_PREFIX)) or is_secret(name):
        raise MorelError(
            f"${{oc.env:{name}}}: a config may read {', '.join(ALLOWED)} and what begins with "
            f"{ALLOWED_PREFIX} (no passwords, tokens or keys), not {name}"
        )
    if name in os.environ:
        return os.environ[name]
    if default is not None:
        return default
    raise MorelError(
        f"${{oc.env:{name}}}: {name} is not set: set it, or write ${{oc.env:{name},default}}"
    )
