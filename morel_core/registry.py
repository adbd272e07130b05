"""One registry type for everything that a config chooses by name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from morel_core.errors import ConfigError

FactoryT = TypeVar("FactoryT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[FactoryT]):
    """What a name stands for: the factory and the dataclass that configures it."""

    factory: FactoryT
    config_class: type


def suggestion(name: str, known: list[str]) -> str:
    """``known`` as a sentence, led by the closest spelling if there is one."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"


class Registry(Generic[FactoryT]):
    """Names → (factory, config class).

    Args:
        key: the config key that chooses from this registry, named in errors (``"model.name"``).
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._entries: dict[str, Entry[FactoryT]] = {}

    def register(self, name: str, config_class: type) -> Callable[[FactoryT], FactoryT]:
        """Decorator that enters a factory under ``name``; raises ValueError if it is taken."""

        def enter(factory: FactoryT) -> FactoryT:
            if name in self._entries:
                raise ValueError(f"{self.key} {name!r} is registered already")
            self._entries[name] = Entry(factory, config_class)
            return factory

        return enter

    def enter(self, name: str, config_class: type, place: str) -> None:
        """Enter ``"package.module:function"``, which is imported when it is first called."""

        def factory(*arguments: Any) -> Any:
            module, _, function = place.partition(":")
            return getattr(importlib.import_module(module), function)(*arguments)

        self.register(name, config_class)(cast(FactoryT, factory))

    def get(self, name: str) -> Entry[FactoryT]:
        """The entry of ``name``; raises `ConfigError` naming the closest one."""
        # "torchvision/resnet18" is looked up as its family, "torchvision".
        entry = self._entries.get(name) or self._entries.get(name.partition("/")[0] + "/")
        if entry is None:
            raise ConfigError(self.key, name, suggestion(name, sorted(self)))
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
