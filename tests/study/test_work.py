"""Work of jobs, counted by hand."""

from __future__ import annotations

import pytest

from hemorrhage.study import params as config
from hemorrhage.study.design import Design
from hemorrhage.study.work import HARNESS_TOKENS, PROBE_TOKENS, PROGRAM_TOKENS, Load, Shape
from tests.study.test_params import DEFAULT, changed

SHAPE = Shape(blocks=1000, embedding=500, width=10, tied=False)


def load(content: object = DEFAULT, tokens: int = 300) -> Load:
    return Load(Design(config.Params.model_validate(content)), SHAPE, lambda corpus: tokens)


def test_a_shape_counts_tied_embeddings_once() -> None:
    assert SHAPE.parameters == 2000
    assert Shape(1000, 500, 10, tied=True).parameters == 1500
    assert SHAPE.forward(3) == pytest.approx(2e-12 * 3 * 1500)


def test_tokens_are_counted_by_hand() -> None:
    # params.yaml: 64 samples of 256 tokens; 2 corpora, 16 windows of 64; 4 tasks of 48 items; 4 diagnosed windows.
    assert load().calibration == 64 * 256
    assert load().windows() == 2 * 16 * 64
    assert load().evaluation(0) == 2048 + 4 * 48 * PROBE_TOKENS
    assert load().evaluation(2) == load().evaluation(0) + 4 * 64 * 3 * 2
    assert load().harness() == load().code_tasks() == 0
    assert load(changed("evaluate/windows", "all")).windows() == 600
    several = changed("evaluate/harness/tasks", ["arc_easy", "piqa"])
    assert load(several).harness() == 2 * 100 * HARNESS_TOKENS
    several["evaluate"]["harness"]["items"] = "all"
    assert load(several).harness() == 2 * 1000 * HARNESS_TOKENS
    assert load().exported("base") == pytest.approx(2000e-9)
    assert load().exported("rtn-4") == load().stored("rtn-4")
    code = changed("evaluate/code_tasks/tasks", ["humaneval"])
    assert load(code).code_tasks() == 20 * (PROGRAM_TOKENS + 256)


def test_a_strategy_is_counted_as_often_as_it_computes_a_token() -> None:
    tokens = 24 * 3 + 8 * (32 + 16)
    strategies = {"greedy": {"strategy": "greedy"}}
    assert load(changed("decode/strategies", strategies)).generation() == tokens
    strategies["wide"] = {"strategy": "beam", "beams": 4}  # type: ignore[dict-item]
    assert load(changed("decode/strategies", strategies)).generation() == (1 + 4) * tokens
    strategies["ahead"] = {"strategy": "contrastive_search", "alpha": 0.6, "k": 4}  # type: ignore[dict-item]
    assert load(changed("decode/strategies", strategies)).generation() == (1 + 4 + 5) * tokens


def test_altering_counts_solving_and_passes_over_the_calibration_set() -> None:
    assert load().alteration("rtn-4") == 0
    assert load().alteration("gptq-4") == pytest.approx(2e-12 * 1000 * 10)
    twice = 2 * SHAPE.forward(64 * 256)
    assert load().alteration("wanda_gptq-wanda-0.5-4") == pytest.approx(2e-12 * 1000 * 10 + twice)


def test_a_variant_is_stored_in_its_bits() -> None:
    assert load().stored("rtn-4") == pytest.approx(1e-9 * (1000 * 4 / 16 + 1000))
    assert load().stored("wanda-0.5") == pytest.approx(1e-9 * 2000)


def test_training_counts_three_passes_over_each_window() -> None:
    budget = {"sparsity": [0.5], "steps": 10, "batch": 3}
    sweeps = {"by_size": {"method": "gradual", "by": "magnitude", **budget}, "l1": {"method": "proximal", **budget}}
    content = changed("compress", {**DEFAULT["compress"], **sweeps})
    # 64 samples of 256 tokens are read to find what layers share an input.
    expected = 2 * SHAPE.forward(64 * 256) + 3 * SHAPE.forward(10 * 3 * 256)
    for name in ("by_size-0.5", "l1-0.5"):
        assert load(content).alteration(name) == pytest.approx(expected)
