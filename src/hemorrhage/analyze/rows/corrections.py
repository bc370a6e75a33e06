"""Rows of calibrated decoding: what each correction leaves of a variant's damage, and what it recovers.

The blocks are the windows of the second half of the text, and the continued windows of what the corrected model
generated itself. Registered before anything was measured: a temperature can't change which token is the likeliest, so
greedy accuracy and top-1 agreement stay what they were; it can only help samples, divergence and calibration error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hemorrhage.analyze.inputs import Inputs, Output, Variant
from hemorrhage.analyze.protocol import add_protocol
from hemorrhage.analyze.rows.language import BINS
from hemorrhage.analyze.rows.mitigations import Damage, Measured, Trial
from hemorrhage.analyze.rows.schema import environment_id, row
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.stats import bootstrap
from hemorrhage.analyze.stats.bootstrap import Floats

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
"""Means of a column of the step's table, by part; nats but for shares. ``greedy_accuracy``: share of tokens of the text
that greedy decoding would have got right."""


def trials(inputs: Inputs, spec: Spec) -> list[Trial]:
    """Every correction of every variant whose decoding was corrected, as a mitigation."""
    return [
        trial for name, output in inputs.corrections.items() for trial in trials_of(inputs.variants[name], output, spec)
    ]


def trials_of(variant: Variant, output: Output, spec: Spec) -> Iterator[Trial]:
    """The corrections of one variant; a failed step is one trial that says why."""
    if output.failure is not None:
        yield Trial(DECODING, variant.name, "correction=any", variant, variant, None, [], output.failure)
        return
    table = output.tables["tokens.parquet"]
    for name in table.loc[~table["correction"].isin([UNCORRECTED, *PLAIN.values()]), "correction"].unique():
        found = list(_measured(table, name, output, spec))
        label = f"correction={name}"
        treatment = f"{variant.name}, {name}"
        yield Trial(DECODING, treatment, label, variant, variant, variant, found, control_label=f"{label},shuffled")


def _measured(table: pd.DataFrame, name: str, output: Output, spec: Spec) -> Iterator[Measured]:
    truncated = name in PLAIN
    kinds = {
        (TEXT, True): ["distance"],
        (TEXT, False): ["kl", "ln_perplexity_ratio"],
        (GENERATION, True): ["distance"],
        (GENERATION, False): ["kl"],
    }
    names = {
        (TEXT, "kl"): "kl_mean",
        (TEXT, "distance"): "distance",
        (TEXT, "ln_perplexity_ratio"): "ln_perplexity_ratio",
        (GENERATION, "kl"): "generation_kl",
        (GENERATION, "distance"): "generation_distance",
    }
    wanted = ((PLAIN.get(name, UNCORRECTED), 0), (name, 0), *((name, number) for number in SHUFFLES))
    for part in (TEXT, GENERATION):
        of_part = table[table["part"] == part]
        sides = [of_part[(of_part["correction"] == one) & (of_part["shuffled"] == control)] for one, control in wanted]
        sides = [side for side in sides if len(side)]
        if len(sides) < 2:
            continue
        sizes, counts = _blocks(sides[0], output, part, spec)
        for column in kinds[part, truncated]:
            plain, treated, *shuffles = (Damage.of_sums(_sums(side, column), sizes, counts) for side in sides)
            control = _of_any(shuffles, spec) if shuffles else None
            yield Measured(names[part, column], _about(output, part), plain, treated, control)


def _of_any(shuffles: Sequence[Damage], spec: Spec) -> Damage:
    """The damage of a control: the mean over its shuffles; each resample takes one at random, so that luck is seen."""
    again = np.stack([one.replicates for one in shuffles])
    picks = np.random.default_rng(spec.seed).integers(len(shuffles), size=again.shape[1])
    estimate = float(np.mean([one.estimate for one in shuffles]))
    return Damage(estimate, again[picks, np.arange(again.shape[1])], shuffles[0].blocks)


def _sums(side: pd.DataFrame, column: str) -> Floats:
    """A column summed by window."""
    values = side["nll"].astype(float) - side["base_nll"] if column == "ln_perplexity_ratio" else side[column]
    return values.astype(float).groupby(side["window"]).sum().to_numpy(np.float64)


def _blocks(side: pd.DataFrame, output: Output, part: str, spec: Spec) -> tuple[bootstrap.Integers, bootstrap.Integers]:
    """Tokens of each window, and how often each stands in each resample."""
    sizes = side.groupby("window").size().to_numpy(np.int64)
    draws = bootstrap.draws(f"{output.manifest['corpus']}, second half, {part}", len(sizes), spec.resamples, spec.seed)
    return sizes, draws


def _about(output: Output, part: str) -> dict[str, str]:
    manifest = output.manifest
    asked = manifest["spec"]["open_ended"]
    own = f" generated={asked['new_tokens']}-after-{asked['prefix']}" if part == GENERATION else ""
    return {
        "dataset": manifest["corpus"],
        "protocol": output.protocol(manifest["corpus"]) + own,
        "data": manifest["sha256"],
        "environment": environment_id(manifest),
    }


def correction_rows(inputs: Inputs, spec: Spec) -> Iterator[dict[str, Any]]:
    """Rows such as ``kl_mean{correction=temperature}``, ``calibration_error{correction=bias,shuffled=1}``.

    The variant as it is has the correction ``none``.
    """
    for name, output in inputs.corrections.items():
        variant = inputs.variants[name]
        if output.failure is not None:
            about = {"dataset": output.manifest["corpus"], "protocol": output.protocol(output.manifest["corpus"])}
            metric = add_protocol("kl_mean{correction=any}", about["protocol"])
            yield row(variant, metric, status="failed", reason=output.failure, **about)
            continue
        for (correction, control), side in output.tables["tokens.parquet"].groupby(
            ["correction", "shuffled"], sort=False
        ):
            label = f"{{correction={correction}{f',shuffled={control}' if control else ''}}}"
            for metric, (fields, part) in _fields(side, output, spec).items():
                about = _about(output, part)
                yield row(variant, add_protocol(metric + label, about["protocol"]), **fields, **about)


def _fields(side: pd.DataFrame, output: Output, spec: Spec) -> Mapping[str, tuple[dict[str, Any], str]]:
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for metric, (part, column) in METRICS.items():
        chosen = side[side["part"] == part]
        if chosen.empty or chosen[column].isna().any():
            continue
        sizes, counts = _blocks(chosen, output, part, spec)
        sums = _sums(chosen, column)
        low, high = bootstrap.interval(bootstrap.means(counts, sums, sizes), spec.confidence, len(sums))
        found[metric] = ({"estimate": sums.sum() / sizes.sum(), "low": low, "high": high, "n": len(sums)}, part)
    found["calibration_error"] = (_calibration_error(side[side["part"] == TEXT], output, spec), TEXT)
    return found


def _calibration_error(text: pd.DataFrame, output: Output, spec: Spec) -> dict[str, Any]:
    """Expected calibration error over BINS bins; its interval is moved onto the estimate, as that of the variants."""
    sizes, counts = _blocks(text, output, TEXT, spec)
    _, block = np.unique(text["window"].to_numpy(), return_inverse=True)
    confidence = text["confidence"].to_numpy(np.float64)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.zeros((len(sizes), BINS))
    np.add.at(gaps, (block, bins), confidence - text["right"].to_numpy(np.float64))
    error = float(np.abs(gaps.sum(axis=0)).sum() / sizes.sum())
    again = np.abs(counts @ gaps).sum(axis=1) / (counts @ sizes)
    low, high = bootstrap.interval(again - again.mean() + error, spec.confidence, len(sizes))
    return {"estimate": error, "low": max(low, 0.0), "high": high, "n": len(sizes)}
