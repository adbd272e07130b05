"""Credentials kept out of what is shown and recorded."""

from __future__ import annotations

import os
import re

HIDDEN = "***"
# All between :// and the last @ (a password may hold / ? #; behind :/// a path begins), and secrets
# among an address's parameters.
USER_INFO = re.compile(r"(?<=://)(?!/)[^\s'\"<>]+(?=@)")
PARAMETER = re.compile(
    r"(?<=[?&])((?:\w*_)?(?:key|pass|passwd|password|secret|token))=[^&\s'\"<>]+", re.IGNORECASE
)
# Names of environment variables whose values are secrets; those that end so only name a file.
# PWD and OLDPWD are the shell's own.
SECRET = re.compile(
    r"PASS(WORD|WD|PHRASE)|SECRET|TOKEN|CREDENTIAL|(ACCESS|API|PRIVATE|STATE)_?KEY"
    r"|(^|_)(PASS|AUTH)$|_PWD$"
)
NOT_SECRET = ("_PATH", "_FILE", "_MODE")
SHORTEST = 6  # a value of fewer characters would be found in innocent words


def masked_address(text: str) -> str:
    """``text`` with ``***`` for user and password in its addresses (``scheme://user:pw@host``)."""
    return PARAMETER.sub(rf"\1={HIDDEN}", USER_INFO.sub(HIDDEN, text))


def masked(text: str) -> str:
    """``text`` with ``***`` also for the values of the environment's secrets."""
    text = masked_address(text)
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def is_secret(name: str) -> bool:
    """Whether an environment variable of that name holds a secret."""
    name = name.upper()
    return SECRET.search(name) is not None and not name.endswith(NOT_SECRET)


def _secrets() -> set[str]:
    values = {value for name, value in os.environ.items() if is_secret(name)}
    for value in os.environ.values():
        for user_info in USER_INFO.findall(value) if "://" in value else ():
            values.add(user_info.partition(":")[2])
    return {value for value in values if len(value) >= SHORTEST}
