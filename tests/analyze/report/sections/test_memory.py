"""Memory of the base and of the pick: numbers of the formula, and families without one."""

from __future__ import annotations

from typing import Any

from hemorrhage.analyze.report.sections.memory import memory_rows
from tests.analyze.report.examples import inputs, variant

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 50000, "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}  # fmt: skip


def test_the_base_and_the_pick_beside_it() -> None:
    studied = inputs(variant("rtn-4", disk_bytes=700_000_000), architecture=CONFIG)
    rows = memory_rows(studied, "rtn-4")
    assert [(row.model, row.phase, row.load) for row in rows] == [
        *(
            ("base", phase, load)
            for load in ("1 × 1,024", "16 × 1,024")
            for phase in ("prefill", "decoding", "training")
        ),
        *(("rtn-4", phase, load) for load in ("1 × 1,024", "16 × 1,024") for phase in ("prefill", "decoding")),
    ]
    # 2 · 2 bytes · 16 texts · 1024 tokens · 16 layers · 8 heads of 64.
    assert {row.cache for row in rows if row.load.startswith("16") and row.phase != "training"} == {"537"}
    assert {row.parameters for row in rows if row.model == "rtn-4"} == {"700"}
    assert {row.gradients for row in rows if row.phase == "prefill"} == {"–"}


def test_a_family_without_a_formula_has_no_rows() -> None:
    assert memory_rows(inputs(architecture={"model_type": "mamba", "hidden_size": 8}), None) == []
    assert memory_rows(inputs(), None) == []
    assert {row.model for row in memory_rows(inputs(architecture=CONFIG), None)} == {"base"}
