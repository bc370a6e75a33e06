"""What to ship, in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from hemorrhage.analyze.budget import INSIDE, OUTSIDE, UNRESOLVED, Check
from hemorrhage.analyze.report.sections import ship
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.shipping import Lossless, Size, Verdict
from tests.analyze.report.examples import variant

BYTES = 98_000_000


def check(answer: str, bound: float, kind: str = "kl", limit: float = 0.1, **fields: Any) -> Check:
    reason = "about 40 windows needed" if answer == UNRESOLVED else ""
    known = {"estimate": 0.8 * bound, "low": 0.7 * bound, "high": 0.9 * bound, "bound": bound, **fields}
    return Check(kind, "kl_mean", "prose", limit, answer, reason, **known)


def verdict(name: str, share: float, *checks: Check, hindrance: str = "") -> Verdict:
    return Verdict(variant(name), Size(int(1e6 * share), share, share, "vLLM", hindrance), list(checks))


SMALL = verdict("rtn-3", 0.2, check(OUTSIDE, 0.3))
LARGE = verdict("rtn-4", 0.3, check(INSIDE, 0.05))
OPEN = verdict("gptq-3", 0.2, check(UNRESOLVED, 0.11, estimate=0.08))
THEORETICAL = verdict("wanda-0.5", 0.1, check(INSIDE, 0.01), hindrance="zeros are stored")


def test_the_smallest_variant_inside_is_the_headline() -> None:
    advice = ship.advice([SMALL, LARGE])
    assert advice.headline == "rtn-4"
    assert advice.details == [
        "30\u00a0% of the base's bytes on disk (0.3\u00a0MB, 4.0 bits per parameter). "
        "Nearest its limit: KL on prose 0.04 (0.035 to 0.045), upper bound 0.05, limit 0.1.",
        "Loads in vLLM.",
        "1 of 2 variants are inside.",
    ]


def test_what_may_be_inside_and_what_no_engine_uses_are_named() -> None:
    advice = ship.advice([LARGE, OPEN, THEORETICAL])
    assert advice.headline == "rtn-4"
    assert any(
        line.startswith("wanda-0.5 is inside too and would be 10\u00a0%, but in theory") for line in advice.details
    )
    assert any(line.startswith("gptq-3 (20\u00a0%) may be inside: KL on prose") for line in advice.details)
    assert ship.advice([OPEN]).headline == "not decided"


def test_without_a_variant_inside_the_nearest_is_named() -> None:
    advice = ship.advice([SMALL])
    assert advice.headline == "nothing"
    assert advice.details[0].startswith("rtn-3 comes nearest: KL on prose")
    assert ship.advice([]).details == ["No variant could be measured."]


def test_several_broken_limits_are_counted() -> None:
    worst = verdict("rtn-2", 0.1, check(OUTSIDE, 0.3), check(OUTSIDE, 0.5, "flips"), check(OUTSIDE, 0.2))
    assert ship.advice([worst]).details[0].endswith("; 2 other checks not held.")


def test_a_base_that_was_never_quantized_has_nothing_to_say() -> None:
    assert ship.quantized_before(None, None) == ""
    text = ship.quantized_before(Lossless("Q4_1", BYTES, 0.36), None)
    assert text.endswith("36\N{NO-BREAK SPACE}% of what it takes here, and loses nothing.")


def test_a_pick_larger_than_the_original_base_is_not_worth_it() -> None:
    text = ship.quantized_before(Lossless("Q4_1", BYTES, 0.25), LARGE)
    assert text.endswith("rtn-4 is no smaller than that: ship the Q4_1 file instead.")


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [("kl", 0.0123, "0.012"), ("flips", 0.0123, "1.2\u00a0%"), ("perplexity", 1.5, "×1.50")],
)
def test_amounts_have_their_unit(kind: str, value: float, text: str) -> None:
    assert ship.amount(kind, value) == text


def test_the_budget_in_words() -> None:
    assert ship.budget_text({"perplexity": 1.1, "kl": 0.1}) == (
        "0.1 nats of KL per token, 1.1 times the base's perplexity"
    )


def test_rows_are_sorted_by_size_and_say_which_limit_decides() -> None:
    unmeasured = verdict("rtn-8", 0.5, check(OUTSIDE, 0.3), Check("flips", "", "", 0.1, "not measured", "no tasks"))
    rows = ship.verdict_rows([unmeasured, LARGE, OPEN], {"kl": 0.1, "flips": 0.1})
    assert [row.name for row in rows] == ["gptq-3", "rtn-4", "rtn-8"]
    assert [row.answer for row in rows] == [UNRESOLVED, INSIDE, OUTSIDE]
    assert [row.reason for row in rows] == ["kl", "kl", "kl, flips"]
    (kl, flips) = rows[2].cells
    assert kl is not None
    assert kl.note == "0.21 to 0.27, bound 0.3, prose"
    assert flips is not None
    assert (flips.text, flips.note, flips.sort) == ("–", "no tasks", "")
    assert rows[0].cells[1] is None


def test_the_section_of_a_study(study: Study) -> None:
    content = ship.section(study)
    assert content.limits[0][1] == "0.1"
    assert content.overall.headline == (study.recommended.overall.variant or "nothing")
    assert content.families[0].doubling.startswith("On prose, perplexity doubles at")
    assert len(content.verdicts) == 35
