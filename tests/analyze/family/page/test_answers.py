"""Sentences about groups: what differs, what was not shown, and what could not be compared."""

from __future__ import annotations

import math
from dataclasses import replace

from hemorrhage.analyze.family.effects import Contrast
from hemorrhage.analyze.family.page import answers
from hemorrhage.analyze.family.results import Results


def test_a_difference_is_a_sentence_with_its_interval(results: Results) -> None:
    sentences = answers.answers(results)
    assert any(sentence.startswith("rtn-4, KL (nats per token): b ×") and " of a" in sentence for sentence in sentences)


def test_a_ratio_reads_as_one() -> None:
    each = Contrast("a", "b", math.log(2), math.log(1.5), math.log(3), 0.01, "differ")
    assert answers.contrast(each, is_ratio=True) == "b ×2 (1.5 to 3) of a"
    assert answers.contrast(replace(each, difference=0.5, low=-0.25, high=1.25), is_ratio=False) == (
        "b +0.5 (-0.25 to +1.25) of a"
    )


def test_absence_of_evidence_is_not_printed_as_absence(results: Results) -> None:
    silent = replace(
        results,
        effects=[
            replace(effect, contrasts=[replace(each, verdict="no difference shown") for each in effect.contrasts])
            for effect in results.effects
        ],
    )
    (sentence,) = answers.answers(silent)
    said, power = sentence.split("which is not to say that there is none. ")
    assert "no difference of two groups was shown" in said
    assert power.startswith("Of KL, four of five such studies would show a ratio of ")


def test_groups_that_are_too_small_say_so(results: Results) -> None:
    small = replace(
        results,
        effects=[
            replace(
                effect, contrasts=[replace(each, p=math.nan, verdict="too few models") for each in effect.contrasts]
            )
            for effect in results.effects
        ],
    )
    assert answers.answers(small) == ["No two groups were compared: a comparison takes at least 3 models of each."]
