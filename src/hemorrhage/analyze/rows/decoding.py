"""Rows of decoding strategies, with blocks that are prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemorrhage.analyze.inputs import Output, Variant
from hemorrhage.analyze.rows import stability, survival
from hemorrhage.analyze.rows.interaction import interaction
from hemorrhage.analyze.rows.schema import Row, Source, Statistic, environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.decode.degeneration import distinct_n, loop_period, rep_n, token_entropy
from hemorrhage.decode.frontier import clusters, frontier_areas

OPEN_METRICS = ("distinct_2", "distinct_3", "rep_4", "loop_rate", "base_nll", "length", "entropy")
"""Per decoding strategy on texts without right answers: means over texts; loop_rate is the share that ends in a loop,
base_nll in nats per token under the base model, length in tokens, entropy in nats of the tokens of a text."""

MAUVE = "mauve"
"""Per decoding strategy: hemorrhage.decode.frontier against what people wrote after the same prompts, 1 where the
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

CLOSED = "closed_ended"
"""What the sweep calls data sets with right answers; the others are open-ended."""

ALL_STRATEGIES = "all strategies"
DECODE = "decode"


def decoding_rows(variant: Variant, output: Output, spec: Spec, base: pd.DataFrame | None = None) -> Iterator[Row]:
    """Rows of one variant under every strategy; compared with ``base``, the base model's measured texts, if given."""
    seed = output.manifest.get("seed")
    environment = environment_id(output.manifest)
    of_all = _decoded(variant, ALL_STRATEGIES, ALL_STRATEGIES, seed)
    if output.failure is not None:
        yield row(of_all, "accuracy", Statistic.failed(output.failure), Source(environment=environment))
        return
    datasets = output.manifest["datasets"]
    for name, texts in measure_texts(output).groupby("dataset", sort=False):
        dataset = str(name)
        is_closed = texts["task"].iloc[0] == CLOSED
        source = Source(dataset, output.protocol(dataset), datasets[dataset]["sha256"], environment)
        for strategy, generated in texts.groupby("strategy", sort=False):
            under = _decoded(variant, str(strategy), _settings(generated["settings"].iloc[0]), seed)
            statistics = _closed(generated, spec) if is_closed else _open(generated, output, spec)
            for metric, statistic in statistics.items():
                yield row(under, metric, statistic, source)
        if is_closed:
            for metric, statistic in _spread(texts, spec).items():
                yield row(of_all, metric, statistic, source)
        if base is not None:
            pair = Pair(of_all, source, base[base["dataset"] == dataset], texts)
            yield from _closed_changes(pair, spec) if is_closed else _open_changes(pair, spec)


def _decoded(variant: Variant, strategy: str, setting: str, seed: int | None) -> Variant:
    """Return the variant as rows of decoding name it: the method is the strategy, and it lies on no damage curve."""
    return replace(
        variant,
        sweep=DECODE,
        family=DECODE,
        method=strategy,
        curve="",
        label=setting,
        axis="",
        severity=math.nan,
        seed=seed,
    )


def measure_texts(output: Output) -> pd.DataFrame:
    """Return the texts of a sweep with what each shows alone: columns of OPEN_METRICS, NaN where closed-ended."""
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
    """Return ``metric`` of one data set's texts as items by strategies, these in their order."""
    order = list(dict.fromkeys(texts["strategy"]))
    return texts.pivot(index="item", columns="strategy", values=metric)[order].astype(float)


@dataclass(frozen=True)
class Pair:
    """The measured texts of the base and of a variant on one data set, and what rows of the variant say."""

    variant: Variant
    source: Source
    base: pd.DataFrame
    texts: pd.DataFrame

    @property
    def dataset(self) -> str:
        """The data set of both."""
        return self.source.dataset


def _closed_changes(pair: Pair, spec: Spec) -> Iterator[Row]:
    """Rows that compare a variant's answers with the base's to the same items."""
    base, answers = outcomes(pair.base, "accuracy"), outcomes(pair.texts, "accuracy")
    yield from _interactions(pair, "accuracy", base, answers, spec)
    change = stability.compare(base.to_numpy(), answers.to_numpy(), pair.dataset, spec)
    if change:
        statistic = Statistic(change.difference, change.low, change.high, change.items)
        yield row(pair.variant, SPREAD_CHANGE, statistic, pair.source)


def _open_changes(pair: Pair, spec: Spec) -> Iterator[Row]:
    """Rows that compare a variant's texts with the base's after the same prompts."""
    for metric in INTERACTIONS:
        if metric != "accuracy":
            yield from _interactions(pair, metric, outcomes(pair.base, metric), outcomes(pair.texts, metric), spec)
    curve = greedy_survival(pair.base, pair.texts, pair.dataset, spec)
    if curve is None:
        return
    mean = Statistic(curve.mean, curve.mean_low, curve.mean_high, curve.texts)
    yield row(pair.variant, f"{SURVIVAL}_tokens", mean, pair.source)
    for tokens, share, low, high in survival.points(curve):
        statistic = Statistic(share, low, high, curve.texts)
        yield row(pair.variant, f"{SURVIVAL}{{token={tokens}}}", statistic, pair.source)


def greedy_survival(base: pd.DataFrame, variant: pd.DataFrame, dataset: str, spec: Spec) -> survival.Survival | None:
    """Estimate the agreement of the greedy texts of one data set; None where the sweep has no greedy search."""
    sides = []
    for texts in (base, variant):
        greedy = texts[texts["settings"].map(lambda text: json.loads(text)["strategy"] == "greedy")]
        sides.append(greedy[greedy["strategy"] == greedy["strategy"].iloc[0]] if len(greedy) else greedy)
    if not all(map(len, sides)):
        return None
    return survival.survival(survival.divergence_times(*(side[["item", "tokens"]] for side in sides)), dataset, spec)


def _interactions(pair: Pair, metric: str, base: pd.DataFrame, variant: pd.DataFrame, spec: Spec) -> Iterator[Row]:
    strategies = [name for name in variant.columns if name in base.columns]
    if len(strategies) < 2:
        return
    items = variant.index.intersection(base.index)
    before, after = (side.loc[items, strategies].to_numpy() for side in (base, variant))
    measured = interaction(before, after, pair.dataset, spec)
    for strategy, estimate, low, high, p in zip(
        strategies, measured.estimates, measured.low, measured.high, measured.p, strict=True
    ):
        statistic = Statistic(float(estimate), float(low), float(high), measured.items, p=float(p))
        yield row(replace(pair.variant, method=strategy), f"{metric}_interaction", statistic, pair.source)
    overall = Statistic(measured.size, n=measured.items, p=measured.overall)
    yield row(pair.variant, f"{metric}_interaction", overall, pair.source)


def _settings(text: str) -> str:
    settings = {key: value for key, value in json.loads(text).items() if key != "strategy"}
    if "label" in settings:
        return str(settings["label"])
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "no settings"


def _closed(generated: pd.DataFrame, spec: Spec) -> dict[str, Statistic]:
    right, n = int(generated["correct"].sum()), len(generated)
    low, high = bootstrap.wilson(right, n, spec.confidence)
    return {"accuracy": Statistic(right / n, low, high, n)}


def _open(generated: pd.DataFrame, output: Output, spec: Spec) -> dict[str, Statistic]:
    """Means over texts of what each text shows alone, and how near their distribution is to the human one."""
    dataset = str(generated["dataset"].iloc[0])
    statistics = {metric: _mean(generated[metric].to_numpy(np.float64), dataset, spec) for metric in OPEN_METRICS}
    human = output.tables.get("human.parquet")
    if human is None:
        return statistics
    human = human[human["dataset"] == dataset]
    if len(human):
        features = output.features.get(f"{dataset}.strategy.{generated['strategy'].iloc[0]}")
        people = output.features.get(f"{dataset}.human")
        if features is not None and people is not None:
            statistics[MAUVE] = _mauve(features, people, dataset, spec)
        if dataset in SUMMARIES:
            statistics |= _rouge(generated, human, dataset, spec)
    return statistics


def _mauve(generated: Features, human: Features, dataset: str, spec: Spec) -> Statistic:
    """Score the texts, with the interval of resampled texts, whose clusters are found once."""
    texts = min(len(generated), len(human))
    if texts < 2:
        return Statistic.undefined("fewer than 2 texts", texts)
    sides = clusters(generated, human, spec.seed)
    number = 1 + max(int(side.max()) for side in sides)
    members = [np.eye(number)[side] for side in sides]
    estimate = frontier_areas(*(side.mean(axis=0, keepdims=True) for side in members))[0]
    resampled = [
        bootstrap.draws(f"{dataset} {writer}", len(side), spec.resamples, spec.seed) @ side / len(side)
        for writer, side in zip(("generated", "human"), members, strict=True)
    ]
    replicates = frontier_areas(*resampled)
    # Resampled histograms are further apart than the two that were measured: moved onto the estimate, within 0 to 1.
    low, high = bootstrap.interval(replicates - replicates.mean() + estimate, spec.confidence, texts)
    return Statistic(float(estimate), max(low, 0.0), min(high, 1.0), texts)


def _rouge(generated: pd.DataFrame, human: pd.DataFrame, dataset: str, spec: Spec) -> dict[str, Statistic]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    written = human.set_index("item")["text"]
    scores = [
        scorer.score(written[item], text)
        for item, text in zip(generated["item"], generated["text"], strict=True)
        if item in written.index
    ]
    return {metric: _mean(np.array([score[metric].fmeasure for score in scores]), dataset, spec) for metric in ROUGE}


def _mean(values: Floats, dataset: str, spec: Spec) -> Statistic:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Statistic.undefined("every text is too short")
    counts = bootstrap.draws(dataset, len(values), spec.resamples, spec.seed)
    low, high = bootstrap.interval(counts @ values / len(values), spec.confidence, len(values))
    return Statistic(float(values.mean()), low, high, len(values))


def _spread(generated: pd.DataFrame, spec: Spec) -> dict[str, Statistic]:
    right = outcomes(generated, "accuracy").to_numpy()
    items, strategies = right.shape
    if strategies < 2:
        return {}
    # The name seeds the draws: another would move every interval.
    counts = bootstrap.draws("closed", items, spec.resamples, spec.seed)
    estimates = spreads(right.mean(axis=0, keepdims=True))
    resampled = spreads(counts @ right / items)
    statistics = {}
    for metric, (value,) in estimates.items():
        if not math.isfinite(value):
            statistics[metric] = Statistic.undefined("the worst strategy gets nothing right", items)
            continue
        low, high = bootstrap.interval_of_ratio(resampled[metric], spec.confidence, items)
        statistics[metric] = Statistic(float(value), low, high, items)
    statistics["spread_by_chance"] = Statistic(spread_by_chance(right, spec), n=items)
    return statistics


def spreads(accuracies: Floats) -> dict[str, Floats]:
    """Spread metrics of ``[samples, strategies]``; not finite where they divide by 0."""
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
    spread = spreads(shuffled.mean(axis=1))["spread_over_max"]
    return float(np.quantile(np.where(np.isfinite(spread), spread, 0.0), spec.confidence))
