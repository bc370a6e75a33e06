"""Rules of thumb on texts made so that each holds, fails or can't be decided."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from hemorrhage.analyze.rows import stability
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts import signatures

SPEC = Spec(resamples=400, confidence=0.95, seed=0)


def sweep_of(right: dict[str, list[bool]], settings: dict[str, dict[str, Any]], **columns: Any) -> signatures.Texts:
    rows = [
        {
            "strategy": name,
            "settings": json.dumps(settings[name]),
            "task": "closed_ended",
            "dataset": "recall",
            "item": item,
            "accuracy": float(one),
            "rep_4": columns.get("rep_4", {}).get(name, 0.0) + 0.01 * item,
            "base_nll": columns.get("base_nll", {}).get(name, 1.0) + 0.01 * item,
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


def test_rules_hold_fail_or_are_not_told_apart() -> None:
    right = {name: [True] * 20 for name in SETTINGS}
    texts = sweep_of(right, SETTINGS, rep_4={"greedy": 0.5, "cold": 0.4}, base_nll={"cold": 1.0, "hot": 4.0})
    assert [verdict.verdict for verdict in signatures._repetition(texts, SPEC)] == [signatures.HOLDS] * 3
    assert [verdict.verdict for verdict in signatures._incoherence(texts, None, SPEC)] == [signatures.HOLDS]
    even = sweep_of(right, SETTINGS)
    assert [verdict.verdict for verdict in signatures._incoherence(even, None, SPEC)] == [signatures.OPEN]
    assert signatures._fsd(even, SPEC).verdict == signatures.OPEN
    reverse = sweep_of(right, SETTINGS, base_nll={"cold": 4.0, "hot": 1.0})
    assert [verdict.verdict for verdict in signatures._incoherence(reverse, None, SPEC)] == [signatures.FAILS]
    one = {name: settings for name, settings in SETTINGS.items() if name != "hot"}
    lacking = sweep_of({name: right[name] for name in one}, one)
    assert next(signatures._incoherence(lacking, None, SPEC)).verdict == signatures.UNTESTED
    better = sweep_of({**right, "cold": [False] * 20, "hot": [False] * 20}, SETTINGS)
    assert signatures._fsd(better, SPEC).verdict == signatures.HOLDS


def test_the_spread_must_beat_chance_too() -> None:
    generator = np.random.default_rng(4)
    skill = {"greedy": 0.9, "cold": 0.9, "hot": 0.2, "fsd": 0.9}
    far = sweep_of({name: (generator.random(200) < p).tolist() for name, p in skill.items()}, SETTINGS)
    assert signatures._spread(far, SPEC).verdict == signatures.HOLDS
    few = sweep_of({name: (generator.random(10) < 0.4).tolist() for name in SETTINGS}, SETTINGS)
    assert signatures._spread(few, SPEC).verdict == signatures.OPEN
    alike = sweep_of({name: [True] * 19 + [False] for name in SETTINGS}, SETTINGS)
    assert signatures._spread(alike, SPEC).verdict == signatures.FAILS


def test_a_spread_over_a_single_right_answer_has_no_interval() -> None:
    lucky = {name: [name == "greedy"] + [False] * 5 for name in SETTINGS}
    verdict = signatures._spread(sweep_of(lucky, SETTINGS), SPEC)
    assert verdict.verdict == signatures.OPEN
    assert "100 % (too few right answers for an interval)" in verdict.evidence
    nothing = np.zeros((6, 4))
    right = np.array(list(lucky.values()), dtype=float).T
    assert stability.compare(nothing, right, "recall", SPEC) is None
    assert stability.compare(right, right, "recall", SPEC) is None
