"""Thresholds of whole studies: every definition on every curve and corpus, on curves whose thresholds are known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.curves.definitions import DEFINITIONS, NAMES, find_thresholds
from hemorrhage.analyze.curves.entries import NO_CLIFF, TOO_FEW, CurveEntry
from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.analyze.rows.results import Results
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats.bootstrap import Floats

WINDOWS = 24
SPEC = Spec(resamples=60, confidence=0.95, seed=0)


def variant(name: str, severity: float, failure: str | None = None) -> Variant:
    manifest: CheckpointManifest = {"effective_bits": 16.0, "settings": {"removed": severity}}
    if failure is not None:
        manifest["failure"] = failure
    return Variant(name, "depth", "depth_pruning", "depth", "", name, "removed", severity, 0, BASE, manifest)


def entry_of(damages: dict[float, float], failed: tuple[str, ...] = (), perplexity: bool = True) -> CurveEntry:
    """The entry of one curve with these log-perplexity ratios by share, almost without noise."""
    rng = np.random.default_rng(0)
    variants = {BASE: variant(BASE, math.nan)}
    replicates = {(BASE, "prose"): np.zeros(SPEC.resamples)}
    rows = [(BASE, "perplexity[t]", 10.0)] if perplexity else []
    rows.append((BASE, "ln_perplexity_ratio[t]", 0.0))
    for share, damage in damages.items():
        name = f"depth-{share:g}"
        variants[name] = variant(name, share)
        replicates[name, "prose"] = damage + rng.normal(0, 1e-4, SPEC.resamples)
        rows.append((name, "ln_perplexity_ratio[t]", damage))
    for name in failed:
        variants[name] = variant(name, 0.9, "MemoryError: too large")
    return entry_of_rows(variants, rows, replicates)


def ratio_rows(ratios: dict[str, float]) -> list[tuple[str, str, float]]:
    return [(name, "ln_perplexity_ratio[t]", ratio) for name, ratio in ratios.items()]


def entry_of_rows(
    variants: dict[str, Variant], rows: list[tuple[str, str, float]], replicates: dict[tuple[str, str], Floats]
) -> CurveEntry:
    columns = {"dataset": "prose", "family": "", "method": "", "protocol": "t", "status": "ok", "n": WINDOWS}
    numbers = [{"variant": name, "metric": metric, "estimate": value} for name, metric, value in rows]
    table = pd.DataFrame(numbers).assign(**columns, low=math.nan, high=math.nan, p=math.nan, q=math.nan, mde=math.nan)
    results = Results(table, replicates, {"prose": WINDOWS}, [], divergences={}, task_losses={}, trials=[])
    outputs = {name: Output({}, {}) for name in variants}
    (entry,) = find_thresholds(Inputs({}, variants, outputs, {}, {}, {}, {}), results, SPEC)
    return entry


def test_levels_lie_between_the_points_around_them() -> None:
    entry = entry_of({0.1: 0.05, 0.2: 0.5, 0.3: 1.0})
    thresholds = entry.thresholds
    chords = {
        "ten_percent": 0.1 + (math.log(1.1) - 0.05) / 0.45 * 0.1,
        "two_fold": 0.2 + (math.log(2) - 0.5) / 0.5 * 0.1,
        "plus_1_5": 0.1 + (math.log(1.15) - 0.05) / 0.45 * 0.1,
    }
    for name, chord in chords.items():
        found = thresholds[name]
        assert found.low is not None
        assert found.low <= chord + 1e-3
        assert found.low <= found.estimate <= (found.high or 1.0)
        assert found.estimate == pytest.approx(chord, abs=0.03)
    assert thresholds["two_fold"].between == pytest.approx((0.2, 0.3))
    assert (entry.points, entry.base, entry.unit) == (3, 0.0, "share of the blocks' parameters removed")
    assert thresholds["knee"].reason == "3 measured points; a knee needs 4"
    assert thresholds["kl_knee"].reason == "no KL was measured"
    assert thresholds["task_5"].reason == "no task on which the base does better than guessing"


def test_a_bend_is_placed_and_drawn() -> None:
    shares = [share / 10 for share in range(1, 9)]
    entry = entry_of({share: 0.1 * share + 5 * max(share - 0.45, 0.0) for share in shares})
    knee = entry.thresholds["knee"]
    assert knee.estimate == pytest.approx(0.45, abs=0.01)
    assert knee.shape == entry.fits["ln_perplexity_ratio"].shape == "two_segments"
    assert knee.gain is not None
    assert knee.gain > 0
    assert entry.fits["ln_perplexity_ratio"].x[-1] == pytest.approx(0.8)


def test_a_curve_that_stays_low_says_how_far_it_went() -> None:
    never = entry_of({0.1: 0.01, 0.2: 0.02}).thresholds["two_fold"]
    assert never.answer == NO_CLIFF
    assert never.reason == "the worst variant has 1.02 times the base's perplexity"


def test_failed_variants_are_missing_with_their_reason() -> None:
    entry = entry_of({0.1: 0.1, 0.2: 0.2}, failed=("depth-0.9",))
    assert entry.missing == {"depth-0.9": "MemoryError: too large"}
    nothing = entry_of({}, failed=("depth-0.9",))
    assert {threshold.answer for threshold in nothing.thresholds.values()} == {TOO_FEW}
    assert (nothing.points, nothing.next, nothing.fits) == (0, None, {})


def test_without_the_base_s_perplexity_its_rise_is_unknown() -> None:
    entry = entry_of({0.1: 0.1, 0.2: 0.2}, perplexity=False)
    assert entry.thresholds["plus_1_5"].reason == "the base's perplexity was not measured"


def test_every_threshold_has_a_name_and_a_definition() -> None:
    assert list(NAMES) == [key for key in DEFINITIONS if key in NAMES]
    assert set(entry_of({0.1: 0.1, 0.2: 0.2}).thresholds) == set(NAMES)


def test_thresholds_in_measured_bits_have_those_of_the_setting() -> None:
    widths = [variant_of_bits(bits) for bits in (8, 4, 3, 2)]
    ratios = dict(zip((each.name for each in widths), (0.0, 0.25, 1.0, 9.5), strict=True))
    variants = {BASE: variant(BASE, math.nan), **{each.name: each for each in widths}}
    rng = np.random.default_rng(0)
    replicates = {(name, "prose"): ratio + rng.normal(0, 1e-4, SPEC.resamples) for name, ratio in ratios.items()}
    replicates[BASE, "prose"] = np.zeros(SPEC.resamples)
    entry = entry_of_rows(variants, [(BASE, "perplexity[t]", 10.0), *ratio_rows({BASE: 0.0, **ratios})], replicates)
    label = entry.thresholds["ten_percent"].label_bits
    assert label is not None
    assert label.low == pytest.approx(4.0)
    assert label.high == pytest.approx(7.0)
    assert 4 < label.estimate < 7
    assert entry.thresholds["two_fold"].label_bits is not None
    assert entry.thresholds["knee"].label_bits is None


def variant_of_bits(bits: int) -> Variant:
    spacing = {"low": 2, "high": 8, "step": 1, "whole": True}
    manifest: CheckpointManifest = {
        "effective_bits": 0.8 * bits + 3.6,
        "settings": {"bits": bits},
        "method_info": {"title": "rtn", "values": spacing},
    }
    return Variant(f"rtn-{bits}", "rtn", "weight_quantization", "rtn", "", "", "bits", bits, 0, BASE, manifest)
