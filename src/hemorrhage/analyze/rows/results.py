"""The tidy rows of the results: every metric of every variant with its interval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from tqdm import tqdm

from hemorrhage.analyze.inputs import BASE, Inputs, Output, Variant
from hemorrhage.analyze.rows import corrections, mitigations
from hemorrhage.analyze.rows.decoding import decoding_rows, measure_texts
from hemorrhage.analyze.rows.diagnostics import cost_rows, diagnostics_rows
from hemorrhage.analyze.rows.language import Texts, language_rows
from hemorrhage.analyze.rows.schema import ROWS, environment_id, row
from hemorrhage.analyze.rows.tasks import ALL_TASKS, Suite, suites, task_losses, task_rows
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import significance
from hemorrhage.analyze.stats.bootstrap import Floats

SizeMetric = Literal["disk_bytes", "effective_bits", "layer_bits", "size_ratio", "parameters", "sparsity", "changed"]
SIZE_METRICS: tuple[SizeMetric, ...] = get_args(SizeMetric)
"""Per variant, exact: see the checkpoint's manifest."""


@dataclass(frozen=True)
class Results:
    """``rows`` as in the schema; ``replicates``: (variant, corpus) -> log-perplexity ratio in each resample,
    float64 ``[resamples]``, and ``divergences`` the same of the mean KL; ``blocks``: corpus -> number of windows;
    ``suites``: the tasks, by who asked them; ``task_losses``: variant -> share of the base's accuracy on the probes
    that it lost, in each resample, and the number of their groups; ``trials``: the
    mitigations that were tried."""

    rows: pd.DataFrame
    replicates: dict[tuple[str, str], Floats] = field(repr=False)
    blocks: dict[str, int]
    suites: list[Suite] = field(repr=False)
    divergences: dict[tuple[str, str], Floats] = field(repr=False)
    task_losses: dict[str, tuple[float, Floats, int]] = field(repr=False)
    trials: list[mitigations.Trial] = field(repr=False)


def build(inputs: Inputs, spec: Spec) -> Results:
    """All rows of all inputs. A failed output gives rows without numbers that say why."""
    rows: list[dict[str, Any]] = []
    texts = Texts()
    evaluations = _evaluations(inputs)
    answered = suites(inputs, evaluations, spec)
    for variant in inputs.variants.values():
        rows.extend(_sizes(variant))
    for name, output in tqdm(evaluations.items(), desc="intervals", mininterval=5):
        rows.extend(language_rows(inputs.variants[name], output, spec, texts))
        rows.extend(diagnostics_rows(inputs.variants[name], output, spec))
        rows.extend(cost_rows(inputs.variants[name], output))
    for suite in answered:
        for variant in inputs.variants.values():
            rows.extend(task_rows(variant, suite, spec))
    decoded = inputs.decodes.get(BASE)
    texts_of_base = None if decoded is None or decoded.failure else measure_texts(decoded)
    for name, output in inputs.decodes.items():
        rows.extend(decoding_rows(inputs.variants[name], output, spec, None if name == BASE else texts_of_base))
    if inputs.sibling is not None:
        rows.extend(decoding_rows(inputs.sibling.variant, inputs.sibling.decoded, spec))
    trials = [*mitigations.trials(inputs, evaluations, answered, spec), *corrections.trials(inputs, spec)]
    rows.extend(mitigations.trial_rows(trials, spec))
    rows.extend(corrections.correction_rows(inputs, spec))
    table = pd.DataFrame(rows, columns=list(ROWS.columns))
    table["seed"] = table["seed"].astype("Int64")
    table["q"] = false_discovery_rates(table)
    probes = [suite for suite in answered if suite.name == ALL_TASKS]
    losses = task_losses(probes[0], spec) if probes else {}
    return Results(ROWS.validate(table), texts.replicates, texts.blocks, answered, texts.divergences, losses, trials)


def false_discovery_rates(rows: pd.DataFrame) -> pd.Series:
    """False discovery rates: Benjamini and Hochberg's q over all variants, for each metric and data set apart."""
    tested = rows[rows["p"].notna() & (rows["status"] == "ok")]
    found = pd.Series(np.nan, index=rows.index)
    for _, part in tested.groupby(["metric", "dataset", "protocol"]):
        found.loc[part.index] = significance.q_values(part["p"].to_numpy())
    return found


def _evaluations(inputs: Inputs) -> dict[str, Output]:
    """The evaluations, the base's first. The base's side is in every evaluation, so it never lacks one."""
    found = dict(inputs.evaluations)
    if BASE not in found:
        whole = next((output for output in found.values() if output.failure is None), None)
        if whole is not None:
            found[BASE] = _of_base(whole)
    return {name: found[name] for name in inputs.variants if name in found}


def _of_base(output: Output) -> Output:
    """The base as another variant's evaluation knows it: no A/A run, so that it equals itself by definition."""
    tokens = output.tables["tokens.parquet"]
    tables = {
        "tokens.parquet": tokens.assign(
            nll=tokens["base_nll"],
            kl=0.0,
            same_top1=True,
            top10_overlap=1.0,
            entropy=tokens["base_entropy"],
            confidence=tokens["base_confidence"],
            right=tokens["base_right"],
        )
    }
    if "windows.parquet" in output.tables:
        tables["windows.parquet"] = output.tables["windows.parquet"]
    if "items.parquet" in output.tables:
        items = output.tables["items.parquet"]
        tables["items.parquet"] = items.assign(choice=items["base_choice"], correct=items["base_correct"])
    return Output(output.manifest, tables)


def _sizes(variant: Variant) -> Iterator[dict[str, Any]]:
    about = {"environment": environment_id(variant.manifest), "protocol": "counted in the checkpoint"}
    for metric in SIZE_METRICS:
        value = variant.manifest.get(metric)
        if variant.failure is not None:
            yield row(variant, metric, status="failed", reason=variant.failure, **about)
        elif value is not None:
            yield row(variant, metric, estimate=float(value), n=1, **about)
