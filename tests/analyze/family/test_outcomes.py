"""The numbers that models are compared in."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.curves.entries import LabelBits, Threshold
from hemorrhage.analyze.family import outcomes
from hemorrhage.analyze.family.models import Model


def test_damage_is_the_logarithm_of_the_mean_kl(models: list[Model]) -> None:
    (damage,) = (each for each in outcomes.outcomes(models) if each.name == "rtn-4")
    for model in models:
        assert damage.values[model.name] == pytest.approx(math.log(model.mean("rtn-4", "kl_mean")))
    assert damage.is_ratio
    assert damage.known(models[:2]) == [damage.values["a-0"], damage.values["a-1"]]


def test_the_loss_of_the_unaltered_models_is_an_outcome(models: list[Model]) -> None:
    losses = [each for each in outcomes.outcomes(models) if each.kind == outcomes.LOSS]
    assert [each.measure for each in losses] == [f"loss on {corpus} (nats)" for corpus in models[0].study.corpora]
    assert losses[0].values["a-0"] == models[0].facts[losses[0].measure]


def test_every_variant_is_an_outcome_and_no_base(models: list[Model]) -> None:
    names = [each.name for each in outcomes.outcomes(models) if each.kind == outcomes.DAMAGE]
    assert "base" not in names
    assert len(names) == len(set(names)) > 3


def test_a_place_is_in_the_bits_of_the_setting_and_known_on_every_corpus() -> None:
    bits = Threshold("found", estimate=7.5, label_bits=LabelBits(4.0, 3.5, 4.5))
    share = Threshold("found", estimate=0.3)
    nowhere = Threshold("no cliff in range")
    assert outcomes._place([bits, bits]) == 4.0
    assert outcomes._place([share, Threshold("found", estimate=0.5)]) == pytest.approx(0.4)
    assert math.isnan(outcomes._place([share, nowhere]))
    assert math.isnan(outcomes._place([]))


def test_growth_is_the_product_over_blocks(models: list[Model]) -> None:
    (growth,) = (each for each in outcomes.outcomes(models) if each.measure == outcomes.GROWTH)
    rows = models[0].study.rows
    blocks = rows[(rows["variant"] == "base") & rows["metric"].str.match(r"norm_growth\{layer=\d+\}")]
    assert len(blocks) > 1
    assert growth.values["a-0"] == pytest.approx(np.log(blocks["estimate"]).sum())


def test_redundancy_is_the_mean_over_blocks(models: list[Model]) -> None:
    measured = {each.measure: each for each in outcomes.outcomes(models) if each.kind == outcomes.INSIDE}
    rows = models[0].study.rows
    influence = rows[(rows["variant"] == "base") & rows["metric"].str.match(r"block_influence\{layer=\d+\}")]
    name = outcomes.REDUNDANCY["block_influence"]
    assert measured[name].values["a-0"] == pytest.approx(influence["estimate"].mean())


def test_a_drift_is_what_a_doubling_of_the_position_multiplies_by() -> None:
    ends = (16, 32, 64, 128, 256)
    rows = pd.DataFrame(
        [
            ("rtn-3", f"kl_mean{{position={end // 2 + 1}-{end}}}[window=256]", corpus, level * end**power)
            for corpus, level, power in (("prose", 0.1, 0.5), ("code", 3.0, 0.25))
            # What lies in the first sixteen does not count.
            for end in ends
        ],
        columns=["variant", "metric", "dataset", "estimate"],
    )
    rows.loc[rows["metric"].str.contains("9-16"), "estimate"] = 50.0
    made = cast(Any, SimpleNamespace(study=SimpleNamespace(rows=rows, corpora=["prose", "code"])))
    assert outcomes._slopes_by_position(made) == pytest.approx({"rtn-3": 0.375 * math.log(2)})
    lacks = rows[~((rows["dataset"] == "code") & rows["metric"].str.contains("256}"))]
    made.study.rows = lacks
    assert outcomes._slopes_by_position(made) == {}
