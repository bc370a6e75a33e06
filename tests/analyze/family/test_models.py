"""What is known of a model: its group, its loss, the mean of a metric over corpora."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hemorrhage.analyze.family.models import Model, groups


def test_models_are_grouped_in_their_order(models: list[Model]) -> None:
    assert {group: [each.name for each in members] for group, members in groups(models).items()} == {
        "a": ["a-0", "a-1", "a-2"],
        "b": ["b-0", "b-1", "b-2"],
    }


def test_the_loss_is_the_logarithm_of_the_perplexity(models: list[Model]) -> None:
    rows = models[0].study.rows
    base = rows[(rows["variant"] == "base") & rows["metric"].str.startswith("perplexity[")]
    assert len(base) == len(models[0].study.corpora)
    assert models[0].loss == pytest.approx(np.log(base["estimate"]).mean())


def test_a_mean_needs_every_corpus(models: list[Model]) -> None:
    assert math.isnan(models[0].mean("nothing of that name", "kl_mean"))
    rows = models[0].study.rows
    kl = rows[(rows["variant"] == "rtn-4") & rows["metric"].str.startswith("kl_mean[")]
    assert models[0].mean("rtn-4", "kl_mean") == pytest.approx(kl["estimate"].mean())
