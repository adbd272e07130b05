"""The one line of an error that says what happened."""

from __future__ import annotations

import re

from orchestrator.messages.masking import masked

ERROR_LINE = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt|Exit|Warning)\b.*)$")
LONGEST = 500
# torch on GPUs and CPUs, cuBLAS, NumPy and Python, and Ray's own guard of a node's memory.
OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|MemoryError\b|out of memory|not enough memory|DefaultCPUAllocator"
    r"|CUBLAS_STATUS_ALLOC_FAILED|running low on memory"
)
STORAGE_FAILED = re.compile(
    r"No space left on device|Read-only file system|Disk quota exceeded|File too large"
)
FAILED = "failed"
"""Key of a trial's last report, if it failed in a way that another attempt would only repeat."""
DETERMINISTIC = ("ConfigError", "MorelError")


def failure_reason(error: BaseException | str | None) -> str:
    """``Type: message`` of an error or of a traceback's text, at most 500 characters.

    Credentials in it are masked.

    Ray wraps an error of a worker several times, each time with the text of the one inside; the
    last line that names an error type is the innermost one.
    """
    if error is None:
        return "unknown: Ray kept no error"
    seen: set[int] = set()  # causes may form a circle
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        inner = error.__cause__ or getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in masked(text).strip().splitlines() if line.strip()]
    named = [i for i, line in enumerate(lines) if ERROR_LINE.match(line)]
    if not named:
        return " ".join(lines)[:LONGEST]
    match = ERROR_LINE.match(lines[named[-1]])
    assert match is not None
    return " ".join([match[1], *lines[named[-1] + 1 :]])[:LONGEST]


def out_of_memory(reason: str) -> bool:
    """Whether a `failure_reason` is that memory ran out."""
    return OUT_OF_MEMORY.search(reason) is not None


def storage_failed(reason: str) -> bool:
    """Whether a `failure_reason` is that the storage cannot be written."""
    return STORAGE_FAILED.search(reason) is not None


def repeats(reason: str, *, changed: bool = False) -> bool:
    """Whether another attempt would only repeat a `failure_reason`: the user has to mend it.

    ``changed``: the attempt was already one in micro-batches; memory is not retried twice.
    """
    return reason.startswith(DETERMINISTIC) or (changed and out_of_memory(reason))
