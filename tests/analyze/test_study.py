"""What the committed default study says, on the real model: the orders that the literature and arithmetic demand.

The numbers were computed by the run that reports/provenance.json names; here they are read, not made.
"""

from __future__ import annotations

import itertools
import json

import pandas as pd
import pytest

from hemorrhage.analyze.protocol import strip_protocol
from tests.conftest import ROOT

REPORTS = ROOT / "reports"
CORPORA = ("prose", "code")


@pytest.fixture(scope="module")
def kl() -> dict[tuple[str, str], float]:
    """Mean KL to the base by variant and corpus."""
    found = json.loads((REPORTS / "metrics.json").read_text())["variants"]
    return {
        (name, corpus): value
        for name, values in found.items()
        for metric, by_corpus in values.items()
        if strip_protocol(metric) == "kl_mean"
        for corpus, value in by_corpus.items()
    }


def test_nothing_failed() -> None:
    assert json.loads((REPORTS / "metrics.json").read_text())["counts"]["failed"] == 0


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("gptq-3", "rtn-3"),
        ("awq-3", "rtn-3"),
        ("sparsegpt-0.5", "wanda-0.5"),
        ("wanda-0.5", "magnitude-0.5"),
        ("sparsegpt-2of4", "wanda-2of4"),
        ("wanda-0.5", "wanda-2of4"),
        ("shortgpt-0.3", "random_depth-0.3"),
        ("wanda-0.5", "wanda_gptq-wanda-0.5-4"),
    ],
)
def test_the_better_method_does_less_damage(
    kl: dict[tuple[str, str], float], better: str, worse: str, corpus: str
) -> None:
    """On the corpus that it was calibrated on. On another, a point of 3-bit GPTQ moves by 13 % from one calibration set
    to the next (docs/thresholds.md), which is more than what it gains there."""
    assert kl[better, corpus] <= kl[worse, corpus] * (1 if corpus == "prose" else 1.13)


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_control_does_none(kl: dict[tuple[str, str], float], corpus: str) -> None:
    assert kl["llama_pro-0.2", corpus] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("corpus", CORPORA)
def test_structured_removal_does_more_damage_than_unstructured_at_equal_bytes(
    kl: dict[tuple[str, str], float], corpus: str
) -> None:
    """A mask of one bit a weight counted: 30 % of zeros leave more bytes than a slice of 14.5 % of the blocks, and
    50 % of zeros fewer, so that the comparison is against the greater damage of the two."""
    curves = pd.read_csv(REPORTS / "curves.csv").drop_duplicates("variant").set_index("variant")
    for structured in ("slicegpt-0.25", "shortgpt-0.3", "svd-0.1"):
        size = curves.loc[structured, "size_ratio"]
        smaller = [
            name
            for name in curves.index
            if name.startswith(("sparsegpt-0", "wanda-0")) and curves.loc[name, "size_ratio"] <= size
        ]
        assert smaller, f"no unstructured variant is as small as {structured}"
        assert min(kl[name, corpus] for name in smaller) <= kl[structured, corpus]


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize(
    "curve",
    [
        [f"{sweep}-{point}" for point in points]
        for sweep, points in {
            "rtn": (8, 4, 3, 2),
            "gptq": (8, 6, 4, 3, 2),
            "magnitude": (0.3, 0.5, 0.7),
            "wanda": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
            "sparsegpt": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
            "shortgpt": (0.034, 0.1, 0.2, 0.3, 0.4, 0.5),
        }.items()
    ],
    ids=lambda curve: curve[0],
)
def test_damage_grows_along_a_curve(kl: dict[tuple[str, str], float], curve: list[str], corpus: str) -> None:
    values = [kl[name, corpus] for name in curve]
    # Past a collapse all that is left is noise: points beyond 5 nats need not be in order.
    assert all(a <= b or (a > 5 and b > 5) for a, b in itertools.pairwise(values))
