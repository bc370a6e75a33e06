"""Definitions of the page's words."""

from __future__ import annotations

import re

from hemorrhage.analyze.report import glossary
from hemorrhage.analyze.report.glossary import definition, link_words
from tests.analyze.report.test_page import page as page


def test_the_first_use_in_each_section_is_a_link() -> None:
    html = "<section><p>KL and KL.</p></section><section><p>Of the KL, p99.</p></section><script>KL</script>"
    linked = re.sub(r' title="[^"]*"', "", link_words(html))
    kl, tail = ('<a class="term" href="#term-kl">KL</a>', '<a class="term" href="#term-kl-p99">p99</a>')
    first = f"<section><p>{kl} and KL.</p></section>"
    assert linked == f"{first}<section><p>Of the {kl}, {tail}.</p></section><script>KL</script>"


def test_links_headings_and_what_a_model_wrote_stay_as_they_are() -> None:
    html = '<h2>KL</h2><a href="#x">KL</a><p class="text">a probe <mark>of KL</mark> and flips</p><code>flips</code>'
    assert link_words(html) == html


def test_words_within_words_are_none() -> None:
    html = "<p>kl_mean, KL-first, knees-up, uncontrolled, budgetary</p>"
    assert link_words(html) == html


def test_capitals_and_plurals_are_the_same_word() -> None:
    for text, word in (("Knees", "knee"), ("Flips", "flips"), ("q-values", "q-value"), ("Probe tasks", "probe")):
        assert f'href="#{next(each.id for each in glossary.entries() if each.word == word)}"' in link_words(text)


def test_a_label_has_the_definition_of_its_word() -> None:
    assert definition("KL p99") == glossary.DEFINITIONS["KL p99"]
    assert definition("Flips, %") == glossary.DEFINITIONS["flips"]
    assert definition("MB") == ""


def test_every_word_of_the_glossary_is_on_the_page_and_has_its_place(page: str) -> None:
    text = page[: page.index("<script")]
    for entry in glossary.entries():
        assert f'<dt id="{entry.id}">{entry.word}</dt>' in text
        assert entry.definition.endswith(".")
    assert len(set(re.findall(r'class="term" href="#([^"]*)"', text))) >= 12
