"""Rows of corrected decoding: failures, and controls of several shuffles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.inputs import Output
from hemorrhage.analyze.rows import corrections, mitigations
from hemorrhage.analyze.rows.draws import Draws
from hemorrhage.analyze.rows.mitigations import Damage
from hemorrhage.analyze.spec import Spec
from hemorrhage.compress.methods.weight_quantization import awq, rtn
from tests.analyze.rows.made import evaluation, inputs_of, variant

SPEC = Spec(400, 0.95, 0)


def test_a_failed_side_is_a_row_with_its_reason() -> None:
    found = inputs_of(
        variant("rtn-3", "rtn", rtn.Settings(bits=3, group_size=64), failure="no luck"),
        variant("awq-3", "awq", awq.Settings(bits=3, group_size=64)),
    )
    trials = mitigations.trials(found, {"awq-3": evaluation(0.3, 0)}, [], SPEC, Draws())
    (trial,) = trials
    assert trial.missing == "rtn-3: no luck"
    failed = Output({"failure": "out of memory", "corpus": "prose", "sha256": "ab"}, {})
    (trial,) = corrections.trials_of(found.variants["awq-3"], failed, SPEC)
    assert trial.missing == "out of memory"


def test_a_control_of_two_shuffles_shows_its_luck() -> None:
    rng = np.random.default_rng(0)
    shuffles = [Damage(0.5 + shift, 0.5 + shift + 0.001 * rng.normal(size=400), 16) for shift in (0.1, -0.1)]
    joined = corrections.mean_control(shuffles, SPEC)
    assert joined.estimate == pytest.approx(0.5)
    assert joined.replicates.std() == pytest.approx(0.1, rel=0.05)


def text_row(correction: str, item: int, shuffled: int = 0, **more: object) -> dict[str, object]:
    known = {"search": "greedy", "task": "open_ended", "dataset": "prose", "text": "", "answer": "", "correct": False}
    measured = {"tokens": list(range(12)), "base_nll": 2.0, "agreement": 12, "base_length": 12}
    return {"correction": correction, "item": item, "shuffled": shuffled, **known, **measured, **more}


def written(*rows: dict[str, object]) -> Output:
    manifest = {
        "corpus": "prose",
        "datasets": {"prose": {"sha256": "ab"}, "sums": {"sha256": "cd"}},
        "protocol": {"prose": "window=64 windows=8", "sums": "items=8 new_tokens=3"},
        "spec": {"open_ended": {"items": 8, "prefix": 4, "new_tokens": 12}},
    }
    tokens = pd.DataFrame(columns=["correction", "shuffled", "part", "dataset"])
    return Output(manifest, {"tokens.parquet": tokens, "texts.parquet": pd.DataFrame(rows)})  # type: ignore[arg-type]


SIDES = (("none", 0), ("bias", 0), ("bias", 1), ("bias", 2))
LOOP = [3, 4] * 6


def looping() -> Output:
    """A variant that loops after four tokens on every item, a bias that undoes it on all, and controls that don't."""
    rows = []
    for item in range(8):
        rows.append(text_row("base", item))
        for name, control in SIDES:
            repaired = (name, control) == ("bias", 0)
            damage = {} if repaired else {"tokens": LOOP, "agreement": 3, "base_nll": 3.5 + 0.01 * item}
            rows.append(text_row(name, item, control, **damage))
    return written(*rows)


def test_the_damage_of_texts_is_what_the_bases_do_better() -> None:
    measured = {each.metric: each for each in corrections._written(looping(), "bias", SPEC)}
    assert set(measured) == {"greedy_divergence", "greedy_loops", "greedy_surprise"}
    wanted = {"greedy_divergence": 1 - 3 / 12, "greedy_loops": 1.0, "greedy_surprise": 1.5 + 0.035}
    for metric, damage in wanted.items():
        one = measured[metric]
        assert one.plain.estimate == pytest.approx(damage)
        assert one.treated.estimate == pytest.approx(0)
        assert one.control is not None
        assert one.control.estimate == pytest.approx(damage)
        assert one.plain.blocks == 8
        assert mitigations.verdict(one, 0.95, 0.1) == "recovers"
    assert measured["greedy_loops"].source.protocol == "items=8 prefix=4 new_tokens=12; greedy"


def test_answers_are_lost_where_the_base_is_right() -> None:
    rows = []
    for item in range(24):
        sums: dict[str, Any] = {"task": "closed_ended", "dataset": "sums", "base_nll": np.nan}
        rows.append(text_row("base", item, correct=item < 18, **sums))
        rows += [text_row(name, item, control, correct=item == 23, **sums) for name, control in SIDES]
    (one,) = corrections._written(written(*rows), "bias", SPEC)
    assert one.metric == "greedy_wrong_answers"
    assert one.plain.estimate == pytest.approx((18 - 1) / 24)
    assert mitigations.verdict(one, 0.95, 0.1) == "not worth it"


def test_rows_of_texts_name_correction_and_search() -> None:
    variant_ = variant("rtn-3", "rtn", rtn.Settings(bits=3, group_size=64))
    rows = pd.DataFrame(corrections._text_rows(variant_, looping(), SPEC)).set_index("metric")
    assert rows.loc["loop_rate{correction=none,search=greedy}", "estimate"] == 1
    assert rows.loc["loop_rate{correction=bias,search=greedy}", "estimate"] == 0
    assert rows.loc["agreement_tokens{correction=bias,shuffled=1,search=greedy}", "estimate"] == 3
    assert rows.loc["base_nll{correction=base,search=greedy}", "estimate"] == 2
