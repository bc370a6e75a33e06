"""Rows of decoding strategies, with blocks that are prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemorrhage.analyze.inputs import Output, Variant
from hemorrhage.analyze.rows import stability, survival
from hemorrhage.analyze.rows.interaction import interaction
from hemorrhage.analyze.rows.schema import environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.decode.degeneration import distinct_n, loop_period, rep_n, token_entropy
from hemorrhage.decode.frontier import clusters, frontier_areas

OPEN_METRICS = ("distinct_2", "distinct_3", "rep_4", "loop_rate", "base_nll", "length", "entropy")
"""Per decoding strategy on texts without right answers: means over texts; loop_rate is the share that ends in a loop,
base_nll in nats per token under the base model, length in tokens, entropy in nats of the tokens of a text."""

MAUVE = "mauve"
"""Per decoding strategy: hemorrhage.decode.frontier against what people wrote behind the same prompts, 1 where the
distributions are the same."""

ROUGE = ("rouge1", "rouge2", "rougeL")
"""Per decoding strategy on summaries: F-measures of rouge-score, with stemming, means over texts."""

SUMMARIES = ("xsum",)
"""Data sets whose human texts are summaries."""

Features = npt.NDArray[np.float32]

SPREAD_METRICS = ("spread_over_max", "spread_over_min", "spread_cv", "spread_by_chance")
"""Per variant, of the accuracy over strategies: (max - min) / max, (max - min) / min, standard deviation
over mean; and what (max - min) / max stays below, at the confidence asked for, when all are equally good."""

SPREAD_CHANGE = "spread_cv_change"
"""Per variant: spread_cv less the base's, on the same items."""

INTERACTIONS = ("accuracy", "base_nll", "rep_4")
"""Metrics M of ``M_interaction``: per variant and strategy what compression costs it more than the mean strategy
(hemorrhage.analyze.rows.interaction), and over all strategies the root mean square of that."""

SURVIVAL = "agreement"
"""``agreement{token=N}``: per variant the share of greedy texts that are the base's after N tokens;
``agreement_tokens``: the mean number of tokens that are (hemorrhage.analyze.rows.survival)."""

ALL_STRATEGIES = "all strategies"
DECODE = "decode"


def decoding_rows(
    variant: Variant, output: Output, spec: Spec, base: pd.DataFrame | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of one variant under every strategy; compared with ``base``, the base model's measured texts, if given."""
    environment = environment_id(output.manifest)
    about: dict[str, Any] = {
        "sweep": DECODE,
        "family": DECODE,
        "curve": "",
        "axis": "",
        "severity": math.nan,
        "seed": output.manifest.get("seed"),
        "environment": environment,
    }
    if output.failure is not None:
        fields = {
            "method": ALL_STRATEGIES,
            "setting": ALL_STRATEGIES,
            "status": "failed",
            "reason": output.failure,
        }
        yield row(variant, "accuracy", **{**about, **fields})
        return
    hashes = {name: fact["sha256"] for name, fact in output.manifest["datasets"].items()}
    for dataset, part in measure_texts(output).groupby("dataset", sort=False):
        kind = part["task"].iloc[0]
        about.update(dataset=dataset, data=hashes[dataset], protocol=output.protocol(str(dataset)))
        for strategy, generated in part.groupby("strategy", sort=False):
            fields = {**about, "method": strategy, "setting": _settings(generated["settings"].iloc[0])}
            measured = _closed(generated, spec) if kind == "closed_ended" else _open(generated, output, spec)
            for metric, found in measured.items():
                yield row(variant, metric, **{**fields, **found})
        of_all = {**about, "method": ALL_STRATEGIES, "setting": ALL_STRATEGIES}
        if kind == "closed_ended":
            for metric, fields in _spread(part, spec).items():
                yield row(variant, metric, **{**of_all, **fields})
        if base is not None:
            yield from _against_base(variant, kind, str(dataset), part, base, of_all, spec)


def measure_texts(output: Output) -> pd.DataFrame:
    """The texts of a sweep with what each shows by itself: columns of OPEN_METRICS, NaN where closed-ended."""
    texts = output.tables["generations.parquet"].copy()
    tokens = [[int(token) for token in text] for text in texts["tokens"]]
    texts["tokens"] = tokens
    texts["accuracy"] = texts["correct"].astype(float)
    opened = (texts["task"] == "open_ended").to_numpy()
    measures: dict[str, Callable[[list[int]], float]] = {
        "distinct_2": lambda text: distinct_n(text, 2),
        "distinct_3": lambda text: distinct_n(text, 3),
        "rep_4": lambda text: rep_n(text, 4),
        "loop_rate": lambda text: float(loop_period(text) > 0),
        "length": lambda text: float(len(text)),
        "entropy": lambda text: token_entropy([text]),
    }
    for metric, measure in measures.items():
        texts[metric] = [measure(text) if is_open else math.nan for text, is_open in zip(tokens, opened, strict=True)]
    return texts


def outcomes(texts: pd.DataFrame, metric: str) -> pd.DataFrame:
    """``metric`` of one data set's texts as items by strategies, these in their order."""
    order = list(dict.fromkeys(texts["strategy"]))
    return texts.pivot(index="item", columns="strategy", values=metric)[order].astype(float)


def _against_base(
    variant: Variant,
    kind: str,
    dataset: str,
    texts: pd.DataFrame,
    base: pd.DataFrame,
    about: dict[str, Any],
    spec: Spec,
) -> Iterator[dict[str, Any]]:
    """Rows that compare a variant's texts with the base's of the same items, ``base``."""
    theirs = base[base["dataset"] == dataset]
    for metric in INTERACTIONS:
        if (metric == "accuracy") == (kind == "closed_ended"):
            yield from _interactions(
                variant, metric, dataset, outcomes(texts, metric), outcomes(theirs, metric), about, spec
            )
    if kind == "closed_ended":
        changed = stability.compare(
            outcomes(theirs, "accuracy").to_numpy(), outcomes(texts, "accuracy").to_numpy(), dataset, spec
        )
        if changed:
            fields = {"estimate": changed.difference, "low": changed.low, "high": changed.high, "n": changed.items}
            yield row(variant, SPREAD_CHANGE, **{**about, **fields})
        return
    found = greedy_survival(theirs, texts, dataset, spec)
    if found is None:
        return
    fields = {"estimate": found.mean, "low": found.mean_low, "high": found.mean_high, "n": found.texts}
    yield row(variant, f"{SURVIVAL}_tokens", **{**about, **fields})
    for tokens, share, low, high in survival.points(found):
        fields = {"estimate": share, "low": low, "high": high, "n": found.texts}
        yield row(variant, f"{SURVIVAL}{{token={tokens}}}", **{**about, **fields})


def greedy_survival(base: pd.DataFrame, variant: pd.DataFrame, dataset: str, spec: Spec) -> survival.Survival | None:
    """Agreement of the greedy texts of one data set; None where the sweep has no greedy search."""
    sides = []
    for texts in (base, variant):
        greedy = texts[texts["settings"].map(lambda text: json.loads(text)["strategy"] == "greedy")]
        sides.append(greedy[greedy["strategy"] == greedy["strategy"].iloc[0]] if len(greedy) else greedy)
    if not all(map(len, sides)):
        return None
    return survival.survival(survival.divergence_times(*(side[["item", "tokens"]] for side in sides)), dataset, spec)


def _interactions(
    variant: Variant,
    metric: str,
    dataset: str,
    mine: pd.DataFrame,
    theirs: pd.DataFrame,
    about: dict[str, Any],
    spec: Spec,
) -> Iterator[dict[str, Any]]:
    strategies = [name for name in mine.columns if name in theirs.columns]
    if len(strategies) < 2:
        return
    items = mine.index.intersection(theirs.index)
    found = interaction(theirs.loc[items, strategies].to_numpy(), mine.loc[items, strategies].to_numpy(), dataset, spec)
    for place, strategy in enumerate(strategies):
        fields = {
            "method": strategy,
            "estimate": float(found.estimates[place]),
            "low": float(found.low[place]),
            "high": float(found.high[place]),
            "p": float(found.p[place]),
            "n": found.items,
        }
        yield row(variant, f"{metric}_interaction", **{**about, **fields})
    yield row(
        variant,
        f"{metric}_interaction",
        **{**about, "estimate": found.size, "p": found.overall, "n": found.items},
    )


def _settings(text: str) -> str:
    settings = {key: value for key, value in json.loads(text).items() if key != "strategy"}
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "no settings"


def _closed(generated: pd.DataFrame, spec: Spec) -> dict[str, dict[str, Any]]:
    right, n = int(generated["correct"].sum()), len(generated)
    low, high = bootstrap.wilson(right, n, spec.confidence)
    return {"accuracy": {"estimate": right / n, "low": low, "high": high, "n": n}}


def _open(generated: pd.DataFrame, output: Output, spec: Spec) -> dict[str, dict[str, Any]]:
    """Means over texts of what each text shows by itself, and how near their distribution is to the human one."""
    dataset = str(generated["dataset"].iloc[0])
    found = {metric: _mean(generated[metric].to_numpy(np.float64), dataset, spec) for metric in OPEN_METRICS}
    human = output.tables.get("human.parquet")
    if human is None:
        return found
    human = human[human["dataset"] == dataset]
    if len(human):
        features = output.features.get(f"{dataset}.strategy.{generated['strategy'].iloc[0]}")
        people = output.features.get(f"{dataset}.human")
        if features is not None and people is not None:
            found[MAUVE] = _mauve(features, people, dataset, spec)
        if dataset in SUMMARIES:
            found.update(_rouge(generated, human, dataset, spec))
    return found


def _mauve(generated: Features, human: Features, dataset: str, spec: Spec) -> dict[str, Any]:
    """The score with the interval of resampled texts, whose clusters are found once."""
    texts = min(len(generated), len(human))
    if texts < 2:
        return {"status": "undefined", "reason": "fewer than 2 texts", "n": texts}
    sides = clusters(generated, human, spec.seed)
    number = 1 + max(int(side.max()) for side in sides)
    ones = [np.eye(number)[side] for side in sides]
    estimate = frontier_areas(*(one.mean(axis=0, keepdims=True) for one in ones))[0]
    drawn = [
        bootstrap.draws(f"{dataset} {who}", len(one), spec.resamples, spec.seed) @ one / len(one)
        for who, one in zip(("generated", "human"), ones, strict=True)
    ]
    replicates = frontier_areas(*drawn)
    # Resampled histograms are further apart than the two that were found: moved onto the estimate, within 0 to 1.
    low, high = bootstrap.interval(replicates - replicates.mean() + estimate, spec.confidence, texts)
    return {"estimate": float(estimate), "low": max(low, 0.0), "high": min(high, 1.0), "n": texts}


def _rouge(generated: pd.DataFrame, human: pd.DataFrame, dataset: str, spec: Spec) -> dict[str, dict[str, Any]]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    written = human.set_index("item")["text"]
    scores = [
        scorer.score(written[item], text)
        for item, text in zip(generated["item"], generated["text"], strict=True)
        if item in written.index
    ]
    return {metric: _mean(np.array([score[metric].fmeasure for score in scores]), dataset, spec) for metric in ROUGE}


def _mean(values: Floats, dataset: str, spec: Spec) -> dict[str, Any]:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return {"status": "undefined", "reason": "every text is too short"}
    counts = bootstrap.draws(dataset, len(values), spec.resamples, spec.seed)
    low, high = bootstrap.interval(counts @ values / len(values), spec.confidence, len(values))
    return {"estimate": float(values.mean()), "low": low, "high": high, "n": len(values)}


def _spread(generated: pd.DataFrame, spec: Spec) -> dict[str, dict[str, Any]]:
    right = outcomes(generated, "accuracy").to_numpy()
    items, strategies = right.shape
    if strategies < 2:
        return {}
    # The name seeds the draws: another would move every interval.
    counts = bootstrap.draws("closed", items, spec.resamples, spec.seed)
    estimates = spreads(right.mean(axis=0, keepdims=True))
    resampled = spreads(counts @ right / items)
    fields: dict[str, dict[str, Any]] = {}
    for metric, (value,) in estimates.items():
        if not math.isfinite(value):
            reason = "the worst strategy gets nothing right"
            fields[metric] = {"status": "undefined", "reason": reason, "n": items}
            continue
        low, high = bootstrap.interval_of_ratio(resampled[metric], spec.confidence, items)
        fields[metric] = {"estimate": float(value), "low": low, "high": high, "n": items}
    chance = spread_by_chance(right, spec)
    fields["spread_by_chance"] = {"estimate": chance, "n": items}
    return fields


def spreads(accuracies: Floats) -> dict[str, Floats]:
    """Spread metrics of ``[samples, strategies]``; not finite where they divide by nought."""
    high, low = accuracies.max(axis=1), accuracies.min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "spread_over_max": (high - low) / high,
            "spread_over_min": (high - low) / low,
            "spread_cv": accuracies.std(axis=1) / accuracies.mean(axis=1),
        }


def spread_by_chance(right: Floats, spec: Spec) -> float:
    """Level that (max - min) / max reaches by chance: each item's outcomes shuffled among the strategies."""
    generator = np.random.default_rng([spec.seed, 1])
    shuffled = generator.permuted(np.broadcast_to(right, (spec.resamples, *right.shape)), axis=2)
    found = spreads(shuffled.mean(axis=1))["spread_over_max"]
    found = np.where(np.isfinite(found), found, 0.0)
    return float(np.quantile(found, spec.confidence))
