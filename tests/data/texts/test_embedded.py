"""Corpora out of installed packages: splits that share nothing, prose that reads as prose."""

from __future__ import annotations

from hemorrhage.data.texts import embedded


def test_embedded_splits_share_no_document(prose: dict[str, list[str]]) -> None:
    for split in (prose, embedded.documents("code"), embedded.documents("humaneval")):
        assert all(text.strip() for texts in split.values() for text in texts)
        assert not set(split["calibration"]) & set(split["evaluation"])


def test_prose_has_no_paragraph_twice_and_reads_as_prose(prose: dict[str, list[str]]) -> None:
    paragraphs = [paragraph for texts in prose.values() for text in texts for paragraph in text.split("\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(paragraph[0].isupper() and paragraph[-1] in ".!?" for paragraph in paragraphs)
    assert not any(mark in paragraph for paragraph in paragraphs for mark in (">>>", "::", "``", "  "))


def test_embedded_splits_are_long_enough_for_the_default_run(prose: dict[str, list[str]]) -> None:
    # SmolLM2 reads 4.5 characters of the prose and 3.7 of the code as a token.
    assert all(sum(map(len, texts)) > 4.6 * 60_000 for texts in prose.values())
    assert all(sum(map(len, texts)) > 3.8 * 60_000 for texts in embedded.documents("code").values())


def test_plain_takes_marks_away_and_keeps_words() -> None:
    marked = "* See :func:`~numpy.linalg.norm`, ``x`` and *both* [1]_,\n  which :class:`the class <a.B>` needs."
    assert embedded._plain(marked) == "See norm, x and both, which the class needs."


def test_code_and_humaneval_are_programs() -> None:
    for corpus in ("code", "humaneval"):
        for texts in embedded.documents(corpus).values():
            for text in texts:
                compile(text, corpus, "exec")
    assert sum(map(len, embedded.documents("humaneval").values())) == 164
