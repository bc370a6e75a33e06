"""Rows of calibrated decoding: what each correction leaves of a variant's damage, and what it recovers.

The blocks are the windows of the second half of each corpus, the continued windows of what the corrected model wrote
itself, and the items of closed-ended tasks. The damage of a trajectory is what the base's own text after the same
prompt, by the same search, does better: TRAJECTORIES.

Registered before anything was measured: a temperature can't change the top-1 token, so greedy texts, their accuracy and
top-1 agreement stay what they were; it can only help samples, divergence and calibration error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

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
from hemorrhage.decode.degeneration import loop_period

DECODING = "Decoding calibration"

TOKENS, TEXTS = "tokens.parquet", "texts.parquet"

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

BASE_TEXTS = {"nucleus": "base top_p", "top_p": "base top_p"}
"""Correction -> what the base's own texts are called that its texts are compared with, where that isn't ``base``."""

SEARCHES = ("greedy", "sampling")


class Trajectory(NamedTuple):
    """A measure of texts: its ``value`` of each, and the ``damage`` of some next to the base's of the same items."""

    task: str
    value: Callable[[pd.DataFrame], pd.Series]
    damage: Callable[[pd.DataFrame, pd.DataFrame], pd.Series]


def _looped(texts: pd.DataFrame) -> pd.Series:
    return texts["tokens"].map(lambda tokens: float(loop_period([int(token) for token in tokens]) > 0))


def _answered(texts: pd.DataFrame) -> pd.Series:
    return texts["correct"].astype(float)


TRAJECTORIES = {
    "wrong_answers": Trajectory("closed_ended", _answered, lambda texts, base: _answered(base) - _answered(texts)),
    "divergence": Trajectory(
        "open_ended",
        lambda texts: texts["agreement"].astype(float),
        lambda texts, _base: 1.0 - texts["agreement"] / texts["base_length"],
    ),
    "loops": Trajectory("open_ended", _looped, lambda texts, base: _looped(texts) - _looped(base)),
    "surprise": Trajectory(
        "open_ended", lambda texts: texts["base_nll"], lambda texts, base: texts["base_nll"] - base["base_nll"]
    ),
}
"""Damage of texts -> how it is measured: right answers lost; the share of the base's text that is left after the first
token that differs; loops more than the base's; nats per token under the base more than its own text has."""

MEANS = {"wrong_answers": "accuracy", "divergence": "agreement_tokens", "loops": "loop_rate", "surprise": "base_nll"}
"""Damage of texts -> what the mean of its value is called."""

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
    table = output.tables[TOKENS]
    for name in table.loc[~table["correction"].isin([UNCORRECTED, *PLAIN.values()]), "correction"].unique():
        yield Trial(
            arm=DECODING,
            treatment=f"{variant.name}, {name}",
            label=f"correction={name}",
            plain=variant,
            treated=variant,
            control=variant,
            measured=[*_measured(output, name, spec), *_written(output, name, spec)],
            control_label=f"correction={name},shuffled",
        )


def _measured(output: Output, name: str, spec: Spec) -> Iterator[Measured]:
    wanted = ((PLAIN.get(name, UNCORRECTED), 0), (name, 0), *((name, number) for number in SHUFFLES))
    table = output.tables[TOKENS]
    for text, metrics in (OF_TRUNCATION if name in PLAIN else OF_CORRECTION).items():
        for dataset, tokens in table[table["part"] == text].groupby("dataset", sort=False):
            sides = [
                tokens[(tokens["correction"] == correction) & (tokens["shuffled"] == shuffle)]
                for correction, shuffle in wanted
            ]
            for metric, column in metrics.items():
                yield _compared(metric, column, [side for side in sides if len(side)], output, str(dataset), text, spec)


def _compared(
    metric: str, column: str, sides: Sequence[pd.DataFrame], output: Output, dataset: str, text: str, spec: Spec
) -> Measured:
    """Compare the variant as it is, its correction, and the correction's control where there is one."""
    damages = [_damage(side, column, dataset, text, spec) for side in sides]
    plain, treated, *shuffles = damages
    control = mean_control(shuffles, spec) if shuffles else None
    return Measured(metric, _source(output, dataset, text), plain, treated, control)


def _damage(side: pd.DataFrame, column: str, dataset: str, text: str, spec: Spec) -> Damage:
    sizes, counts = _blocks(side, dataset, text, spec)
    return Damage.of_sums(_sums(side, column), sizes, counts)


def _written(output: Output, name: str, spec: Spec) -> Iterator[Measured]:
    """Compare what the variant writes as it is, with a correction and with its control, all with the base's texts."""
    table = output.tables.get(TEXTS)
    if table is None:
        return
    wanted = ((PLAIN.get(name, UNCORRECTED), 0), (name, 0), *((name, number) for number in SHUFFLES))
    own = BASE_TEXTS.get(name, "base")
    for (search, dataset), texts in table.groupby(["search", "dataset"], sort=False):
        by_name = {key: side.set_index("item") for key, side in texts.groupby(["correction", "shuffled"], sort=False)}
        if not all(key in by_name for key in wanted):
            continue
        base = by_name[own, 0]
        for measure, how in TRAJECTORIES.items():
            if how.task != base["task"].iloc[0]:
                continue
            damages = [
                _mean_damage(how.damage(by_name[key].loc[base.index], base), str(dataset), spec) for key in wanted
            ]
            plain, treated, *shuffles = damages
            source = _source_of_texts(output, str(dataset), str(search))
            yield Measured(f"{search}_{measure}", source, plain, treated, mean_control(shuffles, spec))


def _mean_damage(values: pd.Series, dataset: str, spec: Spec) -> Damage:
    sums = values.to_numpy(np.float64)
    counts = bootstrap.draws(f"{dataset}, texts", len(sums), spec.resamples, spec.seed)
    return Damage.of_sums(sums, np.ones(len(sums), dtype=np.int64), counts)


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


def _blocks(side: pd.DataFrame, dataset: str, text: str, spec: Spec) -> tuple[Integers, Integers]:
    """Tokens of each window, and how often each is in each resample."""
    sizes = side.groupby("window").size().to_numpy(np.int64)
    draws = bootstrap.draws(f"{dataset}, second half, {text}", len(sizes), spec.resamples, spec.seed)
    return sizes, draws


def _source(output: Output, dataset: str, text: str) -> Source:
    manifest = output.manifest
    generated = manifest["spec"]["open_ended"]
    suffix = f" generated={generated['new_tokens']}-after-{generated['prefix']}" if text == GENERATION else ""
    return Source(
        dataset=dataset,
        protocol=output.protocol(dataset) + suffix,
        data=manifest["datasets"][dataset]["sha256"],
        environment=environment_id(manifest),
    )


def _source_of_texts(output: Output, dataset: str, search: str) -> Source:
    manifest = output.manifest
    generated = manifest["spec"]["open_ended"]
    protocol = output.protocol(dataset)
    if "window=" in protocol:
        protocol = f"items={generated['items']} prefix={generated['prefix']} new_tokens={generated['new_tokens']}"
    sha256 = manifest["datasets"][dataset]["sha256"]
    return Source(dataset, f"{protocol}; {search}", sha256, environment_id(manifest))


def correction_rows(inputs: Inputs, spec: Spec) -> Iterator[Row]:
    """Rows such as ``kl_mean{correction=temperature}``, ``calibration_error{correction=bias,shuffled=1}``, and of texts
    ``loop_rate{correction=bias,search=greedy}``.

    The variant as it is has the correction ``none``, the base's own texts ``base``.
    """
    for name, output in inputs.corrections.items():
        variant = inputs.variants[name]
        if output.failure is not None:
            corpus = output.manifest["corpus"]
            source = Source(corpus, output.protocol(corpus))
            metric = add_protocol("kl_mean{correction=any}", source.protocol)
            yield row(variant, metric, Statistic.failed(output.failure), source)
            continue
        yield from _token_rows(variant, output, spec)
        yield from _text_rows(variant, output, spec)


def _token_rows(variant: Variant, output: Output, spec: Spec) -> Iterator[Row]:
    for (correction, control, dataset), side in output.tables[TOKENS].groupby(
        ["correction", "shuffled", "dataset"], sort=False
    ):
        label = f"{{correction={correction}{f',shuffled={control}' if control else ''}}}"
        for metric, text, statistic in _statistics(side, str(dataset), spec):
            source = _source(output, str(dataset), text)
            yield row(variant, add_protocol(metric + label, source.protocol), statistic, source)


def _text_rows(variant: Variant, output: Output, spec: Spec) -> Iterator[Row]:
    table = output.tables.get(TEXTS)
    if table is None:
        return
    for (correction, control, search, dataset), side in table.groupby(
        ["correction", "shuffled", "search", "dataset"], sort=False
    ):
        shuffled = f",shuffled={control}" if control else ""
        for measure, how in TRAJECTORIES.items():
            if how.task == side["task"].iloc[0]:
                metric = f"{MEANS[measure]}{{correction={correction}{shuffled},search={search}}}"
                statistic = _mean(how.value(side), str(dataset), spec)
                yield row(variant, metric, statistic, _source_of_texts(output, str(dataset), str(search)))


def _mean(values: pd.Series, dataset: str, spec: Spec) -> Statistic:
    damage = _mean_damage(values, dataset, spec)
    low, high = bootstrap.interval(damage.replicates, spec.confidence, damage.blocks)
    return Statistic(damage.estimate, low, high, damage.blocks)


def _statistics(side: pd.DataFrame, dataset: str, spec: Spec) -> Iterator[tuple[str, str, Statistic]]:
    """Metric, the text it is measured on, and its mean, of one correction; last the calibration error."""
    for metric, (text, column) in METRICS.items():
        tokens = side[side["part"] == text]
        if tokens.empty or tokens[column].isna().any():
            continue
        sizes, counts = _blocks(tokens, dataset, text, spec)
        sums = _sums(tokens, column)
        low, high = bootstrap.interval(bootstrap.means(counts, sums, sizes), spec.confidence, len(sums))
        yield metric, text, Statistic(sums.sum() / sizes.sum(), low, high, len(sums))
    yield "calibration_error", TEXT, _calibration_error(side[side["part"] == TEXT], dataset, spec)


def _calibration_error(text: pd.DataFrame, dataset: str, spec: Spec) -> Statistic:
    """Compute the expected calibration error over BINS bins; with its interval moved onto the estimate."""
    sizes, counts = _blocks(text, dataset, TEXT, spec)
    _, block = np.unique(text["window"].to_numpy(), return_inverse=True)
    confidence = text["confidence"].to_numpy(np.float64)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.zeros((len(sizes), BINS))
    np.add.at(gaps, (block, bins), confidence - text["right"].to_numpy(np.float64))
    error = float(np.abs(gaps.sum(axis=0)).sum() / sizes.sum())
    errors = np.abs(counts @ gaps).sum(axis=1) / (counts @ sizes)
    low, high = bootstrap.interval(errors - errors.mean() + error, spec.confidence, len(sizes))
    return Statistic(error, max(low, 0.0), high, len(sizes))
