"""Rows of language modelling: perplexity and divergence from the base, with blocks that are windows of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import BASE, Output, Variant
from hemorrhage.analyze.protocol import add_protocol
from hemorrhage.analyze.rows.schema import environment_id, row
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
    "probability_change_mean",
    "probability_change_rms",
    "probability_change_p1",
    "probability_change_p5",
    "probability_change_p95",
    "probability_change_p99",
    "same_top1",
    "top10_overlap",
    "entropy_gap",
    "calibration_error",
    "calibration_error_change",
    "top1_brier",
)
"""Per corpus; a row's name has the whole protocol behind it. KL and entropy in nats; ``probability_change``: of the
target, variant minus base; ``entropy_gap``: variant minus base; ``calibration_error``: expected, over BINS bins of the
likeliest token's probability (Guo et al. 2017, arXiv 1706.04599); ``top1_brier``: mean squared difference of that
probability and of whether the token was right. By bucket besides: kl_mean and ln_perplexity_ratio by position in the
window (powers of two) and by how often the target stands in the corpus's evaluation split."""

BINS = 15

ROUNDING = 1e-6
"""Nats of KL per token that float32 leaves in doubt: log-probabilities down to -16 carry rounding errors of this size,
and two correct computations that sum in another order differ by as much."""

FREQUENCIES = {"1-2": 2, "3-10": 10, "11-100": 100, ">100": math.inf}
"""Bucket of a target's count -> its upper end."""


@dataclass(frozen=True)
class Noise:
    """The A/A run: what evaluating the base model itself gives, summed per window: float64 ``[windows]`` each."""

    kl: Floats
    ratio: Floats


@dataclass
class Texts:
    """What the language rows leave for others: ``replicates``: (variant, corpus) -> log-perplexity ratio in each
    resample, float64 ``[resamples]``, and ``divergences`` the same of the mean KL; ``blocks``: corpus -> number of
    windows; ``noise``: corpus -> the A/A run."""

    replicates: dict[tuple[str, str], Floats] = field(default_factory=dict)
    divergences: dict[tuple[str, str], Floats] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    noise: dict[str, Noise] = field(default_factory=dict)


def language_rows(variant: Variant, output: Output, spec: Spec, texts: Texts) -> Iterator[dict[str, Any]]:
    """Rows of one variant on all corpora; the base's come first, for its evaluation is the noise floor."""
    for corpus, facts in output.manifest.get("corpora", {}).items():
        protocol = facts["protocol"]
        about = {
            "dataset": corpus,
            "protocol": protocol,
            "data": facts["sha256"],
            "environment": environment_id(output.manifest),
        }
        if output.failure is not None:
            for metric in METRICS:
                yield row(variant, add_protocol(metric, protocol), status="failed", reason=output.failure, **about)
            continue
        damage = Damage(_of(output, "tokens.parquet", corpus), _of(output, "windows.parquet", corpus), corpus, spec)
        if variant.name == BASE:
            texts.noise[corpus] = damage.noise()
        texts.replicates[variant.name, corpus] = damage.ratios
        texts.divergences[variant.name, corpus] = damage.divergences
        texts.blocks[corpus] = damage.windows
        found = damage.metrics()
        if variant.name != BASE:
            for metric, tested in damage.tests(texts.noise.get(corpus)).items():
                found[metric] |= tested
        for metric, fields in found.items():
            if not math.isfinite(fields["estimate"]):
                fields = {"n": damage.windows, "status": "undefined", "reason": "not a finite number"}
            yield row(variant, add_protocol(metric, protocol), **fields, **about)


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
        self.ratios = self._again(self.nll - self.base_nll)
        self.divergences = self._again(self.kl)

    def noise(self) -> Noise:
        """This evaluation taken as the A/A run."""
        return Noise(self._sums(self.kl), self._sums(self.nll - self.base_nll))

    def tests(self, noise: Noise | None) -> dict[str, dict[str, float]]:
        """p-values against the A/A run, and minimum detectable effect: fields by metric.

        KL is never negative, so its test is one-sided, and asks for more than float32 can leave.
        """
        kl, ratio = self._sums(self.kl), self._sums(self.nll - self.base_nll)
        if noise is not None:
            kl, ratio = kl - noise.kl, ratio - noise.ratio
        seed = self.spec.seed
        if not np.isfinite(kl.sum() + ratio.sum()):
            return {}
        return {
            "kl_mean": {"p": significance.sign_flip(kl - ROUNDING * self.sizes, seed, "greater")},
            "ln_perplexity_ratio": {
                "p": significance.sign_flip(ratio, seed),
                "mde": significance.detectable_mean(ratio, self.sizes.astype(np.float64), self.spec.confidence),
            },
        }

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Metric -> estimate, low, high and n."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return {**self._likelihood(), **self._divergence(), **self._calibration(), **self._by_bucket()}

    def _column(self, name: str) -> Floats:
        return self.tokens[name].to_numpy(np.float64)

    def _sums(self, values: Floats) -> Floats:
        return np.bincount(self.block, weights=values, minlength=self.windows).astype(np.float64)

    def _again(self, values: Floats) -> Floats:
        """Mean per token in each resample."""
        return bootstrap.means(self.counts, self._sums(values), self.sizes)

    def _fields(self, estimate: float, resampled: Floats) -> dict[str, Any]:
        if not math.isfinite(estimate) or not np.isfinite(resampled).all():
            return {"estimate": estimate, "n": self.windows}
        low, high = bootstrap.interval(resampled, self.spec.confidence, self.windows)
        return {"estimate": float(estimate), "low": low, "high": high, "n": self.windows}

    def _mean(self, values: Floats) -> dict[str, Any]:
        return self._fields(float(values.mean()), self._again(values))

    def _likelihood(self) -> dict[str, dict[str, Any]]:
        mean, again = float(self.nll.mean()), self._again(self.nll)
        found = {
            "perplexity": self._fields(float(np.exp(mean)), np.exp(again)),
            "bits_per_token": self._fields(mean / math.log(2), again / math.log(2)),
            "ln_perplexity_ratio": self._mean(self.nll - self.base_nll),
            "ln_probability_correlation": self._correlation(),
        }
        if len(self.texts):
            sums = self._sums(self.nll)
            texts = self.texts.set_index("window").loc[self.ids]
            words, size = (texts[name].to_numpy(np.int64) for name in ("words", "bytes"))
            again = bootstrap.means(self.counts, sums, words)
            found["word_perplexity"] = self._fields(float(np.exp(sums.sum() / words.sum())), np.exp(again))
            again = bootstrap.means(self.counts, sums / math.log(2), size)
            found["bits_per_byte"] = self._fields(float(sums.sum() / size.sum() / math.log(2)), again)
        return found

    def _correlation(self) -> dict[str, Any]:
        """Pearson's, of the targets' log-probabilities under both models."""
        x, y = self.nll - self.nll.mean(), self.base_nll - self.base_nll.mean()

        def correlation(mean: Mapping[str, Any]) -> Any:
            covariance = mean["xy"] - mean["x"] * mean["y"]
            return covariance / np.sqrt((mean["xx"] - mean["x"] ** 2) * (mean["yy"] - mean["y"] ** 2))

        products = {"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}
        estimate = correlation({name: values.mean() for name, values in products.items()})
        return self._fields(
            float(estimate), correlation({name: self._again(values) for name, values in products.items()})
        )

    def _divergence(self) -> dict[str, dict[str, Any]]:
        change = np.exp(-self.nll) - np.exp(-self.base_nll)
        squares = change**2
        return {
            "kl_mean": self._mean(self.kl),
            **self._percentiles("kl", self.kl, {"median": 0.5, "p99": 0.99}),
            "kl_max": {"estimate": float(self.kl.max()), "n": self.windows},
            "probability_change_mean": self._mean(change),
            "probability_change_rms": self._fields(float(np.sqrt(squares.mean())), np.sqrt(self._again(squares))),
            **self._percentiles("probability_change", change, {"p1": 0.01, "p5": 0.05, "p95": 0.95, "p99": 0.99}),
            "same_top1": self._mean(self._column("same_top1")),
            "top10_overlap": self._mean(self._column("top10_overlap")),
            "entropy_gap": self._mean(self._column("entropy") - self._column("base_entropy")),
        }

    def _percentiles(self, metric: str, values: Floats, levels: dict[str, float]) -> dict[str, dict[str, Any]]:
        once = np.ones((1, self.windows), dtype=np.int64)
        shares = tuple(levels.values())
        estimates = bootstrap.quantiles(values, self.block, once, shares)[:, 0]
        again = bootstrap.quantiles(values, self.block, self.counts, shares)
        return {
            f"{metric}_{name}": self._fields(float(estimates[place]), again[place]) for place, name in enumerate(levels)
        }

    def _calibration(self) -> dict[str, dict[str, Any]]:
        confidence, right = self._column("confidence"), self._column("right")
        base = self._gaps(self._column("base_confidence"), self._column("base_right"))
        gaps = self._gaps(confidence, right)
        error, again = self._calibration_errors(gaps)
        before, before_again = self._calibration_errors(base)
        found = {
            "calibration_error": self._fields(error, np.maximum(_centred(again, error), 0.0)),
            "calibration_error_change": self._fields(error - before, _centred(again - before_again, error - before)),
            "top1_brier": self._mean((confidence - right) ** 2),
        }
        return found

    def _gaps(self, confidence: Floats, right: Floats) -> Floats:
        """Confidence minus accuracy, summed per window and bin: float64 ``[windows, BINS]``."""
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        flat = np.bincount(self.block * BINS + bins, weights=confidence - right, minlength=self.windows * BINS)
        return flat.astype(np.float64).reshape(self.windows, BINS)

    def _calibration_errors(self, gaps: Floats) -> tuple[float, Floats]:
        error = float(np.abs(gaps.sum(axis=0)).sum()) / len(self.block)
        return error, np.abs(self.counts @ gaps).sum(axis=1) / (self.counts @ self.sizes)

    def _by_bucket(self) -> dict[str, dict[str, Any]]:
        counts = self._column("count")
        frequency = np.searchsorted(list(FREQUENCIES.values())[:-1], counts, side="left")
        positions, position = np.unique(
            np.ceil(np.log2(self._column("position"))).astype(np.int64), return_inverse=True
        )
        names = ["1" if power == 0 else _span(2 ** (power - 1) + 1, 2**power) for power in positions.tolist()]
        found: dict[str, dict[str, Any]] = {}
        for kind, bucket, labels in (("position", position, names), ("frequency", frequency, list(FREQUENCIES))):
            for metric, values in (("kl_mean", self.kl), ("ln_perplexity_ratio", self.nll - self.base_nll)):
                for label, fields in zip(labels, self._bucket_means(values, bucket, len(labels)), strict=True):
                    if fields:
                        found[f"{metric}{{{kind}={label}}}"] = fields
        return found

    def _bucket_means(self, values: Floats, bucket: Integers, buckets: int) -> list[dict[str, Any]]:
        """Mean over the tokens of each bucket; ``n`` counts the windows that have any, a bucket without is empty."""
        cell, shape = bucket * self.windows + self.block, (buckets, self.windows)
        sums = np.bincount(cell, weights=values, minlength=buckets * self.windows).astype(np.float64).reshape(shape)
        sizes = np.bincount(cell, minlength=buckets * self.windows).reshape(shape)
        found: list[dict[str, Any]] = []
        for total, size in zip(sums, sizes, strict=True):
            there = int((size > 0).sum())
            if there == 0:
                found.append({})
                continue
            again = bootstrap.means(self.counts, total, size)
            finite = again[np.isfinite(again)]
            estimate = float(total.sum() / size.sum())
            if len(finite) == 0 or not math.isfinite(estimate):
                found.append({"estimate": estimate, "n": there})
                continue
            low, high = bootstrap.interval(finite, self.spec.confidence, there)
            found.append({"estimate": estimate, "low": low, "high": high, "n": there})
        return found


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _centred(resampled: Floats, estimate: float) -> Floats:
    """Resamples moved onto the estimate: a sum of absolute values grows with noise, and resampling adds noise."""
    return resampled - (resampled.mean() - estimate)
