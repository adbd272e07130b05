"""The note of a run in MLflow: Markdown, of which only our part is ever rewritten.

In it ``[text](run:ID)`` links to the run of ours with that id, ``[text](view:NAME)`` to the saved
view of a search.
"""

from __future__ import annotations

import re
from collections.abc import Callable

TAG = "mlflow.note.content"
END = "<!-- morel: what is above is rewritten, what is below is yours -->"
LONGEST = 8_000
"""Characters that MLflow keeps."""

_LINK = re.compile(r"\[((?:[^\]\\]|\\.)*)\]\((run|view):([^)\s]+)\)")


def linked(text: str, address: Callable[[str, str], str | None]) -> str:
    """``text`` with its links as MLflow's pages; a link to what is not there is left as its text.

    Args:
        text: Markdown.
        address: of a page, by kind (``"run"`` or ``"view"``) and name; None if there is none.
    """

    def put(found: re.Match[str]) -> str:
        label, kind, name = found.groups()
        place = address(kind, name)
        return f"[{label}]({place})" if place else label

    return _LINK.sub(put, text)


def merged(ours: str, there: str | None) -> str:
    """The note with ``ours`` as our part; what a person has written ``there`` stays."""
    before, found, after = (there or "").partition(END)
    theirs = (after if found else before).strip()
    room = LONGEST - len(END) - len(theirs) - 4
    if len(ours) > room:
        ours = f"{ours[: max(0, room - 1)]}…"
    return "\n\n".join([ours, END, *([theirs] if theirs else [])])
