"""The gate: what it lets through, what it says, how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hemorrhage.tools import gate


def row(variant: str, metric: str, dataset: str, estimate: float, half: float, n: int = 100, **more: Any) -> dict:
    content = {
        "variant": variant,
        "family": "weight_quantization",
        "metric": metric,
        "dataset": dataset,
        "estimate": estimate,
    }
    return {**content, "low": estimate - half, "high": estimate + half, "n": n, "status": "ok", "reason": "", **more}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    found = [row("base", "disk_bytes", "", 1000, 0)]
    made = (("a", 500, 0.02, 0.01), ("b", 300, 0.2, 0.02), ("c", 400, 0.095, 0.03), ("d", 1200, 0.0, 0.0))
    for name, size, kl, flips in made:
        found += [
            row(name, "disk_bytes", "", size, 0),
            row(name, "kl_mean[w128]", "prose", kl, 0.01),
            row(name, "mean_flips", "all tasks", flips, 0.01),
        ]
    failed = row("e", "kl_mean[w128]", "prose", float("nan"), 0, status="failed", reason="it broke")
    table = pd.DataFrame([*found, failed])
    table.attrs["confidence"] = 0.95
    return table


BUDGET = {"kl": 0.1, "flips": 0.1}


def test_a_variant_inside_passes(rows: pd.DataFrame) -> None:
    opens, lines = gate.answer(rows, BUDGET, "a")
    assert opens
    assert lines[0].startswith("a: inside; nearest its limit is kl_mean[w128] on prose: 0.02 (0.01 to 0.03")


def test_a_line_for_each_limit_that_does_not_hold(rows: pd.DataFrame) -> None:
    opens, lines = gate.answer(rows, {"kl": 0.1, "flips": 0.015}, "b,c")
    assert not opens
    assert lines == [
        "b: kl_mean[w128] on prose: 0.2 (0.19 to 0.21; upper bound 0.21), limit 0.1: outside",
        "b: mean_flips on all tasks: 0.02 (0.01 to 0.03; upper bound 0.03), limit 0.015: not resolved, "
        "about 400 items needed, 100 are there",
        "c: kl_mean[w128] on prose: 0.095 (0.085 to 0.105; upper bound 0.105), limit 0.1: not resolved, "
        "about 400 windows needed, 100 are there",
        "c: mean_flips on all tasks: 0.03 (0.02 to 0.04; upper bound 0.04), limit 0.015: outside",
    ]


def test_without_a_name_something_has_to_be_worth_shipping(rows: pd.DataFrame) -> None:
    opens, lines = gate.answer(rows, BUDGET, "")
    assert opens
    assert lines[-1] == "1 of 4 variants are smaller than the base and inside; the smallest is a, 0.0 MB"
    opens, lines = gate.answer(rows, {"kl": 0.001}, "")
    assert not opens, "what is inside is larger than the base"
    assert lines[-1] == "none of the 3 variants that are smaller than the base is inside"


def test_all_means_all(rows: pd.DataFrame) -> None:
    assert not gate.answer(rows, BUDGET, "all")[0]
    assert gate.answer(rows, {"kl": 0.5}, "all")[0]


def test_a_failed_variant_is_outside_with_its_reason(rows: pd.DataFrame) -> None:
    opens, lines = gate.answer(rows, {"kl": 0.1}, "e")
    assert not opens
    assert lines == ["e: kl_mean[w128] on prose: no number, limit 0.1: not measured, it broke"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kls=0.1", "BUDGET: kls is unknown; allowed: kl, flips, task_loss, perplexity"),
        ("kl=much", "BUDGET: kl: Input should be a valid number"),
        ("flips=2", "BUDGET: flips: Input should be less than 1"),
        ("perplexity=0.9", "BUDGET: perplexity: Input should be greater than 1"),
        ("kl=", "BUDGET: kl: Input should be"),
        ("nowhere.yaml", "BUDGET: nowhere.yaml is neither a file nor"),
    ],
)
def test_a_wrong_budget_is_named(text: str, message: str) -> None:
    with pytest.raises(gate.UnanswerableError, match=message.replace("(", r"\(")):
        gate.parse(text)


def test_a_budget_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "budget.yaml"
    file.write_text("kl: 0.1\nflips: 0.05\n")
    assert gate.parse(str(file)) == {"kl": 0.1, "flips": 0.05}
    file.write_text("analyze: {budget: {kl: 0.2, task_loss: null}}\n")
    assert gate.parse(str(file)) == {"kl": 0.2}
    file.write_text("analyze: {budget: {}}\n")
    with pytest.raises(gate.UnanswerableError, match="limits nothing"):
        gate.parse(str(file))
    file.write_text("[1, 2]")
    with pytest.raises(gate.UnanswerableError, match=r"neither kl, flips, task_loss, perplexity nor analyze\.budget"):
        gate.parse(str(file))


def test_an_unknown_variant_is_named(rows: pd.DataFrame) -> None:
    with pytest.raises(gate.UnanswerableError, match="VARIANT: there is no z; there are a, b, c, d, e"):
        gate.answer(rows, BUDGET, "z")


def test_how_it_ends(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.to_parquet(tmp_path / "rows.parquet")
    ends = {}
    for name, options in {"in": ["--variant", "a"], "out": ["--variant", "b"], "no": ["--variant", "z"]}.items():
        command = [sys.executable, "-m", "hemorrhage.tools.gate", "kl=0.1", "--rows", str(tmp_path / "rows.parquet")]
        ends[name] = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert {name: done.returncode for name, done in ends.items()} == {"in": 0, "out": 1, "no": 2}
    assert "limit 0.1: outside" in ends["out"].stdout
    assert ends["no"].stderr.startswith("VARIANT: there is no z")
