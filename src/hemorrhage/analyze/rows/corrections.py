"""Rows of calibrated decoding: what each correction leaves of a variant's damage, and what it recovers.

The blocks are the windows of the second half of the text, and the continued windows of what the corrected model
generated itself. Registered before anything was measured: a temperature can't change the top-1 token, so
greedy accuracy and top-1 agreement stay what they were; it can only help samples, divergence and calibration error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import Inputs, Output, Variant
from hemorrhage.analyze.protocol import add_protocol
from hemorrhage.analyze.rows.language import BINS
from hemorrhage.analyze.rows.mitigations import Damage, Measured, Trial
from hemorrhage.analyze.rows.schema import Row, Source, Statistic, environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats, Integers

DECODING = "Decoding calibration"

PLAIN = {"nucleus": "top_p"}
"""Correction -> what it corrects, where that isn't the variant as it is."""

UNCORRECTED = "none"
SHUFFLES = (1, 2)
TEXT, GENERATION = "text", "generation"

METRICS = {
    "kl_mean": (TEXT, "kl"),
    "distance": (TEXT, "distance"),
    "same_top1": (TEXT, "same_top1"),
    "greedy_accuracy": (TEXT, "right"),
    "generation_kl": (GENERATION, "kl"),
    "generation_distance": (GENERATION, "distance"),
    "generation_base_nll": (GENERATION, "base_nll"),
}
"""Metric -> the text it is measured on and the column whose mean it is; nats but for shares. ``greedy_accuracy``: share
of tokens of the text that greedy decoding would have got right."""

OF_CORRECTION = {
    TEXT: {"kl_mean": "kl", "ln_perplexity_ratio": "ln_perplexity_ratio"},
    GENERATION: {"generation_kl": "kl"},
}
"""Text -> metric -> column of the damage that a correction is to undo."""

OF_TRUNCATION = {TEXT: {"distance": "distance"}, GENERATION: {"generation_distance": "distance"}}
"""The same where a truncated distribution is corrected, whose KL is infinite."""


def trials(inputs: Inputs, spec: Spec) -> list[Trial]:
    """Compare every correction of every variant whose decoding was corrected, as a mitigation."""
    return [
        trial for name, output in inputs.corrections.items() for trial in trials_of(inputs.variants[name], output, spec)
    ]


def trials_of(variant: Variant, output: Output, spec: Spec) -> Iterator[Trial]:
    """Compare the corrections of one variant; a failed step is one trial that says why."""
    if output.failure is not None:
        yield Trial(DECODING, variant.name, "correction=any", variant, variant, None, [], output.failure)
        return
    table = output.tables["tokens.parquet"]
    for name in table.loc[~table["correction"].isin([UNCORRECTED, *PLAIN.values()]), "correction"].unique():
        yield Trial(
            arm=DECODING,
            treatment=f"{variant.name}, {name}",
            label=f"correction={name}",
            plain=variant,
            treated=variant,
            control=variant,
            measured=list(_measured(table, name, output, spec)),
            control_label=f"correction={name},shuffled",
        )


def _measured(table: pd.DataFrame, name: str, output: Output, spec: Spec) -> Iterator[Measured]:
    wanted = ((PLAIN.get(name, UNCORRECTED), 0), (name, 0), *((name, number) for number in SHUFFLES))
    for text, metrics in (OF_TRUNCATION if name in PLAIN else OF_CORRECTION).items():
        tokens = table[table["part"] == text]
        sides = [
            tokens[(tokens["correction"] == correction) & (tokens["shuffled"] == shuffle)]
            for correction, shuffle in wanted
        ]
        sides = [side for side in sides if len(side)]
        if len(sides) < 2:
            continue
        sizes, counts = _blocks(sides[0], output, text, spec)
        for metric, column in metrics.items():
            plain, treated, *shuffles = (Damage.of_sums(_sums(side, column), sizes, counts) for side in sides)
            control = mean_control(shuffles, spec) if shuffles else None
            yield Measured(metric, _source(output, text), plain, treated, control)


def mean_control(shuffles: Sequence[Damage], spec: Spec) -> Damage:
    """Average the damage over a control's shuffles; each resample takes one at random, so that luck is seen."""
    replicates = np.stack([damage.replicates for damage in shuffles])
    picks = np.random.default_rng(spec.seed).integers(len(shuffles), size=replicates.shape[1])
    estimate = float(np.mean([damage.estimate for damage in shuffles]))
    return Damage(estimate, replicates[picks, np.arange(replicates.shape[1])], shuffles[0].blocks)


def _sums(side: pd.DataFrame, column: str) -> Floats:
    """Sum a column by window."""
    values = side["nll"].astype(float) - side["base_nll"] if column == "ln_perplexity_ratio" else side[column]
    return np.asarray(values.astype(float).groupby(side["window"]).sum(), dtype=np.float64)


def _blocks(side: pd.DataFrame, output: Output, text: str, spec: Spec) -> tuple[Integers, Integers]:
    """Tokens of each window, and how often each is in each resample."""
    sizes = side.groupby("window").size().to_numpy(np.int64)
    draws = bootstrap.draws(f"{output.manifest['corpus']}, second half, {text}", len(sizes), spec.resamples, spec.seed)
    return sizes, draws


def _source(output: Output, text: str) -> Source:
    manifest = output.manifest
    generated = manifest["spec"]["open_ended"]
    suffix = f" generated={generated['new_tokens']}-after-{generated['prefix']}" if text == GENERATION else ""
    return Source(
        dataset=manifest["corpus"],
        protocol=output.protocol(manifest["corpus"]) + suffix,
        data=manifest["sha256"],
        environment=environment_id(manifest),
    )


def correction_rows(inputs: Inputs, spec: Spec) -> Iterator[Row]:
    """Rows such as ``kl_mean{correction=temperature}``, ``calibration_error{correction=bias,shuffled=1}``.

    The variant as it is has the correction ``none``.
    """
    for name, output in inputs.corrections.items():
        variant = inputs.variants[name]
        if output.failure is not None:
            corpus = output.manifest["corpus"]
            source = Source(corpus, output.protocol(corpus))
            metric = add_protocol("kl_mean{correction=any}", source.protocol)
            yield row(variant, metric, Statistic.failed(output.failure), source)
            continue
        for (correction, control), side in output.tables["tokens.parquet"].groupby(
            ["correction", "shuffled"], sort=False
        ):
            label = f"{{correction={correction}{f',shuffled={control}' if control else ''}}}"
            for metric, text, statistic in _statistics(side, output, spec):
                source = _source(output, text)
                yield row(variant, add_protocol(metric + label, source.protocol), statistic, source)


def _statistics(side: pd.DataFrame, output: Output, spec: Spec) -> Iterator[tuple[str, str, Statistic]]:
    """Metric, the text it is measured on, and its mean, of one correction; last the calibration error."""
    for metric, (text, column) in METRICS.items():
        tokens = side[side["part"] == text]
        if tokens.empty or tokens[column].isna().any():
            continue
        sizes, counts = _blocks(tokens, output, text, spec)
        sums = _sums(tokens, column)
        low, high = bootstrap.interval(bootstrap.means(counts, sums, sizes), spec.confidence, len(sums))
        yield metric, text, Statistic(sums.sum() / sizes.sum(), low, high, len(sums))
    yield "calibration_error", TEXT, _calibration_error(side[side["part"] == TEXT], output, spec)


def _calibration_error(text: pd.DataFrame, output: Output, spec: Spec) -> Statistic:
    """Compute the expected calibration error over BINS bins; with its interval moved onto the estimate."""
    sizes, counts = _blocks(text, output, TEXT, spec)
    _, block = np.unique(text["window"].to_numpy(), return_inverse=True)
    confidence = text["confidence"].to_numpy(np.float64)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.zeros((len(sizes), BINS))
    np.add.at(gaps, (block, bins), confidence - text["right"].to_numpy(np.float64))
    error = float(np.abs(gaps.sum(axis=0)).sum() / sizes.sum())
    errors = np.abs(counts @ gaps).sum(axis=1) / (counts @ sizes)
    low, high = bootstrap.interval(errors - errors.mean() + error, spec.confidence, len(sizes))
    return Statistic(error, max(low, 0.0), high, len(sizes))
