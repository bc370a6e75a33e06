"""How far numbers transfer: said of the corpora that are there, with ratios that can be checked by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pandas as pd

from hemorrhage.analyze.report.page import render
from hemorrhage.analyze.report.sections.transfer import draws_sentence, texts_sentence
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.study import Study
from tests.analyze.report.examples import inputs, row, variant

VARIANTS = (
    variant("gptq-4", calibrated=True),
    variant("awq-4", calibrated=True),
    variant("rtn-4", calibrated=False),
    variant("gptq_again-4", calibrated=True, redrawn=True, is_control=True),
)
KLS = {
    "gptq-4": {"c4": 0.1, "ptb": 0.3, "code": 0.5},
    "awq-4": {"c4": 0.2, "ptb": 0.3, "code": 0.3},
    "rtn-4": {"c4": 0.4, "ptb": 0.3, "code": 0.3},
    "gptq_again-4": {"c4": 0.1, "ptb": 9.0, "code": 9.0},
}


def made(corpora: list[str], calibration: tuple[str, ...] = ("c4",)) -> Study:
    rows = [row(name, "kl_mean[w]", kls[corpus], dataset=corpus) for name, kls in KLS.items() for corpus in corpora]
    nothing: Any = None
    return Study(
        inputs=inputs(*VARIANTS),
        rows=pd.DataFrame(rows),
        blocks=dict.fromkeys(corpora, 8),
        suites=[],
        trials=[],
        thresholds=[],
        flags=[],
        verdicts=[],
        recommended=nothing,
        decoded=nothing,
        examined=nothing,
        claims=[],
        spec=Spec(100, 0.95, 0, calibration=calibration),
        provenance={},
    )


def test_damage_off_the_calibration_s_corpora_is_compared_with_that_on_them() -> None:
    sentence = texts_sentence(made(["c4", "ptb", "code"]))
    # GPTQ: 0.4 over 0.1; AWQ: 0.3 over 0.2. Repetitions count once.
    assert "a number on c4 holds for other documents of the same kind, one on ptb and code for text" in sentence
    assert "2.8 times as much for calibrated variants (median of 2)" in sentence
    assert "0.75 times as much for variants without calibration (median of 1) as on c4." in sentence


def test_what_is_not_measured_is_said() -> None:
    assert "other documents of the same: expect more" in texts_sentence(made(["c4"]))
    assert "other kinds (ptb and code) alone: expect less" in texts_sentence(made(["ptb", "code"]))
    assert texts_sentence(made(["c4"], calibration=())) == ""
    alone = made(["c4"])
    assert texts_sentence(replace(alone, inputs=inputs(VARIANTS[2]))) == ""
    assert draws_sentence(replace(alone, inputs=inputs(VARIANTS[2]))) == ""


def test_draws_are_assumed_until_three_repetitions_measured_them() -> None:
    assert "10\u00a0% of the damage, which is assumed" in draws_sentence(made(["c4"]))
    twins = [variant("gptq-4", calibrated=True, settings={"bits": 4})]
    twins += [
        variant(f"again_{n}-4", calibrated=True, redrawn=True, is_control=True, settings={"bits": 4}) for n in (1, 2, 3)
    ]
    rows = [
        row(each.name, "kl_mean[w]", kl, dataset="c4") for each, kl in zip(twins, (0.1, 0.1, 0.12, 0.12), strict=True)
    ]
    measured = replace(made(["c4"]), inputs=inputs(*twins), rows=pd.DataFrame(rows))
    # ln 1.2 = 0.1823; of two values twice the standard deviation is that over the root of 3.
    assert "10.5\u00a0% of the damage for rtn, as again_1-4, again_2-4 and again_3-4 measured it" in draws_sentence(
        measured
    )


def test_the_page_says_both(study: Study) -> None:
    page = re.sub(r"</?a[^>]*>", "", render(study))
    assert texts_sentence(study) in page
    assert draws_sentence(study) in page
    assert "Calibration read" in page or not study.spec.calibration
