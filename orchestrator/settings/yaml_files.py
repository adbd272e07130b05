"""The YAML files of users and of the project, and ``key=value`` on the command line, as values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from morel_core.errors import MorelError
from morel_core.registry import suggestion

QUOTED = ("'", '"', "[", "{")


def packaged(kind: str) -> dict[str, Path]:
    """The YAML files that come with the project: ``kind`` is "recipes" or "search_spaces"."""
    # Beside this package, in a checkout as in an installation.
    folder = Path(__file__).parents[2] / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_file(kind: str, name_or_path: str) -> Path:
    """A packaged file by name, or any file by path; raises `MorelError` listing the known names."""
    known = packaged(kind)
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    raise MorelError(
        f"{kind[:-1].replace('_', ' ')} {name_or_path!r} is neither a file nor a known name: "
        f"{suggestion(name_or_path, list(known))}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises `MorelError` with the line if it is no such thing."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise MorelError(f"{path}: {' '.join(str(error).split())}") from None
    except Exception as error:  # yaml's errors share no base class with the above
        raise MorelError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise MorelError(f"{path}: must hold keys and values, not {type(content).__name__}")
    return cast(dict[str, Any], content)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``["a.b=1"]`` → ``{"a.b": 1}``, values read as YAML; raises `MorelError`."""
    values: dict[str, Any] = {}
    for item in overrides:
        key, sign, text = item.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts) or "[" in key:
            raise MorelError(f"override {item!r}: write key=value, as in training.epochs=5")
        try:
            parsed = OmegaConf.from_dotlist([item])
            values[key.strip()] = OmegaConf.to_container(parsed, resolve=False)
        except Exception as error:
            raise MorelError(f"override {item!r}: {' '.join(str(error).split())}") from None
        for part in parts:
            values[key.strip()] = values[key.strip()][part]
        if " #" in text and text.lstrip()[:1] not in QUOTED:
            raise MorelError(
                f"override {item!r}: in YAML ' #' begins a comment: put the value in quotes, as in "
                f"""{key}='"a #b"'"""
            )
    return values
