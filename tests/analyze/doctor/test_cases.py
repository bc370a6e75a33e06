"""Cases: base models, alterations and rows from manifests and damage."""

from __future__ import annotations

import math

import pytest

from hemorrhage.analyze.doctor import cases, predictor
from hemorrhage.analyze.doctor.features import Base
from hemorrhage.analyze.manifests import CheckpointManifest

BASE = Base("m", 2e6, 1.5e6, 4, 64, 1e9, 512)


MANIFEST: CheckpointManifest = {
    "variant": "rtn-4",
    "method": "rtn",
    "family": "weight_quantization",
    "axis": "bits",
    "severity": 4.0,
    "settings": {"bits": 4, "group_size": 64},
    "calibration": None,
}


def test_the_embeddings_are_no_parameters_of_layers() -> None:
    architecture = {"hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 100}
    tied = cases.base_of("m", architecture, 10_000.0, [0.5, 0.5])
    assert (tied.in_layers, tied.blocks, tied.width, tied.vocabulary) == (10_000 - 800, 2, 8, 100)
    assert tied.influence == (0.5, 0.5)
    assert cases.base_of("m", {**architecture, "tie_word_embeddings": False}, 10_000.0).in_layers == 10_000 - 1600
    assert math.isnan(tied.trained_tokens)
    with pytest.raises(KeyError):
        cases.base_of("m", {"hidden_size": 8}, 1.0)


def test_a_manifest_gives_a_case_for_each_corpus() -> None:
    damage = {"prose": {"nll": 3.5, "base_nll": 3.0, "kl": 0.25}, "code": {"nll": 2.0, "base_nll": 1.5, "kl": 0.125}}
    prose, code = cases.measured_cases(MANIFEST, None, None, BASE, damage)
    assert (prose.corpus, prose.ln_perplexity_ratio, prose.kl_mean) == ("prose", 0.5, 0.25)
    assert (code.corpus, code.ln_perplexity_ratio, code.kl_mean) == ("code", 0.5, 0.125)
    assert (prose.sweep, prose.bits, prose.on, prose.columns["calibrated"]) == ("rtn", 4.0, "", 0.0)
    assert math.isnan(prose.share)
    assert math.isnan(prose.retention)


def test_a_family_that_is_not_predicted_has_no_case() -> None:
    other: CheckpointManifest = {**MANIFEST, "family": "recovery"}
    assert cases.cases_of(cases.made_alteration(other), BASE, None, {"prose": 3.0}) == []
    endless: CheckpointManifest = {**MANIFEST, "severity": None}
    assert cases.cases_of(cases.made_alteration(endless), BASE, None, {"prose": 3.0}) == []


def test_a_table_has_the_columns_of_the_bench_s_runs_to_six_digits() -> None:
    (case,) = cases.cases_of(cases.made_alteration(MANIFEST), BASE, None, {"prose": 1 / 3})
    table = cases.table([case.with_damage(2 / 3, 1 / 7)])
    assert list(table.columns) == list(predictor.experience().columns)
    assert table.loc[0, ["base_nll", "ln_perplexity_ratio", "kl_mean"]].tolist() == [0.333333, 0.666667, 0.142857]
    assert list(cases.table([]).columns) == list(table.columns)
