"""The digest of a text's documents."""

from __future__ import annotations

from hemorrhage.data.texts.documents import Document, digest


def test_the_digest_is_of_everything_a_row_says() -> None:
    row = Document(split="evaluation", document=0, text="x")
    others: list[Document] = [{**row, "text": "y"}, {**row, "document": 1}, {**row, "category": "a"}]
    assert digest([row]) == digest([{**row}])
    assert len({digest([each]) for each in [row, *others]}) == 4
