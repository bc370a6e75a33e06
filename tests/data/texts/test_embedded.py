"""Corpora out of installed packages: splits that share nothing, prose that reads as prose."""

from __future__ import annotations

import pytest

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


LICENCES = {
    "BSD": (
        "Redistributions of source code must retain the above copyright notice, this list of conditions and the "
        "following disclaimer.",
        "Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote "
        "products derived from this software without specific prior written permission.",
        "In no event shall the regents and contributors be liable for any direct, indirect, incidental, special, "
        "exemplary, or consequential damages, however caused and on any theory.",
    ),
    "MIT": (
        "Permission is hereby granted, free of charge, to any person obtaining a copy of this software, to deal in it "
        "without restriction, including the right to sublicense and to sell copies.",
        'The software is provided "as is", without warranty of any kind, express or implied, including but not limited '
        "to the warranties of merchantability and noninfringement.",
    ),
    "Apache": (
        "You may not use this file except in compliance with the License, of which you may obtain a copy at the "
        "address that is named below.",
    ),
    "GNU": (
        "This program is free software, which you can redistribute and modify under the terms that the Free Software "
        "Foundation published.",
    ),
    "a notice": (
        "Copyright 2002 by the authors of this module, who keep all of their rights in it and in its documentation.",
    ),
}


@pytest.mark.parametrize("licence", LICENCES)
def test_licences_are_no_prose(licence: str) -> None:
    for paragraph in LICENCES[licence]:
        assert not embedded._reads_as_prose(paragraph)
    assert embedded._reads_as_prose(
        "Some authors limit the definition to have a prescribed least length, and we warrant that we do not do so here."
    )


def test_the_corpus_has_nothing_of_the_licences_that_its_sources_have(prose: dict[str, list[str]]) -> None:
    # Of networkx' centrality/second_order.py and numpy's distutils, word for word.
    phrases = (
        "redistributions of source code",
        "redistributions in binary form",
        "nor the names of its contributors",
        "this software is provided",
        "merchantability",
        "all rights reserved",
        "given under the terms",
        "is hereby granted",
    )
    whole = " ".join(text for texts in prose.values() for text in texts).lower()
    assert [phrase for phrase in phrases if phrase in whole] == []


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
