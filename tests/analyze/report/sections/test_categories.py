"""Damage by category, on the page and in what to ship."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.report.__main__ import draw
from hemorrhage.analyze.report.sections import categories, ship
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.shipping import Verdict
from tests import synthetic
from tests.analyze.report.conftest import ADDRESS, SPEC

NAMES = ["easy"] * 16 + ["hard"] * 8 + ["rare"] * 2


@pytest.fixture(scope="module")
def categorized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    """A study of which one corpus has three categories: one hurts ten times as much, one has two windows."""
    folder = tmp_path_factory.mktemp("categories")
    outputs = synthetic.write(folder, windows=len(NAMES), window=64)
    chosen = ("rtn-4", "gptq-4", "gptq-8")
    outputs = {
        kind: [path for path in paths if path.parent.name in ("base", *chosen)]
        for kind, paths in outputs.items()
        if kind in ("base", "checkpoints", "evaluations")
    }
    read = inputs.read(outputs)
    evaluations = {}
    for name, output in read.evaluations.items():
        tokens, windows = output.tables["tokens.parquet"], output.tables["windows.parquet"]
        own = tokens["corpus"] == "prose"
        hard = own & tokens["window"].between(16, 23)
        tokens = tokens.assign(kl=tokens["kl"].where(~hard, 10 * tokens["kl"]))
        names = [NAMES[window] if corpus == "prose" else "" for corpus, window in windows[["corpus", "window"]].values]
        # One variant does nothing at all.
        tokens = tokens.assign(kl=tokens["kl"] * (name != "gptq-4"))
        tables = {**output.tables, "tokens.parquet": tokens, "windows.parquet": windows.assign(category=names)}
        evaluations[name] = replace(output, tables=tables)
    few = replace(SPEC, budget={"kl": 0.009})
    reports = folder / "reports"
    study = analyze(reports, replace(read, evaluations=evaluations), few, ADDRESS)
    draw(reports, "a page")
    return reports, study


def verdict(study: Study, name: str) -> Verdict:
    (chosen,) = [each for each in study.verdicts if each.variant.name == name]
    return chosen


def test_a_table_marks_the_worst_category_that_has_enough_windows(categorized: tuple[Path, Study]) -> None:
    (table,) = categories.section(categorized[1]).tables
    assert table.corpus == "prose"
    assert [(each.name, each.windows, each.has_few) for each in table.categories] == [
        ("easy", 16, False),
        ("hard", 8, False),
        ("rare", 2, True),
    ]
    rows = {row.variant: row for row in table.rows}
    assert {name: row.worst for name, row in rows.items()} == {
        "rtn-4": "hard",
        "gptq-8": "hard",
        "gptq-4": "",
    }
    assert not any(cell.is_worst for cell in rows["gptq-4"].cells)
    easy, hard, rare = rows["gptq-8"].cells
    assert [cell.is_worst for cell in (easy, hard, rare)] == [False, True, False]
    numbers = categorized[1].numbers
    kl = numbers.get("gptq-8", "kl_mean{category=hard}", "prose")
    assert kl is not None
    assert (hard.text, hard.sort) == (f"{kl.value:.2g}", kl.value)
    assert hard.note.startswith(f"{kl.low:.2g} to {kl.high:.2g}; perplexity ")
    assert kl.value > 5 * float(easy.sort)


def test_the_worst_category_decides_and_one_with_few_windows_does_not(categorized: tuple[Path, Study]) -> None:
    answers = {check.dataset: check.answer for check in verdict(categorized[1], "gptq-8").checks}
    assert answers == {"prose": "inside", "code": "inside", "prose (easy)": "inside", "prose (hard)": "outside"}
    assert not verdict(categorized[1], "gptq-8").inside
    binding = verdict(categorized[1], "gptq-8").binding
    assert binding is not None
    assert binding.dataset == "prose (hard)"


def test_the_page_says_which_categories_have_too_few_windows(categorized: tuple[Path, Study]) -> None:
    reports, study = categorized
    said = (
        "With fewer than 8 windows a category counts neither for nor against a variant (prose (rare): 2); raise "
        "evaluate.windows or add text."
    )
    assert categories.few_sentence(study) == ship.section(study).few == said
    page = (reports / "index.html").read_text()
    assert page.count(said) == 2
    assert '<section id="categories"' in page
    assert "hard (8 windows)" in page
    assert "rare (2 windows, too few)" in page


def test_without_categories_there_is_no_section(study: Study, reports: Path) -> None:
    assert categories.section(study).tables == []
    assert ship.section(study).few == ""
    assert 'id="categories"' not in (reports / "index.html").read_text()
