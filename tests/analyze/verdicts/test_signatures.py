"""Rules of thumb on texts made so that each holds, fails or can't be decided."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.rows.floors import Floors
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts import signatures
from tests.analyze.report.examples import variant

SPEC = Spec(resamples=400, confidence=0.95, seed=0)


def sweep_of(
    right: dict[str, list[bool]], settings: dict[str, dict[str, Any]], length: int = 128, **columns: Any
) -> signatures.Texts:
    generator = np.random.default_rng(0)
    rows = [
        {
            "strategy": name,
            "settings": json.dumps(settings[name]),
            "task": "closed_ended",
            "dataset": "recall",
            "item": item,
            "length": length,
            "accuracy": float(one),
            "rep_4": columns.get("rep_4", {}).get(name, 0.0) + 0.01 * generator.normal(),
            "base_nll": columns.get("base_nll", {}).get(name, 1.0) + 0.01 * generator.normal(),
        }
        for name, outcomes in right.items()
        for item, one in enumerate(outcomes)
    ]
    human = pd.DataFrame({"item": range(20), "tokens": [list(range(30))] * 20, "base_nll": 2.0})
    return signatures.Texts("v", "recall", pd.DataFrame(rows), human)


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"strategy": "greedy"},
    "cold": {"strategy": "temperature", "temperature": 0.3},
    "hot": {"strategy": "temperature", "temperature": 1.5},
    "fsd": {"strategy": "fsd"},
}
ALIKE = {name: [True] * 20 for name in SETTINGS}


def verdicts(asked: Iterable[signatures.Asked]) -> list[str]:
    """What is decided of some questions together."""
    return [test.verdict for test in signatures.decide(asked, SPEC)]


def test_rules_hold_fail_or_are_not_told_apart() -> None:
    texts = sweep_of(ALIKE, SETTINGS, rep_4={"greedy": 0.5, "cold": 0.4}, base_nll={"cold": 1.0, "hot": 4.0})
    assert verdicts(signatures._repetition(texts)) == [signatures.HOLDS] * 3
    assert verdicts(signatures._incoherence(texts, None, None)) == [signatures.HOLDS]
    even = sweep_of(ALIKE, SETTINGS)
    assert verdicts(signatures._incoherence(even, None, None)) == [signatures.FAILS]
    reverse = sweep_of(ALIKE, SETTINGS, base_nll={"cold": 4.0, "hot": 1.0})
    assert verdicts(signatures._incoherence(reverse, None, None)) == [signatures.FAILS]
    one = {name: settings for name, settings in SETTINGS.items() if name != "hot"}
    lacking = sweep_of({name: ALIKE[name] for name in one}, one)
    assert verdicts(signatures._incoherence(lacking, None, None)) == [signatures.UNTESTED]
    better = sweep_of({**ALIKE, "cold": [False] * 20}, SETTINGS)
    assert verdicts([signatures._fsd(better, Floors())]) == [signatures.HOLDS]


def test_a_test_that_could_not_have_found_the_effect_has_no_power() -> None:
    # Twenty items in all of which both are right could hide a share of 14 % in which they are not.
    (alike,) = signatures.decide([signatures._fsd(sweep_of(ALIKE, SETTINGS), Floors())], SPEC)
    assert alike.verdict == signatures.NO_POWER
    assert alike.mde == pytest.approx(1 - 0.2 ** (1 / 20))
    assert "0.077 would have been seen" in alike.evidence
    short = sweep_of(ALIKE, SETTINGS, length=16, rep_4={"greedy": 0.5})
    (test,) = signatures.decide(signatures._repetition(short), SPEC)
    assert (test.verdict, test.evidence) == (
        signatures.NO_POWER,
        "texts of at most 16 tokens: repetition shows from 64 on",
    )


def test_punished_strategies_and_constants_are_no_evidence() -> None:
    better = sweep_of({**ALIKE, "cold": [False] * 20}, SETTINGS)
    (test,) = signatures.decide([signatures._fsd(better, Floors(punished={"fsd": "its penalty"}))], SPEC)
    assert (test.verdict, test.evidence) == (signatures.UNTESTED, "its penalty")
    (lost,) = signatures.decide(
        [signatures._spread(better, Floors(lost="answers '2' on 20 of 20"), aligned=True, spec=SPEC)], SPEC
    )
    assert (lost.verdict, lost.evidence) == (signatures.UNTESTED, "answers '2' on 20 of 20")


def test_few_bits_are_bits_of_quantized_weights_at_a_sane_temperature() -> None:
    base = sweep_of(ALIKE, SETTINGS)
    hot_alone = sweep_of(ALIKE, SETTINGS, base_nll={"hot": 9.0})
    worse = sweep_of(ALIKE, SETTINGS, base_nll=dict.fromkeys(SETTINGS, 3.0))

    tests = list(signatures.decide(signatures._incoherence(worse, base, variant("rtn-2", "bits", 2.3)), SPEC))
    by_test = {test.test: test.verdict for test in tests}
    assert by_test["its texts surprise the base model more than the base's own"] == signatures.HOLDS
    tests = list(signatures.decide(signatures._incoherence(hot_alone, base, variant("rtn-2", "bits", 2.3)), SPEC))
    by_test = {test.test: test.verdict for test in tests}
    assert by_test["its texts surprise the base model more than the base's own"] == signatures.FAILS
    for axis, severity, reason in (
        ("bits", 3.3, "its weights have 3.3 bits; the rule is about fewer than 3"),
        ("sparsity", 0.5, "its weights are not quantized; the rule is about fewer than 3"),
    ):
        tests = list(signatures.decide(signatures._incoherence(worse, base, variant("v", axis, severity)), SPEC))
        assert {test.evidence for test in tests if test.verdict == signatures.UNTESTED} == {reason}


def test_the_spread_is_judged_by_what_the_model_is() -> None:
    generator = np.random.default_rng(4)
    skill = {"greedy": 0.9, "cold": 0.9, "hot": 0.2, "fsd": 0.9}
    far = sweep_of({name: (generator.random(200) < p).tolist() for name, p in skill.items()}, SETTINGS)
    alike = sweep_of({name: [True] * 190 + [False] * 10 for name in SETTINGS}, SETTINGS)
    few = sweep_of({name: (generator.random(10) < 0.4).tolist() for name in SETTINGS}, SETTINGS)
    expected = {
        True: (signatures.FAILS, signatures.HOLDS, signatures.NO_POWER),
        False: (signatures.HOLDS, signatures.FAILS, signatures.NO_POWER),
    }
    for aligned, wanted in expected.items():
        asked = [signatures._spread(texts, Floors(), aligned, SPEC) for texts in (far, alike, few)]
        assert tuple(verdicts(asked)) == wanted
    named = inputs.Inputs({"model": {"name": "smollm2-135m-instruct"}}, {}, {}, {}, {}, {}, {})
    assert signatures.is_aligned(named)
    assert not signatures.is_aligned(inputs.Inputs({"model": {"name": "stories"}}, {}, {}, {}, {}, {}, {}))
