"""The gate: what it lets through, what it says, how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hemorrhage import cli
from hemorrhage.runtime.command import ANSWERS, CANNOT_TELL, NO, NOT_MEASURED, USAGE, YES, CommandError
from hemorrhage.tools import gate
from tests.conftest import ROOT


def row(
    variant: str, metric: str, dataset: str, estimate: float, half: float, n: int = 100, **more: Any
) -> dict[str, Any]:
    content: dict[str, Any] = {
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
    table.attrs["engines"] = {name: {"loads": "vLLM 1.0 (CUDA)", "hindrance": ""} for name in "abcd"}
    return table


def unloadable(rows: pd.DataFrame, name: str, loads: str = "") -> pd.DataFrame:
    """The rows, of which nothing can use the gain of one variant."""
    table = rows.copy()
    table.attrs = {**rows.attrs, "engines": {**rows.attrs["engines"], name: {"loads": loads, "hindrance": "rotated"}}}
    return table


def test_what_nothing_loads_does_not_pass_unless_it_is_asked_for(rows: pd.DataFrame) -> None:
    table = unloadable(rows, "a")
    verdict = gate.answer(table, BUDGET, "a")
    assert verdict.status == NO
    assert verdict.lines == ["a: nothing loads it: rotated; --theoretical asks about its damage alone"]
    assert verdict.as_json(BUDGET)["variants"]["a"]["answer"] == ANSWERS[NO]
    assert gate.answer(table, BUDGET, "d,a").status == NO
    asked = gate.answer(table, BUDGET, "a", theoretical=True)
    assert asked.status == YES
    assert asked.lines[-1] == "a: nothing loads it: rotated"


def test_without_a_name_the_gain_is_one_that_an_engine_can_use(rows: pd.DataFrame) -> None:
    table = unloadable(rows, "a", loads="vLLM 1.0 (CUDA)")
    assert gate.answer(rows, BUDGET, "").smallest == "a"
    assert gate.answer(table, BUDGET, "").smallest is None
    assert gate.answer(table, BUDGET, "", theoretical=True).smallest == "a"
    assert gate.answer(table, BUDGET, "a").status == YES, "named, it is loaded as it lies on disk"


def test_rows_that_do_not_say_what_loads_a_variant_pass_nothing(rows: pd.DataFrame) -> None:
    table = rows.copy()
    table.attrs = {"confidence": 0.95}
    with pytest.raises(CommandError, match="don't say what loads"):
        gate.answer(table, BUDGET, "a")
    assert gate.answer(table, BUDGET, "a", theoretical=True).status == YES


BUDGET = {"kl": 0.1, "flips": 0.1}


def test_a_variant_inside_passes(rows: pd.DataFrame) -> None:
    verdict = gate.answer(rows, BUDGET, "a")
    assert verdict.status == YES
    assert verdict.lines[0].startswith("a: inside; nearest its limit is mean_flips on all tasks: 0.01 (0 to 0.02;")


def test_a_line_for_each_limit_that_does_not_hold(rows: pd.DataFrame) -> None:
    verdict = gate.answer(rows, {"kl": 0.1, "flips": 0.015}, "b,c")
    assert verdict.status == NO
    checks = verdict.checks
    needed = [checks["b"][1].needed, checks["c"][0].needed, checks["c"][1].needed]
    assert verdict.lines == [
        "b: kl_mean[w128] on prose: 0.2 (0.19 to 0.21; upper bound 0.2166), limit 0.1: outside",
        "b: mean_flips on all tasks: 0.02 (0.01 to 0.03; upper bound 0.0766), limit 0.015: not resolved, "
        f"about {needed[0]:,} fresh items would tell, 100 measured",
        "c: kl_mean[w128] on prose: 0.095 (0.085 to 0.105; upper bound 0.1116), limit 0.1: not resolved, "
        f"about {needed[1]:,} fresh windows would tell, 100 measured",
        "c: mean_flips on all tasks: 0.03 (0.02 to 0.04; upper bound 0.09184), limit 0.015: not resolved, "
        f"about {needed[2]:,} fresh items would tell, 100 measured",
    ]


def test_a_name_is_judged_with_all_that_could_have_been_picked(rows: pd.DataFrame) -> None:
    named = gate.answer(rows, {"kl": 0.1}, "c").checks["c"]
    assert named == gate.answer(rows, {"kl": 0.1}, "").checks["c"], "as without a name"
    alone = gate.answer(rows, {"kl": 0.1}, "c", is_alone=True).checks["c"]
    assert alone[0].level == pytest.approx(0.05)
    assert (named[0].bound or 0) > (alone[0].bound or 0)
    apart = rows.copy()
    apart.attrs = {**rows.attrs, "candidates": {"usable": ["a", "b", "d"], "theoretical": []}}
    assert gate.answer(apart, {"kl": 0.1}, "c").checks["c"] == alone, "a control takes part in no choice"
    assert gate.answer(apart, {"kl": 0.3}, "").smallest == "b"
    apart.attrs["candidates"] = {"usable": ["a", "d"], "theoretical": []}
    assert gate.answer(apart, {"kl": 0.3}, "").smallest == "a", "a control is never picked"


def test_alone_needs_names(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(CommandError, match="--alone needs the names"):
        gate.main(["kl=0.1", "--alone", "--rows", str(tmp_path / "rows.parquet")])
    assert gate.main(["kl=0.1", "--alone", "--variant", "a", "--rows", str(tmp_path / "rows.parquet")]) == YES


def test_without_a_name_something_has_to_be_worth_shipping(rows: pd.DataFrame) -> None:
    verdict = gate.answer(rows, BUDGET, "")
    assert (verdict.status, verdict.smallest) == (YES, "a")
    assert verdict.lines[-1] == "1 of 4 variants are smaller than the base and inside; the smallest is a, 0.0 MB"
    verdict = gate.answer(rows, {"kl": 0.001}, "")
    assert (verdict.status, verdict.smallest) == (NO, None), "what is inside is larger than the base"
    assert verdict.lines[-1] == "none of the 3 variants that are smaller than the base is inside"
    verdict = gate.answer(rows[rows["variant"] != "a"], BUDGET, "")
    assert verdict.status == CANNOT_TELL
    assert verdict.lines[-1].endswith("is inside; cannot tell for c")


def test_limits_that_nothing_measures_are_named_with_the_question_that_leaves_them_out(rows: pd.DataFrame) -> None:
    verdict = gate.answer(rows, {"kl": 0.5, "accuracy_loss_points": 10}, "")
    assert verdict.status == NOT_MEASURED
    way_out = "; nothing measures accuracy_loss_points: without them, hemorrhage gate kl=0.5"
    assert verdict.lines[-1].endswith(way_out)
    assert "nothing measures" not in gate.answer(rows, {"accuracy_loss_points": 10}, "").lines[-1], "none is left"


def test_all_means_all(rows: pd.DataFrame) -> None:
    assert gate.answer(rows, BUDGET, "all").status == NO
    assert gate.answer(rows, {"kl": 0.5}, "all").status == YES


def test_a_limit_within_an_interval_cannot_be_told(rows: pd.DataFrame) -> None:
    assert gate.answer(rows, {"kl": 0.1}, "c").status == CANNOT_TELL
    assert gate.answer(rows, {"kl": 0.1}, "a,c").status == CANNOT_TELL
    assert gate.answer(rows, {"kl": 0.1}, "b,c").status == NO, "one that is outside decides"


def test_a_failed_variant_is_not_measured_and_says_its_reason(rows: pd.DataFrame) -> None:
    verdict = gate.answer(rows, {"kl": 0.1}, "e")
    assert verdict.status == NOT_MEASURED
    assert verdict.lines == ["e: kl_mean[w128] on prose: no number, limit 0.1: not measured, it broke"]


def test_what_nobody_measured_is_not_inside(rows: pd.DataFrame) -> None:
    assert gate.answer(rows, {"accuracy_loss_points": 10}, "a").status == NOT_MEASURED
    assert gate.answer(rows, {"accuracy_loss_points": 10}, "").status == NOT_MEASURED
    assert gate.answer(rows, {"kl": 0.1, "accuracy_loss_points": 10}, "b").status == NO, "a broken limit decides"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task_loss=0.1", "BUDGET: task_loss is now accuracy_loss_points"),
        (
            "kls=0.1",
            "BUDGET: kls is unknown; allowed: kl, kl_p99, kl_worst_window, flips, accuracy_loss_points, perplexity",
        ),
        ("kl=much", "BUDGET: kl: must be a number"),
        ("flips=2", "BUDGET: flips: must be less than 1"),
        ("perplexity=0.9", "BUDGET: perplexity: must be more than 1"),
        ("kl=", "BUDGET: kl: must be a number"),
        ("kl=inf", "BUDGET: kl: must be a finite number"),
        ("perplexity=inf", "BUDGET: perplexity: must be a finite number"),
        ("kl=0.1,kl=0.2", "BUDGET: kl has two limits"),
        ("nowhere.yaml", "BUDGET: nowhere.yaml is neither a file nor"),
    ],
)
def test_a_wrong_budget_is_named(text: str, message: str) -> None:
    with pytest.raises(CommandError, match=message.replace("(", r"\(")):
        gate.parse(text)


def test_a_budget_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "budget.yaml"
    file.write_text("kl: 0.1\nflips: 0.05\n")
    assert gate.parse(str(file)) == {"kl": 0.1, "flips": 0.05}
    file.write_text("analyze: {budget: {kl: 0.2, accuracy_loss_points: null}}\n")
    assert gate.parse(str(file)) == {"kl": 0.2}
    file.write_text("analyze: {budget: {}}\n")
    with pytest.raises(CommandError, match="BUDGET is empty"):
        gate.parse(str(file))
    file.write_text("[1, 2]")
    with pytest.raises(
        CommandError,
        match=r"neither kl, kl_p99, kl_worst_window, flips, accuracy_loss_points, perplexity nor analyze\.budget",
    ):
        gate.parse(str(file))
    file.write_text("analyze: [1]")
    with pytest.raises(CommandError, match="neither kl"):
        gate.parse(str(file))


def test_a_budget_is_read_like_params_yaml(tmp_path: Path) -> None:
    file = tmp_path / "budget.yaml"
    file.write_text("kl: 0.1\n", encoding="utf-8-sig")
    assert gate.parse(str(file)) == {"kl": 0.1}
    for content, reason in (
        ("kl: 0.1\n".encode("utf-16"), "it is in UTF-16; save it as UTF-8"),
        (b"kl: 0.1 # caf\xe9\n", "line 1 is not in UTF-8; save it as UTF-8"),
        (b"kl: [", "line 1: not YAML: "),
    ):
        file.write_bytes(content)
        with pytest.raises(CommandError, match=f"^BUDGET: {file}: {reason}"):
            gate.parse(str(file))


def test_an_unknown_variant_is_named(rows: pd.DataFrame) -> None:
    with pytest.raises(CommandError, match="VARIANT: z is not a variant; variants are a, b, c, d, e"):
        gate.answer(rows, BUDGET, "z")


def test_an_unknown_variant_is_wrong_before_a_run_and_after_one_and_a_planned_one_is_not_measured(
    rows: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.parquet"
    for measured in (False, True):
        if measured:
            rows.to_parquet(file)
        for variant, status in (("rtn-4,z", USAGE), ("rtn-4", NOT_MEASURED)):
            assert cli.main(["gate", "kl=0.1", "--variant", variant, "--rows", str(file)]) == status
            assert capsys.readouterr().err.count("\n") == 1
    Path("params.yaml").write_text("- broken")
    assert cli.main(["gate", "kl=0.1", "--variant", "z", "--rows", str(file)]) == USAGE
    file.unlink()
    assert cli.main(["gate", "kl=0.1", "--variant", "z", "--rows", str(file)]) == NOT_MEASURED


@pytest.fixture
def command(rows: pd.DataFrame, tmp_path: Path) -> Callable[..., int]:
    """Run the gate on these rows."""
    rows.to_parquet(tmp_path / "rows.parquet")
    return lambda *arguments: cli.main(["gate", *arguments, "--rows", str(tmp_path / "rows.parquet")])


@pytest.mark.parametrize(("variant", "status"), [("a", YES), ("b", NO), ("c", CANNOT_TELL), ("e", NOT_MEASURED)])
def test_the_exit_code_is_the_answer(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], variant: str, status: int
) -> None:
    assert command("kl=0.1", "--variant", variant) == status
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{variant}: ")
    assert not shown.err
    assert command("kl=0.1", "--variant", variant, "--json") == status
    content = json.loads(capsys.readouterr().out)
    assert content["answer"] == content["variants"][variant]["answer"] == ANSWERS[status]
    assert content["budget"] == {"kl": 0.1}
    assert content["variants"][variant]["checks"][0]["limit"] == 0.1


@pytest.mark.parametrize(
    "arguments", [("kl=0.1", "--variant", "z"), ("kls=0.1",), ("nowhere.yaml",), ("kl=0.1", "--variant", "")]
)
def test_the_default_asks_about_all_and_what_is_wrong_is_one_line(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    expected = YES if arguments[-1] == "" else USAGE
    assert command(*arguments) == expected
    assert capsys.readouterr().err.count("\n") == (expected == USAGE)


def test_without_rows_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.parquet"
    assert cli.main(["gate", "kl=0.1", "--rows", str(file)]) == NOT_MEASURED
    file.write_text("no parquet")
    assert cli.main(["gate", "kl=0.1", "--rows", str(file)]) == USAGE
    pd.DataFrame({"variant": ["a"]}).to_parquet(file)
    assert cli.main(["gate", "kl=0.1", "--rows", str(file)]) == USAGE
    first, second, third = capsys.readouterr().err.splitlines()
    assert "does not exist; run the study" in first
    assert "can't be read" in second
    assert "lacks family, metric" in third
