"""Rows of language modelling: perplexity and divergence from the base, with blocks that are windows of text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import BASE, Output, Variant
from hemorrhage.analyze.protocol import add_protocol, of_category
from hemorrhage.analyze.rows import drafts
from hemorrhage.analyze.rows.schema import OK, Row, Source, Statistic, environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap, significance
from hemorrhage.analyze.stats.bootstrap import Floats, Integers

METRICS = (
    "perplexity",
    "bits_per_token",
    "word_perplexity",
    "bits_per_byte",
    "ln_perplexity_ratio",
    "ln_probability_correlation",
    "kl_mean",
    "kl_median",
    "kl_p99",
    "kl_max",
    "kl_worst_window",
    "probability_change_mean",
    "probability_change_rms",
    "probability_change_p1",
    "probability_change_p5",
    "probability_change_p95",
    "probability_change_p99",
    "same_top1",
    "top10_overlap",
    "entropy_gap",
    "acceptance",
    "calibration_error",
    "calibration_error_change",
    "top1_brier",
)
"""Per corpus; a row's name ends with the whole protocol. KL and entropy in nats; ``kl_worst_window``: the
largest mean KL of a window; ``probability_change``: of the target, variant minus base; ``entropy_gap``: variant minus
base; ``acceptance``: of the variant's drafts by the base, sum of min(p, q), see hemorrhage.analyze.rows.drafts;
``calibration_error``: expected, over BINS bins of the top-1 token's probability (Guo et al. 2017, arXiv
1706.04599); ``top1_brier``: mean squared difference of that probability and of whether the token was right. Also by
bucket: kl_mean and ln_perplexity_ratio by position in the window (powers of two) and by how often the target occurs in
the corpus's evaluation split."""

BINS = 15

ROUNDING = 1e-6
"""Nats of KL per token that float32 leaves in doubt: log-probabilities down to -16 carry rounding errors of this size,
and two correct computations that sum in another order differ by as much."""

FREQUENCIES = {"1-2": 2, "3-10": 10, "11-100": 100, ">100": math.inf}
"""Bucket of a target's count -> its upper end."""


@dataclass(frozen=True)
class Noise:
    """The A/A run: the log-perplexity ratio of the base model to itself, summed per window: float64 ``[windows]``."""

    ratio: Floats


class PairedTest(NamedTuple):
    """A p-value, and the minimum detectable effect where it is known."""

    p: float
    mde: float = math.nan


@dataclass
class Resamples:
    """Resampled damage that other parts of the analysis read.

    ``ratios``: (variant, corpus) -> log-perplexity ratio in each resample, float64 ``[resamples]``; ``divergences`` the
    same of the mean KL. ``blocks``: corpus -> number of windows. ``noise``: corpus -> the A/A run.
    """

    ratios: dict[tuple[str, str], Floats] = field(default_factory=dict)
    divergences: dict[tuple[str, str], Floats] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    noise: dict[str, Noise] = field(default_factory=dict)


def language_rows(variant: Variant, output: Output, spec: Spec, resamples: Resamples) -> Iterator[Row]:
    """Rows of one variant on all corpora; the base's come first, for its evaluation is the noise floor."""
    for corpus, stated in output.manifest.get("corpora", {}).items():
        protocol = stated["protocol"]
        source = Source(corpus, protocol, stated["sha256"], environment_id(output.manifest))
        if output.failure is not None:
            for metric in METRICS:
                yield row(variant, add_protocol(metric, protocol), Statistic.failed(output.failure), source)
            continue
        damage = Damage(_of(output, "tokens.parquet", corpus), _of(output, "windows.parquet", corpus), corpus, spec)
        if variant.name == BASE:
            resamples.noise[corpus] = damage.noise()
        resamples.ratios[variant.name, corpus] = damage.ratios
        resamples.divergences[variant.name, corpus] = damage.divergences
        resamples.blocks[corpus] = damage.windows
        statistics = damage.metrics()
        if variant.name != BASE:
            for metric, test in damage.tests(resamples.noise.get(corpus)).items():
                statistics[metric] = replace(statistics[metric], p=test.p, mde=test.mde)
        statistics |= dict(_by_category(output, corpus, spec))
        statistics |= drafts.speedups(statistics["acceptance"], variant)
        for metric, statistic in statistics.items():
            if statistic.status == OK and not math.isfinite(statistic.estimate):
                statistic = Statistic.undefined("not a finite number", damage.windows)
            yield row(variant, add_protocol(metric, protocol), statistic, source)


def _by_category(output: Output, corpus: str, spec: Spec) -> Iterator[tuple[str, Statistic]]:
    """Yield ``Damage.category_metrics`` for each category of a corpus, where a user's file has some.

    Each category has resamples of its own: its windows are as many in all of them.
    """
    tokens, texts = _of(output, "tokens.parquet", corpus), _of(output, "windows.parquet", corpus)
    if "category" not in texts:
        return
    for category in filter(None, dict.fromkeys(texts["category"])):
        windows = texts.loc[texts["category"] == category, "window"]
        damage = Damage(tokens[tokens["window"].isin(windows)], texts, f"{corpus}: {category}", spec)
        for metric, statistic in damage.category_metrics().items():
            yield of_category(metric, category), statistic


def _of(output: Output, table: str, corpus: str) -> pd.DataFrame:
    content = output.tables.get(table)
    return pd.DataFrame() if content is None else content[content["corpus"] == corpus]


class Damage:
    """All language metrics of one variant on one corpus.

    ``tokens``: rows of the evaluation's tokens.parquet, ``texts``: of its windows.parquet or nothing.
    """

    def __init__(self, tokens: pd.DataFrame, texts: pd.DataFrame, corpus: str, spec: Spec) -> None:
        self.tokens, self.texts, self.spec = tokens, texts, spec
        self.ids, self.block = np.unique(tokens["window"].to_numpy(), return_inverse=True)
        self.sizes = np.bincount(self.block).astype(np.int64)
        self.windows = len(self.sizes)
        self.counts = bootstrap.draws(corpus, self.windows, spec.resamples, spec.seed)
        self.nll, self.base_nll, self.kl = (self._column(name) for name in ("nll", "base_nll", "kl"))
        self.ratios = self._resample(self.nll - self.base_nll)
        self.divergences = self._resample(self.kl)

    def noise(self) -> Noise:
        """Return this evaluation as the A/A run."""
        return Noise(self._sums(self.nll - self.base_nll))

    def tests(self, noise: Noise | None) -> dict[str, PairedTest]:
        """Test the perplexity against the A/A run's.

        KL has no test: it is above 0 for whatever differs at all, and every variant would pass. Flags and rankings ask
        whether it is above the A/A run's (hemorrhage.analyze.verdicts.flags).
        """
        ratio = self._sums(self.nll - self.base_nll)
        if noise is not None:
            ratio = ratio - noise.ratio
        if not np.isfinite(ratio.sum()):
            return {}
        mde = significance.detectable_mean(ratio, self.sizes.astype(np.float64), self.spec.confidence)
        return {"ln_perplexity_ratio": PairedTest(significance.sign_flip(ratio, self.spec.seed), mde)}

    def metrics(self) -> dict[str, Statistic]:
        """Compute every metric with its interval."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return {**self._likelihood(), **self._divergence(), **self._calibration(), **self._by_bucket()}

    def category_metrics(self) -> dict[str, Statistic]:
        """Compute the metrics that each category of a corpus has."""
        with np.errstate(over="ignore", invalid="ignore"):
            return {
                "kl_mean": self._mean(self.kl),
                "ln_perplexity_ratio": self._mean(self.nll - self.base_nll),
                "same_top1": self._mean(self._column("same_top1")),
            }

    def _column(self, name: str) -> Floats:
        return np.asarray(self.tokens[name], dtype=np.float64)

    def _sums(self, values: Floats) -> Floats:
        return np.bincount(self.block, weights=values, minlength=self.windows).astype(np.float64)

    def _resample(self, values: Floats) -> Floats:
        """Mean per token in each resample."""
        return bootstrap.means(self.counts, self._sums(values), self.sizes)

    def _statistic(self, estimate: float, resampled: Floats) -> Statistic:
        if not math.isfinite(estimate) or not np.isfinite(resampled).all():
            return Statistic(estimate, n=self.windows)
        low, high = bootstrap.interval(resampled, self.spec.confidence, self.windows)
        return Statistic(float(estimate), low, high, self.windows)

    def _mean(self, values: Floats) -> Statistic:
        statistic = self._statistic(float(values.mean()), self._resample(values))
        return replace(statistic, error=bootstrap.standard_error(self._sums(values), self.sizes))

    def _likelihood(self) -> dict[str, Statistic]:
        mean, means = float(self.nll.mean()), self._resample(self.nll)
        likelihood = {
            "perplexity": self._statistic(float(np.exp(mean)), np.exp(means)),
            "bits_per_token": self._statistic(mean / math.log(2), means / math.log(2)),
            "ln_perplexity_ratio": self._mean(self.nll - self.base_nll),
            "ln_probability_correlation": self._correlation(),
        }
        if len(self.texts):
            sums = self._sums(self.nll)
            texts = self.texts.set_index("window").loc[self.ids]
            words, size = (texts[name].to_numpy(np.int64) for name in ("words", "bytes"))
            means = bootstrap.means(self.counts, sums, words)
            likelihood["word_perplexity"] = self._statistic(float(np.exp(sums.sum() / words.sum())), np.exp(means))
            means = bootstrap.means(self.counts, sums / math.log(2), size)
            likelihood["bits_per_byte"] = self._statistic(float(sums.sum() / size.sum() / math.log(2)), means)
        return likelihood

    def _correlation(self) -> Statistic:
        """Pearson's, of the targets' log-probabilities under both models."""
        x, y = self.nll - self.nll.mean(), self.base_nll - self.base_nll.mean()
        products = (x, y, x * x, y * y, x * y)
        once = _pearson(*(np.asarray(values.mean()) for values in products))
        return self._statistic(float(once), _pearson(*(self._resample(values) for values in products)))

    def _divergence(self) -> dict[str, Statistic]:
        change = np.exp(-self.nll) - np.exp(-self.base_nll)
        squares = change**2
        return {
            "kl_mean": self._mean(self.kl),
            **self._percentiles("kl", self.kl, {"median": 0.5, "p99": 0.99}),
            "kl_max": Statistic(float(self.kl.max()), n=self.windows),
            "kl_worst_window": Statistic(float((self._sums(self.kl) / self.sizes).max()), n=self.windows),
            "probability_change_mean": self._mean(change),
            "probability_change_rms": self._statistic(float(np.sqrt(squares.mean())), np.sqrt(self._resample(squares))),
            **self._percentiles("probability_change", change, {"p1": 0.01, "p5": 0.05, "p95": 0.95, "p99": 0.99}),
            "same_top1": self._mean(self._column("same_top1")),
            "top10_overlap": self._mean(self._column("top10_overlap")),
            "entropy_gap": self._mean(self._column("entropy") - self._column("base_entropy")),
            "acceptance": self._acceptance(),
        }

    def _acceptance(self) -> Statistic:
        """Average over the predictions that were looked at."""
        accepted = self._column("acceptance")
        known = np.isfinite(accepted)
        sums = np.bincount(self.block[known], weights=accepted[known], minlength=self.windows).astype(np.float64)
        sizes = np.bincount(self.block[known], minlength=self.windows).astype(np.int64)
        mean = self._bucket_mean(sums, sizes)
        return Statistic.undefined("no prediction was looked at") if mean is None else mean

    def _percentiles(self, metric: str, values: Floats, levels: dict[str, float]) -> dict[str, Statistic]:
        once = np.ones((1, self.windows), dtype=np.int64)
        shares = tuple(levels.values())
        estimates = bootstrap.quantiles(values, self.block, once, shares)[:, 0]
        resampled = bootstrap.quantiles(values, self.block, self.counts, shares)
        return {
            f"{metric}_{name}": self._statistic(float(estimates[index]), resampled[index])
            for index, name in enumerate(levels)
        }

    def _calibration(self) -> dict[str, Statistic]:
        confidence, right = self._column("confidence"), self._column("right")
        base = self._gaps(self._column("base_confidence"), self._column("base_right"))
        error, errors = self._calibration_errors(self._gaps(confidence, right))
        before, errors_before = self._calibration_errors(base)
        return {
            "calibration_error": self._statistic(error, np.maximum(_centre(errors, error), 0.0)),
            "calibration_error_change": self._statistic(
                error - before, _centre(errors - errors_before, error - before)
            ),
            "top1_brier": self._mean((confidence - right) ** 2),
        }

    def _gaps(self, confidence: Floats, right: Floats) -> Floats:
        """Confidence minus accuracy, summed per window and bin: float64 ``[windows, BINS]``."""
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        flat = np.bincount(self.block * BINS + bins, weights=confidence - right, minlength=self.windows * BINS)
        return flat.astype(np.float64).reshape(self.windows, BINS)

    def _calibration_errors(self, gaps: Floats) -> tuple[float, Floats]:
        error = float(np.abs(gaps.sum(axis=0)).sum()) / len(self.block)
        return error, np.abs(self.counts @ gaps).sum(axis=1) / (self.counts @ self.sizes)

    def _by_bucket(self) -> dict[str, Statistic]:
        counts = self._column("count")
        frequency = np.searchsorted(list(FREQUENCIES.values())[:-1], counts, side="left")
        positions, position = np.unique(
            np.ceil(np.log2(self._column("position"))).astype(np.int64), return_inverse=True
        )
        names = ["1" if power == 0 else _span(2 ** (power - 1) + 1, 2**power) for power in positions.tolist()]
        means: dict[str, Statistic] = {}
        for grouping, bucket, labels in (("position", position, names), ("frequency", frequency, list(FREQUENCIES))):
            for metric, values in (("kl_mean", self.kl), ("ln_perplexity_ratio", self.nll - self.base_nll)):
                for label, mean in zip(labels, self._bucket_means(values, bucket, len(labels)), strict=True):
                    if mean is not None:
                        means[f"{metric}{{{grouping}={label}}}"] = mean
        return means

    def _bucket_means(self, values: Floats, bucket: Integers, buckets: int) -> list[Statistic | None]:
        """Mean over the tokens of each bucket; ``n`` counts the windows that have any, a bucket without is None."""
        cell, shape = bucket * self.windows + self.block, (buckets, self.windows)
        sums = np.bincount(cell, weights=values, minlength=buckets * self.windows).astype(np.float64).reshape(shape)
        sizes = np.bincount(cell, minlength=buckets * self.windows).reshape(shape)
        return [self._bucket_mean(total, size) for total, size in zip(sums, sizes, strict=True)]

    def _bucket_mean(self, sums: Floats, sizes: Integers) -> Statistic | None:
        """Mean over the tokens of one bucket, of sums and sizes by window."""
        windows = int((sizes > 0).sum())
        if windows == 0:
            return None
        resampled = bootstrap.means(self.counts, sums, sizes)
        finite = resampled[np.isfinite(resampled)]
        estimate = float(sums.sum() / sizes.sum())
        if len(finite) == 0 or not math.isfinite(estimate):
            return Statistic(estimate, n=windows)
        low, high = bootstrap.interval(finite, self.spec.confidence, windows)
        return Statistic(estimate, low, high, windows)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _pearson(x: Floats, y: Floats, xx: Floats, yy: Floats, xy: Floats) -> Floats:
    """Pearson's correlation from the means of two variables and of their products."""
    return np.asarray((xy - x * y) / np.sqrt((xx - x**2) * (yy - y**2)), dtype=np.float64)


def _centre(resampled: Floats, estimate: float) -> Floats:
    """Resamples moved onto the estimate: a sum of absolute values grows with noise, and resampling adds noise."""
    return np.asarray(resampled - (resampled.mean() - estimate), dtype=np.float64)
