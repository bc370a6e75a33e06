"""A base that was quantized before: said where one reads what to ship, and no claim on quantization is sure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts.claims import CLAIMS
from tests import synthetic
from tests.analyze.report.test_page import unpacked

SPEC = Spec(resamples=100, confidence=0.95, seed=0, budget=synthetic.BUDGET)
BYTES = 98_000_000


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=16, window=64)
    manifest = outputs["base"][0] / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "quantized_before": {"type": "Q4_1", "bytes": BYTES}}))
    out = tmp_path_factory.mktemp("out") / "reports"
    synthetic.report(out, inputs.read(outputs), SPEC)
    return out


def test_what_to_ship_says_what_the_base_takes_without_loss(reports: Path) -> None:
    recommendation: dict[str, Any] = json.loads((reports / "recommendation.json").read_text())
    base = recommendation["lossless_base"]
    assert (base["type"], base["bytes"]) == ("Q4_1", BYTES)
    assert base["size"] == pytest.approx(BYTES / (synthetic.PARAMETERS * 2 + 30_000), rel=1e-5)
    page = (reports / "index.html").read_text()
    assert "The base was quantized before this study: as Q4_1 it takes 98.0\N{NO-BREAK SPACE}MB" in page
    assert b"The base as Q4_1, without loss" in unpacked(page, "figures-packed"), "on the axis of sizes"


def test_no_claim_about_quantization_is_more_than_of_low_confidence(reports: Path) -> None:
    about = {claim.key for claim in CLAIMS if claim.quantized}
    assert {"three_bits", "quantization_first", "five_fold"} <= about
    rows = {entry["key"]: entry for entry in json.loads((reports / "claims.json").read_text())["claims"]}
    assert {rows[key]["grade"] for key in about} <= {"low", "none"}
    assert all("quantized before (Q4_1)" in rows[key]["grade_reason"] for key in about if rows[key]["grade"] == "low")
    others = [entry["grade_reason"] for key, entry in rows.items() if key not in about]
    assert not any("quantized before" in reason for reason in others)
