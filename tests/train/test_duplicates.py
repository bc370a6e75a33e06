"""Paragraphs that go: what is measured, and what was there before."""

from __future__ import annotations

from hemorrhage.train.duplicates import NGRAM, Runs, distinct


def words(first: int, count: int) -> str:
    return " ".join(f"word{number}" for number in range(first, first + count))


def test_a_run_of_thirteen_words_of_a_measured_text_takes_the_paragraph() -> None:
    measured = [words(0, 100)]
    paragraphs = [words(50, 13) + " other words", words(50, 12) + " other words here and more", words(200, 30)]
    assert distinct(paragraphs, measured, keeps_short=False).tolist() == [False, True, True]


def test_letter_case_and_punctuation_do_not_matter() -> None:
    again = words(0, 20).upper().replace(" ", ", ")
    assert distinct([words(0, 20), again], [], keeps_short=False).tolist() == [True, False]


def test_near_duplicates_go_and_what_shares_less_than_half_stays() -> None:
    first = words(0, 40)
    near = words(0, 38) + " at last"
    # 14 of 40 - 12 = 28 runs are the first one's: half of them.
    half = words(0, 26) + " " + words(100, 14)
    assert distinct([first, near, half], [], keeps_short=False).tolist() == [True, False, True]


def test_short_paragraphs_may_stay() -> None:
    short = ["import os", "import os", words(0, 13), words(0, 13), words(5, 20), words(5, 20)]
    assert distinct(short, [], keeps_short=False).tolist() == [True, False, True, False, True, False]
    assert distinct(short, [], keeps_short=True).tolist() == [True, True, True, True, True, False]


def test_without_a_word_there_is_no_paragraph() -> None:
    assert distinct(["---", "a word"], [], keeps_short=True).tolist() == [False, True]


def test_every_window_of_thirteen_words_is_a_run() -> None:
    runs = Runs()
    assert len(runs.of(words(0, 30))) == 30 - NGRAM + 1
    assert len(runs.of("three short words")) == 1
    assert len({*runs.of(words(0, 30)).tolist()}) == 18
