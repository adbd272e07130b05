"""Errors whose message a user can act on; the command line prints them as one line."""

from __future__ import annotations


class MorelError(Exception):
    """Something the user can mend: the message names what was wrong and what to do."""


class ConfigError(MorelError, ValueError):
    """A setting out of its range.

    Args:
        key: dotted name of the setting, relative to the section that checks it.
        value: what was given.
        allowed: what is allowed, and what to write instead.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key} = {value!r}: {allowed}")
        self.key = key
        self.value = value
        self.allowed = allowed

    def within(self, section: str) -> ConfigError:
        """The same error seen from the config that holds ``section``."""
        return ConfigError(f"{section}.{self.key}", self.value, self.allowed)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return (type(self), (self.key, self.value, self.allowed))


def check(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise `ConfigError` for ``key`` unless ``holds``."""
    if not holds:
        raise ConfigError(key, value, allowed)
