"""The reference of all settings, from the dataclasses that check them."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from morel_core.catalogue import DATASETS, MODELS
from morel_core.config import DataConfig, ModelConfig
from morel_core.registry import Registry
from orchestrator.campaign.settings import CampaignSettings
from orchestrator.config import RunConfig
from orchestrator.search import parameters
from orchestrator.search.settings import SearchSettings

INTRODUCTION = """\
# Configuration

Generated from the dataclasses that read and check the settings. Every key can be set in a file and
as `key=value` on the command line. A key that does not exist, a wrong type and a value out of range
are refused with a line that says what is allowed. `null` is YAML's nothing.
"""
RUN = """\
## A run

The keys of a recipe, for `morel train`, `morel evaluate` and the trials of a search.
"""
WORDS = {float: "number", int: "whole number", bool: "true or false", str: "text", Any: "any value"}
REQUIRED = "required"


def page() -> str:
    """The whole page as Markdown."""
    parts = [
        INTRODUCTION,
        RUN,
        *sections(RunConfig),
        "## Data sets by name\n\nWhat `data` has under a `data.name` beside the keys above.\n",
        *by_name(DATASETS, DataConfig, "data"),
        "## Models by name\n\nWhat `model` has under a `model.name` beside the keys above.\n",
        *by_name(MODELS, ModelConfig, "model"),
        "## A search\n\nThe keys of a file in `search_spaces/`, for `morel tune`.\n",
        *sections(SearchSettings),
        "## Entries of a search's parameters\n\nBy their `type`.\n",
        *kinds(),
        "## A campaign\n\nThe keys of a file for `morel campaign`.\n",
        *sections(CampaignSettings),
    ]
    return "\n".join(parts)


def sections(cls: type, prefix: str = "", default: Any = None) -> Iterator[str]:
    """The tables of a config class and of the sections inside it, each under its dotted key."""
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if not dataclasses.is_dataclass(hints[f.name])]
    if prefix:
        yield f"### `{prefix}`\n\n{describe(cls)}\n"
    yield table(cls, prefix, names, default)
    for field in dataclasses.fields(cls):
        key = f"{prefix}.{field.name}" if prefix else field.name
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner = getattr(default, field.name) if default else made(field)
            yield from sections(type(inner), key, None if inner == type(inner)() else inner)
        elif is_list_of_sections(hint):
            yield from sections(get_args(hint)[0], f"{key}[i]")


def is_list_of_sections(hint: Any) -> bool:
    """Whether a field is a list, each entry of which has keys of its own."""
    return get_origin(hint) is list and dataclasses.is_dataclass(get_args(hint)[0])


def by_name(registry: Registry[Any], base: type, section: str) -> Iterator[str]:
    """One part for each class that a name chooses, with what it has beyond ``base``."""
    classes: dict[type, list[str]] = {}
    for name in registry:
        classes.setdefault(registry.get(name).config_class, []).append(name)
    known = {field.name for field in dataclasses.fields(base)}
    for cls, names in classes.items():
        told = ", ".join(f"`{name}…`" if name.endswith("/") else f"`{name}`" for name in names)
        own = [field.name for field in dataclasses.fields(cls) if field.name not in known]
        yield f"### `{section}.name`: {told}\n"
        if cls is base:
            yield f"No keys beside those of `{section}`.\n"
        else:
            yield f"{describe(cls)}\n\n{table(cls, section, own)}"


def kinds() -> Iterator[str]:
    """One part for each kind of parameter of a search."""
    for name, cls in parameters.KINDS.items():
        names = [field.name for field in dataclasses.fields(cls)]
        yield f"### `type: {name}`\n\n{describe(cls)}\n\n{table(cls, '', names)}"


def table(cls: type, prefix: str, names: list[str], default: Any = None) -> str:
    """Key, type, default and docstring of the fields ``names``."""
    if not names:
        return ""
    hints, docs = get_type_hints(cls), field_docs(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for name in names:
        key = f"{prefix}.{name}" if prefix else name
        value = getattr(default, name) if default is not None else made(fields[name])
        cells = [f"`{key}`", in_words(hints[name]), written(value), docs.get(name, "")]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def made(field: dataclasses.Field[Any]) -> Any:
    """A field's default as declared, before anything is resolved on this machine."""
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def written(value: Any) -> str:
    """A default as YAML has it."""
    if value is dataclasses.MISSING:
        return REQUIRED
    if isinstance(value, float):
        return f"`{value:.6g}`"
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`"


def in_words(hint: Any) -> str:
    """A type as its reader calls it: ``float | None`` → number or null."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        told = [in_words(argument) for argument in arguments if argument is not types.NoneType]
        return " or ".join([*told, *(["null"] if types.NoneType in arguments else [])])
    if is_list_of_sections(hint):
        return "list of sections"
    if origin is list:
        return f"list of {plural(in_words(arguments[0]))}"
    if origin is tuple:
        return f"list of {len(arguments)} {plural(in_words(arguments[0]))}"
    if origin is dict:
        return "mapping"
    return WORDS[hint]


def plural(words: str) -> str:
    """Of the words for a type."""
    return f"{words}s" if words.endswith("number") else words.replace("any value", "values")


def describe(cls: type) -> str:
    """A class's docstring, on one line for each paragraph, without its reST."""
    return flowing(inspect.getdoc(cls) or "")


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Field → the docstring below it, of the class and those it inherits from."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                docs[field.target.id] = flowing(str(below.value.value)).replace("\n\n", "<br>")
    return docs


def flowing(text: str) -> str:
    """Paragraphs of one line each, with Markdown's backticks."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join(" ".join(part.split()) for part in paragraphs).replace("``", "`")
