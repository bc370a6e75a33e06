"""HTML taken apart into tags and texts, to link words in texts alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

TAG = re.compile(r"(<[^>]*>)")
NAME = re.compile(r"</?(\w+)")
PLAIN = ("a", "pre", "option", "title", "style", "script", "summary")
"""Elements whose text holds no links."""

WRITTEN = 'class="text"'
"""Marks an element whose text somebody else wrote, a model or a data set."""


def in_texts(html: str, closed: Collection[str] = ()) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of HTML, and whether each is a text that may hold links: up to the first script, outside of
    PLAIN and ``closed`` elements and of what others wrote."""
    before, script, rest = html.partition("<script")
    inside = ""
    for piece in TAG.split(before):
        if piece.startswith("<"):
            match = NAME.match(piece)
            if match and inside == match[1] and piece.startswith("</"):
                inside = ""
            elif match and not inside and (match[1] in PLAIN or match[1] in closed or WRITTEN in piece):
                inside = "" if piece.startswith("</") else match[1]
            yield piece, False
        else:
            yield piece, not inside
    yield script + rest, False
