"""Language metrics against plain numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.synthetic import of

TAG = "w64-s64-b0-jnn-n1008-f32"


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    total = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & (confidence < (low + 1) / 15 if low < 14 else confidence <= 1)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


def test_language_rows_equal_plain_numpy(outputs: dict[str, Any], table: pd.DataFrame) -> None:
    directory = of(outputs, "evaluations", "rtn-3")
    tokens = pd.read_parquet(directory / "tokens.parquet").query("corpus == 'code'").astype({"nll": float})
    windows = pd.read_parquet(directory / "windows.parquet").query("corpus == 'code'")
    q, p = np.exp(-tokens.nll.to_numpy()), np.exp(-tokens.base_nll.to_numpy(float))
    kl, ratio = tokens.kl.to_numpy(float), tokens.nll.to_numpy() - tokens.base_nll.to_numpy(float)
    right, confidence = tokens.right.to_numpy(float), tokens.confidence.to_numpy(float)
    before = calibration_error(tokens.base_confidence.to_numpy(float), tokens.base_right.to_numpy(float))
    expected = {
        "word_perplexity": math.exp(tokens.nll.sum() / windows.words.sum()),
        "bits_per_byte": tokens.nll.sum() / math.log(2) / windows.bytes.sum(),
        "ln_probability_correlation": np.corrcoef(np.log(q), np.log(p))[0, 1],
        "kl_max": kl.max(),
        "probability_change_mean": (q - p).mean(),
        "probability_change_rms": math.sqrt(((q - p) ** 2).mean()),
        "probability_change_p1": np.quantile(q - p, 0.01, method="inverted_cdf"),
        "probability_change_p95": np.quantile(q - p, 0.95, method="inverted_cdf"),
        "top10_overlap": tokens.top10_overlap.mean(),
        "entropy_gap": (tokens.entropy - tokens.base_entropy).mean(),
        "calibration_error": calibration_error(confidence, right),
        "calibration_error_change": calibration_error(confidence, right) - before,
        "top1_brier": ((confidence - right) ** 2).mean(),
        "kl_mean{position=1}": kl[tokens.position == 1].mean(),
        "kl_mean{position=17-32}": kl[tokens.position.between(17, 32)].mean(),
        "ln_perplexity_ratio{frequency=3-10}": ratio[tokens["count"].between(3, 10)].mean(),
        "kl_mean{frequency=>100}": kl[tokens["count"] > 100].mean(),
    }
    mine = table[(table.variant == "rtn-3") & (table.dataset == "code")].set_index("metric")
    for metric, value in expected.items():
        assert mine.estimate[f"{metric}[{TAG}]"] == pytest.approx(value, rel=1e-5, abs=1e-7), metric
        low, high = mine.loc[f"{metric}[{TAG}]", ["low", "high"]]
        assert math.isnan(low) if metric == "kl_max" else low < value < high, metric
    assert mine.p[f"ln_perplexity_ratio[{TAG}]"] == 1e-4
    assert math.isnan(mine.p[f"kl_mean[{TAG}]"])
    assert mine.mde[f"ln_perplexity_ratio[{TAG}]"] > 0
