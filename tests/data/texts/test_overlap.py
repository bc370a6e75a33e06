"""Text that two files share."""

from __future__ import annotations

from pathlib import Path

from hemorrhage.data.texts.overlap import Overlap, overlap
from tests.chats import write_jsonl


def words(begin: int, end: int) -> str:
    return " ".join(f"word{number}" for number in range(begin, end))


def test_documents_and_runs_of_words_that_both_have_are_counted(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": words(0, 13)}, {"text": words(100, 113)}, {"text": "short"}])
    # The first with other signs between its words; the second not whole; the third as it is.
    other = write_jsonl(
        tmp_path / "b.jsonl",
        [{"text": words(0, 40).upper().replace(" ", ", ")}, {"text": words(100, 112)}, {"text": "short"}],
    )
    assert overlap(file, other) == Overlap(documents=1 / 3, ngrams=0.5)
    assert overlap(file, file) == Overlap(documents=1.0, ngrams=1.0)
    nothing = write_jsonl(tmp_path / "c.jsonl", [{"messages": [{"role": "user", "content": "other"}]}])
    assert overlap(file, nothing) == overlap(nothing, file) == Overlap(documents=0.0, ngrams=0.0)
