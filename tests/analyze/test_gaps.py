"""Missing, failed and partial outputs: the report is made, and what is not there is a gap with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.spec import Spec
from hemorrhage.study.kinds import PAGE_FILES, ROWS_FILES
from tests import synthetic

SPEC = Spec(resamples=100, confidence=0.95, seed=0, budget=synthetic.BUDGET)
KINDS = ("checkpoints", "evaluations", "decodes", "harness", "code_tasks")
VARIANTS = ("base", "rtn-8", "gptq-4", "gptq-3", "wanda-0.5", "sparsegpt-0.7")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=8, window=32)
    kept = {kind: [path for path in found[kind] if path.parent.name in VARIANTS] for kind in KINDS}
    return {"base": found["base"], **kept}


def made(
    outputs: dict[str, Any], folder: Path, change: Callable[[Path], None], kind: str, variant: str
) -> dict[str, Any]:
    """The report after ``change`` was done to a copy of one output."""
    changed = {name: list(outputs[name]) for name in KINDS}
    for place, path in enumerate(changed[kind]):
        if path.parent.name == variant:
            changed[kind][place] = folder / kind / variant / path.name
            shutil.copytree(path, changed[kind][place])
            change(changed[kind][place])
    synthetic.report(folder / "out", inputs.read({**outputs, **changed}), SPEC)
    assert {file.name for file in (folder / "out").iterdir()} == {*ROWS_FILES, *PAGE_FILES, "provenance.json"}
    return {
        "page": (folder / "out/index.html").read_text(),
        "rows": pd.read_parquet(folder / "out/hemorrhage.parquet"),
        "ship": json.loads((folder / "out/recommendation.json").read_text()),
    }


def fail(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "failure": "MemoryError: <b>out of memory</b>"}))
    for table in folder.glob("*.parquet"):
        table.unlink()


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        ("evaluations", "gptq-4"),
        ("evaluations", "base"),
        pytest.param("checkpoints", "gptq-4", marks=pytest.mark.exhaustive),
        ("harness", "gptq-4"),
        ("code_tasks", "base"),
        pytest.param("decodes", "gptq-4", marks=pytest.mark.exhaustive),
        ("decodes", "base"),
    ],
)
def test_a_failed_output_is_a_gap_with_its_reason(
    outputs: dict[str, Any], tmp_path: Path, kind: str, variant: str
) -> None:
    found = made(outputs, tmp_path, fail, kind, variant)
    assert "MemoryError: &lt;b&gt;out of memory" in found["page"]
    assert "<b>out of memory" not in found["page"].partition('id="palettes-data"')[0]
    if kind in ("evaluations", "harness") and variant == "gptq-4":
        checks = found["ship"]["variants"].get("gptq-4", {"inside": False})
        assert not checks["inside"], "what was not measured is never inside"
    failed = found["rows"][found["rows"].status == "failed"]
    assert failed.reason.str.contains("out of memory").any()


@pytest.mark.parametrize(
    "table",
    [
        *("diagnostics.parquet", "items.parquet", "no tasks"),
        *(pytest.param(table, marks=pytest.mark.exhaustive) for table in ("windows.parquet", "cost.json")),
    ],
)
def test_an_evaluation_without_a_table_is_a_gap(outputs: dict[str, Any], tmp_path: Path, table: str) -> None:
    def remove(folder: Path) -> None:
        (folder / table.replace("no tasks", "items.parquet")).unlink()
        if table == "no tasks":
            manifest = json.loads((folder / "manifest.json").read_text())
            (folder / "manifest.json").write_text(json.dumps({**manifest, "tasks": {}}))

    found = made(outputs, tmp_path, remove, "evaluations", "gptq-4")
    mine = found["rows"][(found["rows"].variant == "gptq-4") & (found["rows"].status == "ok")]
    assert mine.metric.str.startswith("kl_mean[").any()
    if table == "items.parquet":
        assert "items.parquet is missing" in set(found["rows"].reason)


def test_numbers_that_are_not_finite_are_undefined_and_drawn_nowhere(outputs: dict[str, Any], tmp_path: Path) -> None:
    def burst(folder: Path) -> None:
        tokens = pd.read_parquet(folder / "tokens.parquet")
        tokens.loc[tokens.index[::7], ["nll", "kl"]] = float("inf")
        tokens.to_parquet(folder / "tokens.parquet", index=False)

    found = made(outputs, tmp_path, burst, "evaluations", "gptq-3")
    mine = found["rows"][(found["rows"].variant == "gptq-3") & found["rows"].metric.str.startswith("kl_mean[")]
    assert set(mine.status) == {"undefined"}
    assert not found["ship"]["variants"].get("gptq-3", {"inside": False})["inside"]
    assert all(entry["variant"] != "gptq-3" for entry in found["ship"]["front"]["prose"])


def test_a_variant_that_nothing_evaluated_is_listed(outputs: dict[str, Any], tmp_path: Path) -> None:
    rest = {kind: [path for path in outputs[kind] if path.parent.name != "gptq-4"] for kind in KINDS[1:]}
    found = inputs.read({**outputs, **rest})
    synthetic.report(tmp_path / "out", found, SPEC)
    assert "not evaluated" in (tmp_path / "out/index.html").read_text()
