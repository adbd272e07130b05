"""The one line of an error that says what happened."""

from __future__ import annotations


def failure_reason(error: BaseException | None) -> str:
    """``Type: message`` of the innermost cause of a Ray error, at most 500 characters."""
    if error is None:
        return "unknown: Ray kept no error"
    cause: BaseException = error
    seen = {id(cause)}
    while True:
        inner = getattr(cause, "cause", None) or cause.__cause__
        if not isinstance(inner, BaseException) or id(inner) in seen:
            break
        cause = inner
        seen.add(id(cause))
    lines = [line.strip() for line in str(cause).strip().splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    name = type(cause).__name__
    return (last if last.startswith(name) or "Error" in last[:60] else f"{name}: {last}")[:500]
