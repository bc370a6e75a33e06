"""The design: variants and strategies of a params.yaml, expanded once."""

from __future__ import annotations

from hemorrhage.study import params as config
from hemorrhage.study.design import Design
from tests.study.test_params import DEFAULT


def test_variants_and_strategies_are_expanded_once() -> None:
    params = config.Params.model_validate(DEFAULT)
    design = Design(params)
    assert design.variants == config.variants(params)
    assert design.strategies == config.strategies(params)
    assert design.variants is design.variants
    assert design.strategies is design.strategies
    assert design.strategies["contrastive"].as_json() == {"strategy": "contrastive_search", "alpha": 0.6, "k": 4}
