"""Rows of decoding strategies, with blocks that are prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import BASE, Output, Variant
from hemorrhage.analyze.rows import answers, stability, survival
from hemorrhage.analyze.rows.answers import Sides
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES, CONSTANT, SPREAD_SD, careful
from hemorrhage.analyze.rows.floors import Floors, floors
from hemorrhage.analyze.rows.interaction import interaction
from hemorrhage.analyze.rows.schema import Row, Source, Statistic, environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats
from hemorrhage.decode.degeneration import distinct_n, loop_period, rep_n, token_entropy
from hemorrhage.decode.frontier import LEAST_TEXTS, against_others

OPEN_METRICS = ("distinct_2", "distinct_3", "rep_4", "loop_rate", "base_nll", "length", "entropy", "truncated")
"""Per decoding strategy on texts without right answers: means over texts; loop_rate is the share that ends in a loop,
base_nll in nats per token under the base model, length in tokens, entropy in nats of the tokens of a text, truncated
the share that the limit of tokens ends."""

MAUVE, CEILING = "mauve", "mauve_ceiling"
"""Per decoding strategy: hemorrhage.decode.frontier against what people wrote after other prompts, 1 where the
distributions are the same; and over all strategies, what people reach themselves in place of a model."""

ROUGE = ("rouge1", "rouge2", "rougeL")
"""Per decoding strategy on summaries: F-measures of rouge-score, with stemming, means over texts."""

SUMMARIES = ("xsum",)
"""Data sets whose human texts are summaries."""

SPREAD = "spread"
"""Per variant, of the accuracy over strategies, without the noise of the items (hemorrhage.analyze.rows.stability):
(max - min) / max that so many strategies of the measured deviation have."""

SPREAD_CHANGE = "spread_cv_change"
"""Per variant: standard deviation over mean less the base's, on the same items."""

CLOSED_METRICS = ("accuracy", "strict_accuracy", "uncommitted", "truncated", "loop_rate", "length")
"""Per decoding strategy on texts with right answers, means over items: of the answer that is in the text in any form,
and of that in the task's own form; the answer is in the text, and another one is given; the limit of tokens ends the
text; it ends in a loop; tokens."""

INTERACTIONS = ("accuracy", "base_nll", "rep_4")
"""Metrics M of ``M_interaction``: per variant and strategy what compression costs it more than the mean strategy
(hemorrhage.analyze.rows.interaction), and over all strategies the root mean square of that."""

SURVIVAL = "agreement"
"""``agreement{token=N}``: per variant the share of greedy texts that are the base's after N tokens;
``agreement_tokens``: the mean number of tokens that are (hemorrhage.analyze.rows.survival)."""

CLOSED = "closed_ended"
"""What the sweep calls data sets with right answers; the others are open-ended."""

DECODE = "decode"


@dataclass(frozen=True)
class Comparisons:
    """Variants times data sets that a study compares with the base: of closed-ended and of open-ended prompts."""

    closed: int = 1
    opened: int = 1

    @classmethod
    def of(cls, texts: pd.DataFrame, variants: int) -> Comparisons:
        """Count those of so many variants, of which one has the measured ``texts``."""
        closed, everything = texts.loc[texts["task"] == CLOSED, "dataset"].nunique(), texts["dataset"].nunique()
        return cls(variants * closed, variants * (everything - closed))

    @property
    def all(self) -> int:
        """Count both."""
        return self.closed + self.opened

    @property
    def interactions(self) -> int:
        """Count the tables of strategies: one metric of closed-ended prompts, the others of open-ended ones."""
        return self.closed + (len(INTERACTIONS) - 1) * self.opened


def compared_variants(decodes: Mapping[str, Output]) -> int:
    """Count the decoded variants that are compared with the base."""
    return sum(name != BASE and output.failure is None for name, output in decodes.items())


def decoding_rows(
    variant: Variant, output: Output, spec: Spec, base: pd.DataFrame | None = None, variants: int = 1
) -> Iterator[Row]:
    """Rows of one variant under every strategy; compared with ``base``, the base model's measured texts, if given.

    ``variants``: how many the study compares.
    """
    seed = output.manifest.get("seed")
    environment = environment_id(output.manifest)
    of_all = decoded_variant(variant, ALL_STRATEGIES, ALL_STRATEGIES, seed)
    if output.failure is not None:
        yield row(of_all, "accuracy", Statistic.failed(output.failure), Source(environment=environment))
        return
    datasets, measured = output.manifest["datasets"], measure_texts(output)
    compared = Comparisons.of(measured, variants)
    for name, texts in measured.groupby("dataset", sort=False):
        dataset = str(name)
        source = Source(dataset, output.protocol(dataset), datasets[dataset]["sha256"], environment)
        theirs = texts if base is None else base[base["dataset"] == dataset]
        is_closed = texts["task"].iloc[0] == CLOSED
        if is_closed and answers.has_answers(texts):
            texts = texts.assign(uncommitted=answers.uncommitted(texts, theirs))
        for strategy, generated in texts.groupby("strategy", sort=False):
            under = decoded_variant(variant, str(strategy), _settings(generated["settings"].iloc[0]), seed)
            statistics = _closed(generated, spec) if is_closed else _open(generated, output, spec)
            for metric, statistic in statistics.items():
                yield row(under, metric, statistic, source)
        pair = Pair(of_all, source, theirs, texts, compared, is_base=base is None)
        yield from _over_strategies(pair, output, is_closed, spec)
        if base is not None:
            size = float(variant.manifest.get("size_ratio", math.nan))
            confidence, sides = careful(spec, compared.all).confidence, Sides.of(theirs, texts)
            for metric, statistic in answers.changes(sides, size, is_closed, dataset, spec, confidence):
                yield row(of_all, metric, statistic, source)


def _over_strategies(pair: Pair, output: Output, is_closed: bool, spec: Spec) -> Iterator[Row]:
    """Rows over all strategies of one data set, and those of each strategy that compare it with the base's."""
    if is_closed:
        floor = floors(pair.texts, pair.base, spec, pair.is_base, pair.compared.closed)
        for metric, statistic in _spread(pair.texts, floor, pair.dataset, spec).items():
            yield row(pair.variant, metric, statistic, pair.source)
        if not pair.is_base:
            yield from _closed_changes(pair, floor, spec)
        return
    ceiling = _ceiling(output, pair.dataset, spec)
    if ceiling is not None:
        yield row(pair.variant, CEILING, ceiling, pair.source)
    if not pair.is_base:
        yield from _open_changes(pair, spec)


def decoded_variant(variant: Variant, strategy: str, setting: str, seed: int | None) -> Variant:
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
    """Return the texts of a sweep with what each shows alone: columns of OPEN_METRICS, some NaN where closed-ended.

    ``cut``: whether the limit of tokens ends the text.
    """
    texts = output.tables["generations.parquet"].copy()
    tokens = [[int(token) for token in text] for text in texts["tokens"]]
    texts["tokens"] = tokens
    texts["accuracy"] = texts["correct"].astype(float)
    texts["strict_accuracy"] = texts["strict_correct"].astype(float)
    texts["cut"] = texts["finish"] == "limit"
    texts["truncated"] = texts["cut"].astype(float)
    texts["loop_rate"] = [float(loop_period(text) > 0) for text in tokens]
    texts["length"] = [float(len(text)) for text in tokens]
    opened = (texts["task"] == "open_ended").to_numpy()
    measures: dict[str, Callable[[list[int]], float]] = {
        "distinct_2": lambda text: distinct_n(text, 2),
        "distinct_3": lambda text: distinct_n(text, 3),
        "rep_4": lambda text: rep_n(text, 4),
        "entropy": lambda text: token_entropy([text]),
    }
    for metric, measure in measures.items():
        texts[metric] = [measure(text) if is_open else math.nan for text, is_open in zip(tokens, opened, strict=True)]
    return texts


def outcomes(texts: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return ``metric`` of one data set's texts as items by strategies, these in their order: means over draws."""
    order = list(dict.fromkeys(texts["strategy"]))
    return texts.groupby(["item", "strategy"])[metric].mean().unstack()[order].astype(float)


@dataclass(frozen=True)
class Pair:
    """The measured texts of the base and of a variant, or the base again, on one data set, and what rows of it say."""

    variant: Variant
    source: Source
    base: pd.DataFrame
    texts: pd.DataFrame
    compared: Comparisons = field(default_factory=Comparisons)
    is_base: bool = False

    @property
    def dataset(self) -> str:
        """The data set of both."""
        return self.source.dataset


def _closed_changes(pair: Pair, floor: Floors, spec: Spec) -> Iterator[Row]:
    """Rows that compare a variant's answers with the base's to the same items, where they are evidence."""
    if floor.constant is not None:
        share = Statistic(floor.constant.share, n=floor.constant.texts, p=floor.constant.p)
        yield row(pair.variant, CONSTANT, share, pair.source)
    base, answered = outcomes(pair.base, "accuracy"), outcomes(pair.texts, "accuracy")
    compared = [name for name in floor.compared(list(answered.columns)) if name in base.columns]
    for name in answered.columns:
        reason = floor.lost or floor.left_out.get(name, "")
        if reason:
            left_out = replace(pair.variant, method=name)
            yield row(left_out, "accuracy_interaction", Statistic.undefined(reason), pair.source)
    yield from _interactions(pair, "accuracy", base[compared], answered[compared], spec)
    if len(compared) < 2:
        reason = floor.lost or "fewer than two strategies are evidence"
        yield row(pair.variant, SPREAD_CHANGE, Statistic.undefined(reason), pair.source)
        return
    items = answered.index.intersection(base.index)
    evidence = [name for name in floor.evidence(list(answered.columns)) if name in base.columns]
    before, after = (side.loc[items, evidence].to_numpy() for side in (base, answered))
    change = stability.compare(before, after, pair.dataset, spec)
    if change:
        statistic = Statistic(change.difference, change.low, change.high, change.items, mde=change.mde)
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
    sides = [survival.greedy_texts(texts) for texts in (base, variant)]
    if not all(map(len, sides)):
        return None
    return survival.survival(survival.divergence_times(*(side[["item", "tokens"]] for side in sides)), dataset, spec)


def _interactions(pair: Pair, metric: str, base: pd.DataFrame, variant: pd.DataFrame, spec: Spec) -> Iterator[Row]:
    strategies = [name for name in variant.columns if name in base.columns]
    if len(strategies) < 2:
        return
    items = variant.index.intersection(base.index)
    before, after = (side.loc[items, strategies].to_numpy() for side in (base, variant))
    measured = interaction(before, after, pair.dataset, spec, pair.compared.interactions)
    for index, strategy in enumerate(strategies):
        estimate, low, high, p, mde = (
            float(column[index])
            for column in (measured.estimates, measured.low, measured.high, measured.p, measured.mde)
        )
        statistic = Statistic(estimate, low, high, measured.items, p=p, mde=mde)
        yield row(replace(pair.variant, method=strategy), f"{metric}_interaction", statistic, pair.source)
    overall = Statistic(measured.size, n=measured.items, p=measured.overall)
    yield row(pair.variant, f"{metric}_interaction", overall, pair.source)


def _settings(text: str) -> str:
    settings = {key: value for key, value in json.loads(text).items() if key != "strategy"}
    if "label" in settings:
        return str(settings["label"])
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "no settings"


def _closed(generated: pd.DataFrame, spec: Spec) -> dict[str, Statistic]:
    """Shares of texts, with Wilson's interval of the independent items that they are worth: draws of one are not."""
    items = generated["item"].nunique()
    statistics = {}
    for metric in CLOSED_METRICS:
        if metric not in generated:
            continue
        known = generated.dropna(subset=metric)
        means = known.groupby("item")[metric].mean().to_numpy(np.float64)
        if metric == "length":
            statistics[metric] = _mean(means, str(generated["dataset"].iloc[0]), spec)
        elif len(means):
            values, groups = known[metric].to_numpy(np.float64), known["item"].to_numpy(np.int64)
            worth = bootstrap.effective_size(values, groups, spec.confidence)
            low, high = bootstrap.wilson(float(values.mean()) * worth, worth, spec.confidence)
            statistics[metric] = Statistic(float(values.mean()), low, high, len(means))
        else:
            statistics[metric] = Statistic.undefined("no right answer is known", items)
    return statistics


def _open(generated: pd.DataFrame, output: Output, spec: Spec) -> dict[str, Statistic]:
    """Means over texts of what each text shows alone, and how near their distribution is to the human one."""
    dataset = str(generated["dataset"].iloc[0])
    by_item = generated.groupby("item")[list(OPEN_METRICS)].mean()
    statistics = {metric: _mean(by_item[metric].to_numpy(np.float64), dataset, spec) for metric in OPEN_METRICS}
    human = _human(output, dataset)
    if human is None:
        return statistics
    statistics[MAUVE] = _mauve(generated, human, output, spec)
    if dataset in SUMMARIES:
        statistics |= _rouge(generated, human, dataset, spec)
    return statistics


def _human(output: Output, dataset: str) -> pd.DataFrame | None:
    """Return what people wrote behind the prompts of a data set; None where nobody did."""
    human = output.tables.get("human.parquet")
    human = None if human is None else human[human["dataset"] == dataset]
    return human if human is not None and len(human) else None


def _mauve(generated: pd.DataFrame, human: pd.DataFrame, output: Output, spec: Spec) -> Statistic:
    """Score the first draws beside what people wrote behind other prompts."""
    dataset, strategy = (str(generated[column].iloc[0]) for column in ("dataset", "strategy"))
    first = (generated["draw"] == 0).to_numpy()
    shared = sorted(set(generated["item"][first]) & set(human["item"]))
    if len(shared) < LEAST_TEXTS:
        return Statistic.undefined(
            f"{len(shared)} texts: MAUVE is near 1 whatever they are, it takes {LEAST_TEXTS}", len(shared)
        )
    written, people = (output.features.get(f"{dataset}.{side}") for side in (f"strategy.{strategy}", "human"))
    if written is None or people is None:
        return Statistic.undefined("the sweep kept no features of these texts", len(shared))
    order = pd.Series(np.flatnonzero(first), index=generated["item"][first])
    places = pd.Series(range(len(human)), index=human["item"])
    scores = against_others(written[order[shared]], people[places[shared]], spec.seed)
    return _of_splits(scores, len(shared))


def _ceiling(output: Output, dataset: str, spec: Spec) -> Statistic | None:
    """Score people beside people, as ``_mauve`` does; None where there are too few of them."""
    human, people = _human(output, dataset), output.features.get(f"{dataset}.human")
    if human is None or people is None or len(human) < LEAST_TEXTS:
        return None
    return _of_splits(against_others(people, people, spec.seed), len(human))


def _of_splits(scores: Floats, texts: int) -> Statistic:
    """Return the mean of the scores of random halves and their range: resampled texts would repeat, and score lower."""
    return Statistic(float(scores.mean()), float(scores.min()), float(scores.max()), texts)


def _rouge(generated: pd.DataFrame, human: pd.DataFrame, dataset: str, spec: Spec) -> dict[str, Statistic]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    written = human.set_index("item")["text"]
    judged = generated[generated["item"].isin(written.index)]
    scores = [scorer.score(written[item], text) for item, text in zip(judged["item"], judged["text"], strict=True)]
    measured = {}
    for metric in ROUGE:
        # Draws of an article are one observation of it.
        by_item = pd.Series([score[metric].fmeasure for score in scores], dtype=float).groupby(
            judged["item"].to_numpy()
        )
        measured[metric] = _mean(by_item.mean().to_numpy(np.float64), dataset, spec)
    return measured


def _mean(values: Floats, dataset: str, spec: Spec) -> Statistic:
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Statistic.undefined("every text is too short")
    counts = bootstrap.draws(dataset, len(values), spec.resamples, spec.seed)
    low, high = bootstrap.interval(counts @ values / len(values), spec.confidence, len(values))
    return Statistic(float(values.mean()), low, high, len(values))


def _spread(generated: pd.DataFrame, floor: Floors, dataset: str, spec: Spec) -> dict[str, Statistic]:
    right = outcomes(generated, "accuracy")
    measured = stability.spread(right[floor.evidence(list(right.columns))].to_numpy(), f"closed {dataset}", spec)
    if measured is None:
        return {SPREAD: Statistic.undefined(floor.lost or "fewer than two strategies are evidence", len(right))}
    statistics = {SPREAD_SD: Statistic(measured.sd, measured.sd_low, measured.sd_high, measured.items, p=measured.p)}
    if math.isfinite(measured.relative):
        statistics[SPREAD] = Statistic(measured.relative, measured.low, measured.high, measured.items)
    else:
        statistics[SPREAD] = Statistic.undefined("nothing is right", measured.items)
    return statistics
