"""Rows of texts: literal references."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from rouge_score.rouge_scorer import RougeScorer

from hemorrhage.analyze import inputs
from hemorrhage.analyze.rows import decoding, stability
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.decode.frontier import LEAST_TEXTS, against_others

SPEC = Spec(resamples=400, confidence=0.95, seed=0)


def test_rows_of_texts(decoded: inputs.Inputs) -> None:
    base = decoding.measure_texts(decoded.decodes["base"])
    output = decoded.decodes["gptq-3"]
    rows = pd.DataFrame(decoding.decoding_rows(decoded.variants["gptq-3"], output, SPEC, base))
    rows = rows.set_index(["metric", "method"])
    generated = output.tables["generations.parquet"]

    def entropy(tokens: Sequence[int]) -> float:
        return -sum((n := list(tokens).count(t) / len(tokens)) * math.log(n) for t in set(tokens))

    for name, per_text in {"entropy": entropy, "length": len}.items():
        mine = generated[(generated.strategy == "top_p") & (generated.task == "open_ended")]
        assert rows[rows.dataset == "prose"].loc[(name, "top_p"), "estimate"] == pytest.approx(
            np.mean([per_text(t) for t in mine.tokens])
        )
    mauve = rows.loc[("mauve", "beam_4")]
    assert (mauve.status, mauve.reason) == (
        "undefined",
        "12 texts: MAUVE is near 1 whatever they are, it takes 400",
    )
    right = generated[generated.task == "closed_ended"].pivot(index="item", columns="strategy", values="correct")
    found = stability.spread(right.to_numpy(float), "closed recall", SPEC)
    assert found is not None
    assert rows.loc[("spread_sd", ALL_STRATEGIES), "estimate"] == pytest.approx(found.sd)
    assert rows.loc[("spread", ALL_STRATEGIES), "estimate"] == pytest.approx(found.relative)
    for metric in decoding.INTERACTIONS:
        assert rows.loc[(f"{metric}_interaction", ALL_STRATEGIES), "p"] <= 1
    # Curves fall.
    shares = [rows.loc[(f"agreement{{token={n}}}", ALL_STRATEGIES), "estimate"] for n in (1, 4, 16, 32)]
    assert shares == sorted(shares, reverse=True)
    own = pd.DataFrame(decoding.decoding_rows(decoded.variants["base"], decoded.decodes["base"], SPEC, None))
    assert not own.metric.str.contains("interaction|agreement|change").any()


def test_mauve_of_enough_texts_has_the_ceiling_of_people_beside_it() -> None:
    generator = np.random.default_rng(0)
    people = generator.normal(size=(LEAST_TEXTS, 4)).astype(np.float32) + 2
    written = np.repeat(people, 2, axis=0) - np.float32(3)  # two draws of each prompt
    texts = pd.DataFrame(
        {
            "dataset": "prose",
            "strategy": "hot",
            "item": np.repeat(np.arange(LEAST_TEXTS), 2),
            "draw": np.tile([0, 1], LEAST_TEXTS),
        }
    )
    human = pd.DataFrame({"dataset": "prose", "item": range(LEAST_TEXTS)})
    output = inputs.Output(
        {}, {"human.parquet": human}, features={"prose.human": people, "prose.strategy.hot": written}
    )
    score, ceiling = decoding._mauve(texts, human, output, SPEC), decoding._ceiling(output, "prose", SPEC)
    assert ceiling is not None
    expected = against_others(written[::2], people, SPEC.seed)
    assert (score.estimate, score.low, score.high) == pytest.approx((expected.mean(), expected.min(), expected.max()))
    assert score.high < 0.5 < ceiling.low
    bare = inputs.Output({}, {"human.parquet": human})
    assert "no features" in decoding._mauve(texts, human, bare, SPEC).reason


def test_summaries_are_scored_by_rouge() -> None:
    human = pd.DataFrame({"item": [0, 1], "text": ["The dog ran home.", "A cat sat."]})
    texts = pd.DataFrame({"item": [1, 0], "text": ["A cat sat down.", "Rain falls."]})
    rows = decoding._rouge(texts, human, "xsum", SPEC)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    by_hand = [scorer.score("A cat sat.", "A cat sat down."), scorer.score("The dog ran home.", "Rain falls.")]
    assert rows["rougeL"].estimate == pytest.approx(np.mean([one["rougeL"].fmeasure for one in by_hand]))
    assert set(rows) == set(decoding.ROUGE)


def answered(right: np.ndarray) -> pd.DataFrame:
    """Closed-ended texts, ``right`` [items, draws], of one strategy."""
    items, draws = np.indices(right.shape)
    texts = pd.DataFrame({"dataset": "sums", "item": items.ravel(), "draw": draws.ravel(), "accuracy": right.ravel()})
    return texts.assign(strict_accuracy=texts["accuracy"], truncated=0.0, loop_rate=0.0, length=5.0)


def test_draws_that_are_all_alike_are_worth_one() -> None:
    generator = np.random.default_rng(0)
    once = (generator.random((60, 1)) < 0.4).astype(float)
    one, eight = (decoding._closed(answered(np.repeat(once, n, axis=1)), SPEC)["accuracy"] for n in (1, 8))
    assert (one.low, one.high) == pytest.approx(bootstrap.wilson(once.sum(), 60, 0.95))
    assert eight.estimate == one.estimate
    assert eight.n == 60
    assert eight.high - eight.low == pytest.approx(one.high - one.low, rel=0.05)
    assert eight.high - eight.low >= one.high - one.low


@pytest.mark.parametrize("alike", [0.2, 1.0, 20.0])
def test_intervals_of_draws_are_those_of_a_bootstrap_of_prompts(alike: float) -> None:
    """From prompts that decide nearly everything to prompts that decide little: whole prompts are drawn again."""
    generator = np.random.default_rng(1)
    skill = generator.beta(0.5 * alike, 0.5 * alike, (120, 1))
    right = (generator.random((120, 6)) < skill).astype(float)
    found = decoding._closed(answered(right), SPEC)["accuracy"]
    again = [np.mean([right[i] for i in generator.integers(0, 120, 120)]) for _ in range(4_000)]
    low, high = np.quantile(again, [0.025, 0.975])
    assert found.estimate == pytest.approx(right.mean())
    assert found.low == pytest.approx(low, abs=0.012)
    assert found.high == pytest.approx(high, abs=0.012)


def test_draws_of_an_article_are_one_observation_of_its_summary() -> None:
    texts = pd.DataFrame({"item": [0, 0, 0, 1], "text": ["a cat sat"] * 3 + ["dogs ran"]})
    human = pd.DataFrame({"item": [0, 1], "text": ["the cat sat", "a bird flew away"]})
    rows = decoding._rouge(texts, human, "xsum", SPEC)
    once = decoding._rouge(texts.iloc[2:], human, "xsum", SPEC)
    assert rows["rouge1"] == once["rouge1"]
    assert rows["rouge1"].n == 2
