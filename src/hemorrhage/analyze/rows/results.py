"""The tidy rows of the results: every metric of every variant with its interval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd
from tqdm import tqdm

from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.rows import corrections, draws, findings, mitigations
from hemorrhage.analyze.rows.confirmations import confirmation_rows
from hemorrhage.analyze.rows.decoding import DECODE, compared_variants, decoding_rows, measure_texts
from hemorrhage.analyze.rows.diagnostics import cost_rows, diagnostics_rows
from hemorrhage.analyze.rows.distinct import distinct_rows
from hemorrhage.analyze.rows.engines import engine_rows
from hemorrhage.analyze.rows.language import Resamples, language_rows
from hemorrhage.analyze.rows.schema import OK, ROWS, Row, Source, Statistic, environment_id, row, table_of
from hemorrhage.analyze.rows.secondary import secondary_rows
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.rows.tasks import ALL_TASKS, Suite, suites, task_losses, task_rows
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import significance
from hemorrhage.analyze.stats.bootstrap import Floats

SizeMetric = Literal["disk_bytes", "effective_bits", "layer_bits", "size_ratio", "parameters", "sparsity", "changed"]
SIZE_METRICS: tuple[SizeMetric, ...] = get_args(SizeMetric)
"""Per variant, exact: see the checkpoint's manifest."""


@dataclass(frozen=True)
class Results:
    """All rows, and the resamples that verdicts rest on.

    ``replicates``: (variant, corpus) -> log-perplexity ratio in each resample, float64 ``[resamples]``; ``divergences``
    the same of the mean KL. ``blocks``: corpus -> number of windows. ``suites``: the tasks, by the step that scored
    them. ``task_losses``: variant -> share of the base's accuracy on the probes that it lost, the same in each
    resample, and the number of their groups. ``trials``: the mitigations that were tried.
    """

    rows: pd.DataFrame
    replicates: dict[tuple[str, str], Floats] = field(repr=False)
    blocks: dict[str, int]
    suites: list[Suite] = field(repr=False)
    divergences: dict[tuple[str, str], Floats] = field(repr=False)
    task_losses: dict[str, tuple[float, Floats, int]] = field(repr=False)
    trials: list[mitigations.Trial] = field(repr=False)

    @cached_property
    def numbers(self) -> Numbers:
        """The rows by variant, metric and data set; made once, since a study has a million of them."""
        return Numbers(self.rows)


def build(inputs: Inputs, spec: Spec) -> Results:
    """Build all rows of all inputs. A failed output gives rows without numbers that say why."""
    rows: list[Row] = []
    resamples = Resamples()
    evaluations = _evaluations(inputs)
    answered = suites(inputs, evaluations, spec)
    for variant in inputs.variants.values():
        rows.extend(_size_rows(variant))
    for name, output in tqdm(evaluations.items(), desc="intervals", mininterval=5):
        rows.extend(language_rows(inputs.variants[name], output, spec, resamples))
        rows.extend(diagnostics_rows(inputs.variants[name], output, spec))
        rows.extend(cost_rows(inputs.variants[name], output))
    rows.extend(engine_rows(inputs, spec))
    for suite in answered:
        for variant in inputs.variants.values():
            rows.extend(task_rows(variant, suite, spec))
    rows.extend(secondary_rows(inputs, spec))
    rows.extend(confirmation_rows(inputs, spec))
    rows.extend(_decoding_rows(inputs, spec))
    for name, output in inputs.decodes.items():
        rows.extend(distinct_rows(inputs.variants[name], output))
    known = draws.measure(inputs, Numbers(table_of([each for each in rows if each.metric.startswith("kl_mean")])))
    trials = [*mitigations.trials(inputs, evaluations, answered, spec, known), *corrections.trials(inputs, spec)]
    rows.extend(mitigations.trial_rows(trials, spec))
    rows.extend(corrections.correction_rows(inputs, spec))
    table = table_of(rows)
    table["q"] = false_discovery_rates(table)
    probes = [suite for suite in answered if suite.name == ALL_TASKS]
    return Results(
        rows=ROWS.validate(table),
        replicates=resamples.ratios,
        blocks=resamples.blocks,
        suites=answered,
        divergences=resamples.divergences,
        task_losses=task_losses(probes[0], spec) if probes else {},
        trials=trials,
    )


def _decoding_rows(inputs: Inputs, spec: Spec) -> Iterator[Row]:
    """Rows of the decoding sweeps, the variants' compared with the base's."""
    of_base, variants = inputs.decodes.get(BASE), compared_variants(inputs.decodes)
    base_texts = None if of_base is None or of_base.failure else measure_texts(of_base)
    for name, output in inputs.decodes.items():
        yield from decoding_rows(inputs.variants[name], output, spec, None if name == BASE else base_texts, variants)
    if inputs.sibling is not None:
        yield from decoding_rows(inputs.sibling.variant, inputs.sibling.decoded, spec)


def false_discovery_rates(rows: pd.DataFrame) -> pd.Series:
    """Return Benjamini and Hochberg's q over all variants, for each metric and data set apart.

    Of decoding, p-values are corrected for all that is said of it (hemorrhage.analyze.rows.findings).
    """
    tested = rows[rows["p"].notna() & (rows["status"] == OK)]
    rates = pd.Series(np.nan, index=rows.index)
    decoded = tested["family"] == DECODE
    rates.loc[tested.index[decoded]] = findings.corrected(tested[decoded])
    for _, family in tested[~decoded].groupby(["metric", "dataset", "protocol"]):
        rates.loc[family.index] = significance.q_values(family["p"].to_numpy())
    return rates


def _evaluations(inputs: Inputs) -> dict[str, Output]:
    """Return the evaluations, the base's first. The base's side is in every evaluation, so it never lacks one."""
    evaluations = dict(inputs.evaluations)
    if BASE not in evaluations:
        whole = next((output for output in evaluations.values() if output.failure is None), None)
        if whole is not None:
            evaluations[BASE] = _of_base(whole)
    return {name: evaluations[name] for name in inputs.variants if name in evaluations}


def _of_base(output: Output) -> Output:
    """Return the base as another variant's evaluation knows it: without an A/A run it equals itself by definition."""
    tokens = output.tables["tokens.parquet"]
    tables = {
        "tokens.parquet": tokens.assign(
            nll=tokens["base_nll"],
            kl=0.0,
            same_top1=True,
            top10_overlap=1.0,
            entropy=tokens["base_entropy"],
            confidence=tokens["base_confidence"],
            acceptance=tokens["acceptance"].where(tokens["acceptance"].isna(), 1.0),
            right=tokens["base_right"],
        )
    }
    if "windows.parquet" in output.tables:
        tables["windows.parquet"] = output.tables["windows.parquet"]
    if "items.parquet" in output.tables:
        items = output.tables["items.parquet"]
        tables["items.parquet"] = items.assign(choice=items["base_choice"], correct=items["base_correct"])
    return Output(output.manifest, tables)


def _size_rows(variant: Variant) -> Iterator[Row]:
    source = Source(protocol="counted in the checkpoint", environment=environment_id(variant.manifest))
    for metric in SIZE_METRICS:
        value = variant.manifest.get(metric)
        if variant.failure is not None:
            yield row(variant, metric, Statistic.failed(variant.failure), source)
        elif isinstance(value, int | float):
            yield row(variant, metric, Statistic(float(value), n=1), source)
