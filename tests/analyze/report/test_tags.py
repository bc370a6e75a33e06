"""Texts of HTML that may hold links."""

from __future__ import annotations

import pytest

from hemorrhage.analyze.report.tags import in_texts


def texts(html: str, *closed: str) -> list[str]:
    return [piece for piece, is_text in in_texts(html, closed) if is_text and piece]


@pytest.mark.parametrize(
    ("html", "kept"),
    [
        ("<p>a <b>b</b> c</p>", ["a ", "b", " c"]),
        ("<p>a<a href='#'>b <i>c</i></a>d</p>", ["a", "d"]),
        ("a<pre>b</pre><summary>c</summary>d", ["a", "d"]),
        ('<p class="text">a <mark>b</mark> c</p><p>d</p>', ["d"]),
        ("a<script>b</script>c", ["a"]),
        ("a<h2>b</h2>c", ["a", "c"]),
    ],
)
def test_texts_outside_of_links_and_of_what_others_wrote(html: str, kept: list[str]) -> None:
    assert texts(html, "h2") == kept


def test_nothing_is_lost() -> None:
    html = "<p>a<a>b</a></p><script>c</script><p>d</p>"
    assert "".join(piece for piece, _ in in_texts(html)) == html
